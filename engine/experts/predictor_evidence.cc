#include "engine/experts/predictor_evidence.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/base/check.h"

namespace sluice {
namespace {

constexpr float kLowest = 1e-5f;    // no probability is taken to be lower, or nearer to 1
constexpr float kPriorTokens = 64;  // what a prior is worth
constexpr float kRateTokens = 2048;

constexpr float kOddsLimit = 12;
constexpr int kOddsSteps = 32;  // table entries per unit of log odds

const auto& SigmoidTable() {
  static const auto table = [] {
    std::array<float, static_cast<size_t>(2 * kOddsLimit * kOddsSteps) + 1> values;
    for (size_t i = 0; i < values.size(); ++i) {
      const float x = static_cast<float>(i) / kOddsSteps - kOddsLimit;
      values[i] = 1 / (1 + std::exp(-x));
    }
    return values;
  }();
  return table;
}

}  // namespace

void TopExperts(std::span<const float> scores, std::span<int32_t> top) {
  const auto k = static_cast<int>(top.size());
  SLUICE_CHECK(k <= static_cast<int>(scores.size()));
  int filled = 0;
  for (int e = 0; e < static_cast<int>(scores.size()); ++e) {
    const float score = scores[static_cast<size_t>(e)];
    if (filled == k && !(k > 0 && score > scores[static_cast<size_t>(top[k - 1])])) continue;
    int at = filled < k ? filled++ : k - 1;
    for (; at > 0 && score > scores[static_cast<size_t>(top[at - 1])]; --at) top[at] = top[at - 1];
    top[at] = e;
  }
}

float LogOdds(float probability) {
  const float p = std::clamp(probability, kLowest, 1 - kLowest);
  return std::log(p / (1 - p));
}

float FromLogOdds(float log_odds) {
  const float x = std::clamp(log_odds, -kOddsLimit, kOddsLimit);
  return SigmoidTable()[static_cast<size_t>((x + kOddsLimit) * kOddsSteps + 0.5f)];
}

int StreamRows::Find(int64_t stream) const {
  const auto rows = static_cast<int>(names_.size());
  if (last_row_ < rows && names_[last_row_] == stream && last_seen_[last_row_] != 0) {
    return last_row_;
  }
  for (int row = 0; row < rows; ++row) {
    if (names_[row] == stream && last_seen_[row] != 0) return last_row_ = row;
  }
  return -1;
}

int StreamRows::FindOrAdd(int64_t stream, bool* fresh) {
  int row = Find(stream);
  *fresh = row < 0;
  if (row < 0) {
    const auto oldest = std::min_element(last_seen_.begin(), last_seen_.end());
    if (oldest != last_seen_.end() && (*oldest == 0 || size() == kMaxStreams)) {
      row = static_cast<int>(oldest - last_seen_.begin());
    } else {
      row = size();
      names_.push_back(0);
      last_seen_.push_back(0);
    }
    names_[row] = stream;
    last_row_ = row;
  }
  last_seen_[row] = ++clock_;
  return row;
}

int StreamRows::Remove(int64_t stream) {
  const int row = Find(stream);
  if (row >= 0) last_seen_[row] = 0;
  return row;
}

const uint8_t* StreamHistory::Find(int64_t stream, int layer) const {
  const int row = rows_.Find(stream);
  if (row < 0 || !known_[static_cast<size_t>(row) * space_.layers + layer]) return nullptr;
  return &codes_[offset(row, layer)];
}

void StreamHistory::Add(int64_t stream, int layer, int tokens, int experts_per_token,
                        const int32_t* ids) {
  bool fresh = false;
  const int row = rows_.FindOrAdd(stream, &fresh);
  const auto rows = static_cast<size_t>(rows_.size());
  shares_.resize(rows * space_.size());
  codes_.resize(rows * space_.size());
  known_.resize(rows * space_.layers);
  uint8_t* known = &known_[static_cast<size_t>(row) * space_.layers];
  if (fresh) std::fill_n(known, space_.layers, uint8_t{0});

  const int experts = space_.experts_per_layer;
  float* shares = &shares_[offset(row, layer)];
  const float even = static_cast<float>(experts_per_token) / static_cast<float>(experts);
  if (!known[layer]) std::fill_n(shares, experts, even);
  known[layer] = 1;
  // Older tokens than this have no weight left.
  for (int t = std::max(0, tokens - 4 * kHistoryTokens); t < tokens; ++t) {
    for (int e = 0; e < experts; ++e) shares[e] *= 1 - 1.0f / kHistoryTokens;
    for (int i = 0; i < experts_per_token; ++i) {
      shares[ids[t * experts_per_token + i]] += 1.0f / kHistoryTokens;
    }
  }
  uint8_t* codes = &codes_[offset(row, layer)];
  for (int e = 0; e < experts; ++e) {
    uint8_t level = 0;
    for (const float bound : {0.1f, 0.25f, 0.5f, 0.75f, 1.25f, 2.0f, 3.0f}) {
      level += shares[e] >= bound * even;
    }
    codes[e] = level;
  }
  for (int i = 0; i < experts_per_token; ++i) {
    codes[ids[(tokens - 1) * experts_per_token + i]] |= kLastChose;
  }
}

UsageRates::UsageRates(ExpertSpace space, int experts_per_token, const ExpertPrior& prior)
    : space_(space), experts_per_token_(experts_per_token) {
  const float even =
      static_cast<float>(experts_per_token) / static_cast<float>(space.experts_per_layer);
  even_ = LogOdds(even);
  const auto places = static_cast<size_t>(space.size());
  SLUICE_CHECK(prior.frequency.empty() || prior.frequency.size() == places);
  prior_ = prior.frequency.empty() ? std::vector<float>(places, even) : prior.frequency;
  counts_.resize(places);
  tokens_.resize(static_cast<size_t>(space.layers));
  rates_.resize(places);
  evidence_.resize(places);
  for (int layer = 0; layer < space.layers; ++layer) Refresh(layer);
}

void UsageRates::Refresh(int layer) {
  const size_t begin = static_cast<size_t>(layer) * space_.experts_per_layer;
  const float scale = 1 / (kPriorTokens + tokens_[static_cast<size_t>(layer)]);
  for (size_t i = begin; i < begin + static_cast<size_t>(space_.experts_per_layer); ++i) {
    rates_[i] = (kPriorTokens * prior_[i] + counts_[i]) * scale;
    evidence_[i] = LogOdds(rates_[i]) - even_;
  }
}

void UsageRates::Add(int layer, int tokens, const int32_t* ids) {
  const float decay = std::exp(-static_cast<float>(tokens) / kRateTokens);
  float* counts = &counts_[static_cast<size_t>(layer) * space_.experts_per_layer];
  for (int e = 0; e < space_.experts_per_layer; ++e) counts[e] *= decay;
  for (int i = 0; i < tokens * experts_per_token_; ++i) counts[ids[i]] += 1;
  float& seen = tokens_[static_cast<size_t>(layer)];
  seen = seen * decay + static_cast<float>(tokens);
  Refresh(layer);
}

TruthTable::TruthTable(int rows, int buckets, float window)
    : buckets_(buckets), decay_(1 - 1 / window) {
  const size_t size = static_cast<size_t>(rows) * buckets;
  trials_.resize(size);
  truths_.resize(size);
  log_odds_.resize(size);
  new_trials_.resize(static_cast<size_t>(buckets));
  new_truths_.resize(static_cast<size_t>(buckets));
}

void TruthTable::Believe(int row, int bucket, float probability, float weight) {
  const size_t i = static_cast<size_t>(row) * buckets_ + bucket;
  trials_[i] = weight;
  truths_[i] = weight * probability;
  log_odds_[i] = LogOdds(probability);
}

void TruthTable::Count(int row, std::span<const uint8_t> buckets, const uint8_t* truths) {
  std::fill(new_trials_.begin(), new_trials_.end(), 0.0f);
  std::fill(new_truths_.begin(), new_truths_.end(), 0.0f);
  for (size_t i = 0; i < buckets.size(); ++i) {
    new_trials_[buckets[i]] += 1;
    new_truths_[buckets[i]] += truths[i];
  }
  const size_t begin = static_cast<size_t>(row) * buckets_;
  for (int b = 0; b < buckets_; ++b) {
    // A bucket that no guess fell into keeps its counts: rare ones are not forgotten for it.
    if (new_trials_[b] == 0) continue;
    const size_t i = begin + b;
    trials_[i] = trials_[i] * decay_ + new_trials_[b];
    truths_[i] = truths_[i] * decay_ + new_truths_[b];
    // A little of both: a bucket seen a few times is not certain.
    log_odds_[i] = LogOdds((truths_[i] + 0.05f) / (trials_[i] + 0.1f));
  }
}

}  // namespace sluice
