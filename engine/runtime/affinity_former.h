// Batches by expert affinity: sequences that use the same experts decode together, the others wait
// a little, so that the experts of those who run stay in memory.
//
// With experts on disk, more sequences in a step are not always more tokens per second: each brings
// experts of its own, and together they use more than memory holds. Then the order is: groups of
// sequences whose experts fit in memory together run in turns, each for a slice of time in which
// what was read for it is used many times. How large groups are follows from what a step costs,
//
//   seconds = (dense bytes + bytes of touched experts) * s_compute + missed experts * s_miss
//
// with both prices learned from the steps before, the experts that a group will touch and miss from
// its members' last tokens (ExpertOutlook::Uses), and the cost of reading a group's experts when
// its slice begins. The group of all competes like any other: where everything fits it wins.
//
// Nobody waits longer than max_delay for the company of others, plus one step: who would is part of
// the next one.
//
// Orders (--batch-order):
//   fcfs           all who can decode do
//   longest-queue  Read-ME's rule (Cai et al. 2024, section 3.3) for whole steps: of all experts
//   the
//                  one that most sequences are likely to use names the batch: those who use it
//   affinity       as above
//   auto           affinity while it pays: compared live with fcfs (live_guard.h)
//
// Threads: the engine thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/base/clock.h"
#include "engine/experts/expert_outlook.h"
#include "engine/experts/live_guard.h"
#include "engine/runtime/batch_order.h"
#include "engine/scheduler/batch_former.h"

namespace sluice {

struct AffinityOptions {
  BatchOrder order = BatchOrder::kAuto;
  double max_delay_seconds = 2;  // > 0
  double dense_bytes = 0;        // weights that every step reads
  double expert_bytes = 0;       // of one expert, on average
};

class AffinityFormer final : public BatchFormer {
 public:
  // `outlook` and `clock` outlive this.
  AffinityFormer(const AffinityOptions& options, const ExpertOutlook* outlook, const Clock* clock);

  void Choose(std::span<const SequenceId> decoders, std::span<uint8_t> chosen) override;
  // After every step: the tokens that it generated, and those of prompts that it computed.
  void OnStep(int tokens, int prompt_tokens);
  void OnEnd(SequenceId id) { served_.erase(id); }

  AffinityStats stats() const { return stats_; }
  const LiveGuard* guard() const { return guard_ ? &*guard_ : nullptr; }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  // A set of sequences under consideration.
  struct Group {
    std::vector<size_t> members;  // of the decoders
    std::vector<float> unused;    // [place] probability that no member uses it
    double rate = 0;              // tokens per second over a slice
    double slice_seconds = 0;
  };

  void AddTo(Group* group, size_t decoder, std::span<const float> uses) const;
  // Distinct experts that the decoder would add.
  double Added(const Group& group, std::span<const float> uses) const;
  void Rate(Group* group, size_t decoders);
  std::span<const float> UsesOf(SequenceId id) const;
  double Waited(SequenceId id) const;
  // Who must run now; the longest waiting of all is returned.
  size_t MarkOverdue(std::span<const SequenceId> decoders, std::span<uint8_t> chosen) const;
  void BeginSlice(std::span<const SequenceId> decoders, std::span<uint8_t> chosen);
  void ChooseLongestQueue(std::span<const SequenceId> decoders, std::span<uint8_t> chosen);

  const AffinityOptions options_;
  const ExpertOutlook* const outlook_;
  const Clock* const clock_;
  std::optional<LiveGuard> guard_;
  AffinityStats stats_;

  TimePoint now_;
  std::unordered_map<SequenceId, TimePoint> served_;  // when it last decoded, or was first seen
  std::vector<SequenceId> slice_;                     // who runs in it
  TimePoint slice_end_;
  bool in_slice_ = false;

  // Learned prices.
  double seconds_per_byte_ = 0;
  double seconds_per_miss_ = 0;
  double step_seconds_ = 0;  // the last one's

  // A stretch of steps that the guard sees as one.
  double stretch_seconds_ = 0;
  int stretch_tokens_ = 0;

  bool chose_ = false;         // the step that runs was chosen by this
  std::vector<float> even_;    // of streams that are not known
  std::vector<float> likely_;  // scratch of Rate
};

}  // namespace sluice
