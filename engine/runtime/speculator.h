// Guesses continuations of sequences from themselves (ngram_index.h), and decides how many guesses
// a step computes.
//
// With experts that must be read from memory or from disk, a guess is not free: its row touches
// experts of its own. So a row is added to a step only where it pays,
//
//   (tokens it is expected to bring) / (seconds it adds) > (tokens of the step) / (its seconds)
//
// taking the likeliest rows of all sequences first.
//   - Expected: the chance that the guess and all before it are right. Measured by length of the
//     match, for all sequences and, once it has a record, for the sequence itself; records fade.
//     Guesses are kept and scored against what was generated whether or not they were computed, so
//     a sequence that gets no drafts for want of success is found out when it begins to repeat.
//   - Seconds: a straight line through the recent steps without prompts, seconds over rows, waiting
//     for experts from disk included. An added row is taken to cost its experts'
//     bytes at least (SpeculatorOptions::row_share).
//
// Settings (--speculation)
//   off    no drafts
//   ngram  drafts where a guess is at least as likely as kNgramChance, whatever they cost
//   auto   as above; and the whole is compared live with no drafts (live_guard.h), over stretches
//          of those steps in which a draft is wanted
//
// Sequences that accept less than exact weights get no drafts: what they compute may depend on
// their company (quality.h).
//
// Threads: the engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/experts/live_guard.h"
#include "engine/runtime/ngram_index.h"
#include "engine/runtime/speculation.h"
#include "engine/scheduler/draft_source.h"

namespace sluice {

struct SpeculatorOptions {
  Speculation mode = Speculation::kAuto;  // not kOff
  // What a second row adds to a step of one row, before it was measured: a share of that step.
  double row_share = 0.5;
};

class Speculator final : public DraftSource {
 public:
  static constexpr int kMostDraft = 15;  // tokens
  static constexpr double kNgramChance = 1.0 / 3;

  explicit Speculator(const SpeculatorOptions& options);

  void Draft(std::span<const Sequence* const> decoders, std::span<const int> limits, int most,
             std::span<std::span<const int32_t>> drafts) override;
  // After every step: the rows that it computed, drafts included, of these the tokens of prompts,
  // and the tokens that it generated.
  void OnStep(int rows, int prompt_tokens, int generated, double seconds);
  void OnEnd(SequenceId id) { streams_.erase(id); }

  const LiveGuard* guard() const { return guard_ ? &*guard_ : nullptr; }
  // What the rule above goes by, for tests: seconds of a step of so many rows.
  double StepSeconds(double rows) const;

 private:
  static constexpr int kLengths = 6;  // classes of matches by length

  // Guesses that were right, and those that were made after guesses that were right; both fade.
  struct Record {
    double right = 0;
    double made = 0;
  };
  using Records = std::array<Record, kLengths>;

  struct Stream {
    NgramIndex index;
    Records records;
    std::vector<int32_t> guess;
    size_t guessed_at = 0;  // size of the sequence then
    int match = 0;          // length
  };

  // How much a draft may grow in the step being made.
  struct Candidate {
    size_t decoder = 0;
    Stream* stream = nullptr;
    int limit = 0;
    int taken = 0;
    double chance = 1;  // that all taken are right
    double next = 0;    // that the next one is, too
  };

  static int LengthClass(int match);
  double Chance(const Stream& stream, int match) const;
  void Score(std::span<const int32_t> tokens, Stream* stream);
  void Guess(std::span<const int32_t> tokens, Stream* stream);
  // Whether a row of this chance pays in a step of so many rows that brings so many tokens.
  bool Pays(double chance, double tokens, double rows) const;
  double RowSeconds() const;

  const SpeculatorOptions options_;
  std::optional<LiveGuard> guard_;
  std::unordered_map<SequenceId, Stream> streams_;
  Records records_;  // of all streams
  std::vector<Candidate> candidates_;

  // Sums over the recent steps, fading: 1, rows, seconds, rows^2, rows * seconds.
  double weight_ = 0, rows_ = 0, seconds_ = 0, rows_rows_ = 0, rows_seconds_ = 0;

  bool wanted_ = false;  // a draft, in the step that runs
  int decoders_ = 0;     // in that step
  // A stretch of steps that the guard sees as one.
  int stretch_kind_ = 0;
  int stretch_steps_ = 0;
  double stretch_seconds_ = 0;
  int stretch_tokens_ = 0;
};

}  // namespace sluice
