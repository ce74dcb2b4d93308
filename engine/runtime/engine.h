// The engine as the server sees it (SEAM): submit, cancel, watch. One engine thread owns the
// scheduler, the model and all KV metadata; everything here is safe from any thread.
//
// A request's life: Submit validates and queues it (bounded) -> the engine thread admits it ->
// OutputSink receives tokens -> OnFinish exactly once. Cancel at any time also ends in
// OnFinish(kCancelled).
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/tier_stats.h"
#include "engine/model/model.h"
#include "engine/runtime/batch_order.h"
#include "engine/runtime/speculation.h"
#include "engine/sampling/logprobs.h"  // TokenLogprob
#include "engine/sampling/params.h"

namespace sluice {

using RequestId = uint64_t;

// Bounds what one request may keep: alternatives reported per token.
inline constexpr int kMaxTopLogprobs = 256;

struct GenerationRequest {
  std::string name;             // for logs: the HTTP request id
  std::vector<int32_t> prompt;  // at least one token, ids in [0, vocab)
  int max_tokens = 16;          // 0: compute (and with prompt_logprobs score) the prompt only
  int min_tokens = 0;           // end-of-sequence and stop tokens are masked before this many
  SamplingParams sampling;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int logprobs = -1;             // -1: none; n >= 0: the chosen token's and the top n, at most
                                 // kMaxTopLogprobs
  int prompt_logprobs = -1;      // the same for prompt tokens
  int priority = 0;              // higher runs first among its account's; equal: first come
  int account = 0;               // whose share it uses: an index of EngineOptions::account_weights
  QualitySettings quality = {};  // what may be given up for speed; default: nothing
};

// One generated (or prompt) token. Log-probabilities are the model's own: log-softmax of the raw
// logits, before penalties, bias, temperature and truncation.
struct TokenOutput {
  int32_t token = 0;
  float logprob = 0;              // 0 when not asked for
  std::vector<TokenLogprob> top;  // descending; empty when not asked for
  ExpertCounts experts = {};  // of generated tokens: of the sequence so far, its prompt included
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

struct Usage {
  int prompt_tokens = 0;
  int completion_tokens = 0;   // generated, the stop token included
  int cached_tokens = 0;       // of the prompt, not computed: others had (prefix cache)
  double queue_seconds = 0;    // submission to first scheduling
  double prefill_seconds = 0;  // first scheduling to first token
  double decode_seconds = 0;   // first token to last
  int preemptions = 0;
  ExpertCounts experts = {};  // of all computed tokens, again after a preemption
};

struct Finish {
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token =
      -1;  // the eos or stop token that ended it (also delivered through OnToken), or -1
  Usage usage;
  Error error;  // meaningful with kError
};

// Called on the engine thread, in order, never under a lock. Must not block, must not throw (the
// calls are noexcept: an exception ends the process) and must not call the Engine except Cancel.
// A step may deliver several tokens of a request. All engine state is settled before a step's sinks
// are called. After Cancel, tokens of a step that had already begun may still arrive before
// OnFinish. The engine drops its reference after OnFinish.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  // Once, before the first OnToken, when prompt_logprobs was asked for: one entry per prompt token;
  // the first has no log-probability (logprob 0, top empty).
  virtual void OnPrompt(std::vector<TokenOutput> /*prompt*/) {}
  virtual void OnToken(TokenOutput token) = 0;
  virtual void OnFinish(Finish finish) = 0;
};

struct EngineOptions {
  int max_queue = 256;           // requests waiting to be admitted
  int64_t max_queue_tokens = 0;  // of their prompts, together; 0: any number
  int max_running = 64;          // sequences in the running set
  int max_batch_tokens = 512;    // token budget of one step
  int prefill_chunk = 512;       // most prefill tokens of one sequence in one step
  double ageing_seconds = 10;    // waiting this long is worth one level of priority
  // Accounts that have work share the engine's tokens in these proportions (scheduler.h).
  std::vector<double> account_weights = {1};
  // Requests that begin alike compute their beginning once (scheduler.h); changes no token.
  bool prefix_cache = true;
  // Who decodes together where experts come from disk, and how long one may wait for the company of
  // others (affinity_former.h); changes no token.
  BatchOrder batch_order = BatchOrder::kFcfs;
  double max_affinity_delay_seconds = 2;
  // Guesses of tokens to come that a step checks together (speculator.h); changes no token. Needs
  // Model rows to spare: ModelOptions::max_logit_rows beyond max_running.
  Speculation speculation = Speculation::kOff;
  // A file that keeps prefix cache and expert heat over a restart (saved_state.h): read by
  // Engine::Start, written when the engine stops. Empty: none. `state_identity` names all that
  // decides KV values; a file with another one is ignored. `state_log` is told what became of it,
  // in a sentence; may be empty.
  std::filesystem::path state_file;
  std::string state_identity;
  std::function<void(const std::string&)> state_log;
  // What prompts may add to a step in which others decode (scheduler.h); 0: anything.
  double max_decode_stall_seconds = 0.25;
};

// A consistent snapshot for /metrics, /props and tests. Counters only grow.
struct EngineStats {
  int running = 0;
  int waiting = 0;
  int queued_requests = 0;    // that never ran, those not yet seen by the engine thread included
  int64_t queued_tokens = 0;  // of their prompts
  // Requests that began per second, of late and while some had to wait; 0: none had to.
  double begun_per_second = 0;
  int kv_blocks_total = 0;
  int kv_blocks_used = 0;    // by running sequences
  int kv_blocks_cached = 0;  // by nobody, kept for sequences that begin alike until they are needed
  uint64_t prefix_queried_tokens = 0;  // PrefixCacheStats
  uint64_t prefix_hit_tokens = 0;
  uint64_t prefix_evicted_blocks = 0;
  uint64_t steps = 0;
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t preemptions = 0;
  uint64_t decode_stalls = 0;  // Scheduler::stalls
  uint64_t finished_stop = 0, finished_length = 0, finished_cancelled = 0, finished_error = 0;
  uint64_t expert_assignments = 0;
  uint64_t unique_experts = 0;        // summed over steps
  uint64_t degraded_assignments = 0;  // of expert_assignments: at less than the full precision
  uint64_t skipped_assignments = 0;   // of expert_assignments: not computed
  AffinityStats affinity;
  SpeculationStats speculation;
  double step_seconds = 0;     // summed
  double prefill_seconds = 0;  // summed over requests
  double decode_seconds = 0;
  // Null: every expert is resident. A snapshot, some hundreds of milliseconds old at most.
  std::shared_ptr<const ExpertTierStats> expert_tiers;
};

// Seconds until those that wait now will have begun, at the rate of late: what Retry-After says. At
// least 1, at most 600.
int RetryAfterSeconds(const EngineStats& stats);

// Called once per step on the engine thread with that step's token count, for histograms. May be
// empty.
using StepObserver = std::function<void(int batch_tokens, int sequences, double seconds)>;

class Engine {
 public:
  // Takes the model and starts the engine thread. max_running and max_batch_tokens are lowered to
  // what the model was loaded for (and max_running to max_batch_tokens). REQUIRES: options > 0.
  static std::unique_ptr<Engine> Start(std::unique_ptr<Model> model, const EngineOptions& options,
                                       StepObserver observer = {});
  // Stops at once: everything unfinished ends in OnFinish(kCancelled).
  virtual ~Engine() = default;

  // kResourceExhausted when the queue is full, kUnavailable when draining, kInvalidArgument when
  // the request can never run (context too long, bad ids: the message gives the counts).
  virtual Result<RequestId> Submit(GenerationRequest request, std::shared_ptr<OutputSink> sink) = 0;
  // No effect on a finished or unknown id.
  virtual void Cancel(RequestId id) = 0;

  // Refuses new work from now on. Idle() turns true when the last sequence has finished.
  virtual void BeginDrain() = 0;
  virtual bool Idle() const = 0;

  // Changes the budget of the whole process's resident memory (Model::SetMemoryBudget) before the
  // next step; requests run on. `done`, on the engine thread, gets the outcome: kInvalidArgument
  // with the least budget, kUnsupported when every expert is resident for good, kCancelled when the
  // engine stops first. It must not block and must not call the Engine except Stats.
  virtual void SetMemoryBudget(uint64_t bytes, std::function<void(Result<>)> done) = 0;

  // The budget now is in expert_tiers.
  virtual EngineStats Stats() const = 0;
  // Monotonic time of the engine thread's last completed loop turn: the watchdog's pulse. Idle
  // waits count as turns (the thread wakes at least once a second).
  virtual std::chrono::steady_clock::time_point LastPulse() const = 0;

  virtual const Model& model() const = 0;
  // Most tokens (prompt + generated) that one request may use.
  virtual int max_context() const = 0;
};

}  // namespace sluice
