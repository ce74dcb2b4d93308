// Parts that predictors are made of: what streams chose last, how often experts are used, how often
// a guess of some kind came true, and the most probable experts of a row.
//
// Threads: one owner thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_id.h"

namespace sluice {

// The k largest of `scores`, descending, of equal ones the lower index first (as Backend::TopK
// orders them, so that a gate predicts exactly its own choice). REQUIRES: k = top.size() <=
// scores.size().
void TopExperts(std::span<const float> scores, std::span<int32_t> top);

// log(p / (1 - p)) with p kept off 0 and 1.
float LogOdds(float probability);
// The inverse, from a table: within 1.6% of the true value where it is small.
float FromLogOdds(float log_odds);

// Sequences by their names, in at most kMaxStreams rows that are given to whoever was seen last.
class StreamRows {
 public:
  static constexpr int kMaxStreams = 256;

  // The row of a stream, or -1.
  int Find(int64_t stream) const;
  // The row of a stream; `*fresh` says that it was another's or nobody's until now. Rows below
  // size() are in use or free.
  int FindOrAdd(int64_t stream, bool* fresh);
  // Frees the stream's row; returns it, or -1.
  int Remove(int64_t stream);
  int size() const { return static_cast<int>(names_.size()); }

 private:
  std::vector<int64_t> names_;
  std::vector<uint64_t> last_seen_;  // 0: free
  uint64_t clock_ = 0;
  mutable int last_row_ = 0;  // tokens of one stream come in runs
};

// What each stream chose lately, as one code per expert: bit 3 says that the last token chose it,
// bits 0 to 2 how its share of the stream's last tokens (kHistoryTokens or so) compares with an
// even one, from far below (0) to three times as much (7).
class StreamHistory {
 public:
  static constexpr int kCodes = 16;
  static constexpr int kLastChose = 8;
  static constexpr int kHistoryTokens = 32;

  explicit StreamHistory(ExpertSpace space) : space_(space) {}

  // [experts_per_layer] codes, or null where the stream has not been through the layer.
  const uint8_t* Find(int64_t stream, int layer) const;
  // Consecutive tokens of a stream; ids: [tokens, experts_per_token].
  void Add(int64_t stream, int layer, int tokens, int experts_per_token, const int32_t* ids);
  void Remove(int64_t stream) { rows_.Remove(stream); }

 private:
  size_t offset(int row, int layer) const {
    return (static_cast<size_t>(row) * space_.layers + layer) * space_.experts_per_layer;
  }
  ExpertSpace space_;
  StreamRows rows_;
  std::vector<float> shares_;   // [row, layer, expert], decayed
  std::vector<uint8_t> codes_;  // [row, layer, expert]
  std::vector<uint8_t> known_;  // [row, layer]
};

// The share of tokens that choose each expert: the prior at first, then counted with decay.
class UsageRates {
 public:
  UsageRates(ExpertSpace space, int experts_per_token, const ExpertPrior& prior);

  // ids: [tokens, experts_per_token].
  void Add(int layer, int tokens, const int32_t* ids);

  std::span<const float> rates(int layer) const { return Row(rates_, layer); }
  // Log odds of the rates, less those of an even share.
  std::span<const float> evidence(int layer) const { return Row(evidence_, layer); }

 private:
  std::span<const float> Row(const std::vector<float>& table, int layer) const {
    const auto n = static_cast<size_t>(space_.experts_per_layer);
    return std::span(table).subspan(static_cast<size_t>(layer) * n, n);
  }
  void Refresh(int layer);

  ExpertSpace space_;
  int experts_per_token_;
  float even_;                 // log odds of an even share
  std::vector<float> prior_;   // [place]
  std::vector<float> counts_;  // [place], decayed
  std::vector<float> tokens_;  // [layer], decayed
  std::vector<float> rates_, evidence_;
};

// How often guesses of each kind (bucket) came true, counted with decay, in independent rows.
class TruthTable {
 public:
  // Forgets with a time constant of `window` updates of a row.
  TruthTable(int rows, int buckets, float window);

  // What is believed before anything is counted, worth `weight` trials.
  void Believe(int row, int bucket, float probability, float weight);

  // Counts a token's guesses: buckets [n] and whether each came true [n].
  void Count(int row, std::span<const uint8_t> buckets, const uint8_t* truths);

  // [buckets] log odds that a guess comes true.
  const float* log_odds(int row) const { return &log_odds_[static_cast<size_t>(row) * buckets_]; }
  int buckets() const { return buckets_; }

 private:
  int buckets_;
  float decay_;
  std::vector<float> trials_, truths_, log_odds_;  // [row, bucket]
  std::vector<float> new_trials_, new_truths_;     // [bucket]
};

}  // namespace sluice
