// The engine without its thread: one Step() schedules a batch, runs the model, samples, commits and
// calls the sinks. Tests drive it by hand with a fake model and a manual clock; Engine drives it
// from the engine thread.
//
// Threads: one owner thread, except for the functions marked "any thread".
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/clock.h"
#include "engine/runtime/affinity_former.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/speculator.h"
#include "engine/sampling/logprobs.h"
#include "engine/sampling/sampler.h"
#include "engine/scheduler/scheduler.h"

namespace sluice {

class EngineCore {
 public:
  // `model` and `clock` outlive this. Options are lowered as Engine::Start says.
  EngineCore(Model* model, const EngineOptions& options, const Clock* clock,
             StepObserver observer = {});
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  // Any thread. kInvalidArgument, with the counts or the field, when the request can never run.
  Result<> Validate(const GenerationRequest& request) const;
  // Any thread. Takes a place among those that wait to be scheduled for the first time, for a
  // prompt of so many tokens; false when max_queue places or (unless nobody waits) max_queue_tokens
  // are taken. The place is given back by the first scheduling or the end.
  [[nodiscard]] bool Reserve(int64_t prompt_tokens);
  // Any thread. No place is reserved and no request unfinished.
  bool Idle() const { return unfinished_.load(std::memory_order_acquire) == 0; }
  // Any thread.
  int max_context() const { return max_context_; }
  EngineStats Stats() const;

  // REQUIRES: Validate passed, Reserve gave a place for this prompt, the id is new.
  void Add(RequestId id, GenerationRequest request, std::shared_ptr<OutputSink> sink,
           TimePoint submitted);
  // Frees the request's KvBlocks and ends it in OnFinish(kCancelled); nothing for an unknown id.
  void Cancel(RequestId id);
  void CancelAll();
  // EngineOptions::state_file: before the first Add, and when nothing is unfinished.
  // `progress`, which may be empty, is called again and again on the way.
  void RestoreState(const std::function<void()>& progress = {});
  void SaveState(const std::function<void()>& progress = {}) const;
  // Runs one step; false when there was nothing to run.
  bool Step();
  // When Step had nothing to run: the model's work between steps (Model::Background).
  bool Background();
  // Model::SetMemoryBudget; Stats tells of its effect at once.
  Result<> SetMemoryBudget(uint64_t bytes);

  // For tests: see Scheduler::CheckInvariants.
  std::string CheckInvariants() const;
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  // What the runtime knows of a request beside its Sequence.
  struct Active {
    Active(GenerationRequest* request, std::vector<int32_t> ending_ids,
           std::shared_ptr<OutputSink> output, TimePoint submission);

    std::shared_ptr<OutputSink> sink;
    Sampler sampler;
    std::vector<int32_t> ending_ids;
    int logprobs;
    int prompt_logprobs;
    std::vector<TokenOutput> prompt;  // by position; filled chunk by chunk, then handed to the sink
    bool prompt_done = false;         // the prompt's last token was computed once
    bool scheduled = false;
    int prompt_tokens;
    int completion_tokens = 0;
    int cached_tokens = 0;
    int preemptions = 0;
    QualitySettings quality;
    ExpertCounts experts;
    TimePoint submitted_at, scheduled_at, first_token_at, last_token_at;
    Error error;
  };

  Active& Find(RequestId id);
  void GiveBackPlace(const Active& active);
  void NoteSchedule(const Batch& batch, TimePoint now);
  std::span<const float> RunModel(const Batch& batch);
  // Fills results_[i] and appends to outputs_ from the chunk's rows, of which those from `usable`
  // on were not computed.
  void ReadRows(size_t i, const ScheduledChunk& chunk, std::span<const float> rows, int usable);
  bool ReadPromptRows(const ScheduledChunk& chunk, std::span<const float> rows, Active* active);
  // Generated token number `index` from its row; false when there can be none.
  bool ReadSample(std::span<const float> row, int index, Active* active);
  // Adds the experts of the chunk's tokens to its request and its outputs.
  void CountExperts(const Batch& batch);
  void Deliver(const Batch& batch, TimePoint now);
  void Finish(RequestId id, FinishReason reason, int32_t stop_token, TimePoint now);
  void Publish();
  // Takes a snapshot of the model's tiers when the last one is old, or `at_once`; whether it did.
  // The caller publishes it.
  bool RefreshTiers(bool at_once);

  Model* const model_;
  const Clock* const clock_;
  const StepObserver observer_;
  const EngineOptions options_;
  const int vocab_;
  const int max_context_;
  std::vector<int32_t> eos_ids_;

  std::optional<AffinityFormer> affinity_;  // where experts may come from disk
  std::optional<Speculator> speculator_;
  Scheduler scheduler_;
  std::unordered_map<RequestId, Active> active_;
  EngineStats stats_;
  TimePoint tiers_at_;          // of stats_.expert_tiers
  bool tiers_changed_ = false;  // since then, by steps or work between them

  // Reused by every step.
  std::vector<SequenceChunk> chunks_;
  std::vector<ChunkResult> results_;
  std::vector<int> usable_rows_;      // by chunk
  std::vector<TokenOutput> outputs_;  // chunk by chunk
  std::vector<size_t> output_ends_;   // by chunk: behind its last in outputs_
  std::vector<SequenceEnd> ends_;
  SamplerScratch sampler_scratch_;
  LogprobScratch logprob_scratch_;

  // What begun_per_second is made of: sums over the steps that began while somebody waited, halved
  // about every twenty seconds.
  double begun_ = 0, begun_seconds_ = 0;

  std::atomic<int> queued_{0};  // places of Reserve
  std::atomic<int64_t> queued_tokens_{0};
  std::atomic<int> unfinished_{0};  // reserved and OnFinish not yet returned

  mutable std::mutex published_mutex_;
  EngineStats published_;  // GUARDED_BY(published_mutex_)
};

}  // namespace sluice
