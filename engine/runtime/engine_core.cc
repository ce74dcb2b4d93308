#include "engine/runtime/engine_core.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/base/check.h"
#include "engine/runtime/saved_state.h"

namespace sluice {
namespace {

// A snapshot of the tiers costs copies: not for every step.
constexpr std::chrono::milliseconds kTiersAge{200};

constexpr double kRateHalfLifeSeconds = 20;

double Seconds(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

EngineOptions Lower(EngineOptions options, const ModelOptions& model) {
  SLUICE_CHECK(options.max_queue > 0 && options.max_running > 0 && options.max_batch_tokens > 0 &&
               options.prefill_chunk > 0);
  options.max_batch_tokens = std::min(options.max_batch_tokens, model.max_batch_tokens);
  options.max_running =
      std::min({options.max_running, model.max_sequences, options.max_batch_tokens});
  if (model.max_logit_rows > 0 && model.max_logit_rows < options.max_batch_tokens) {
    options.max_running = std::min(options.max_running, model.max_logit_rows - 1);
  }
  return options;
}

// What a token's attention to one earlier token costs, in units of its other arithmetic.
double AttentionCost(const Model& model) {
  const ModelConfig& config = model.config();
  const ModelFootprint footprint = model.footprint();
  const auto macs =
      static_cast<double>(footprint.dense_macs_per_token + footprint.expert_macs_per_token);
  if (macs <= 0) return 0;
  // Attention computes in F32: a quarter of the rate of 8-bit integers (VNNI and dot-product
  // instructions take four 8-bit products where F32 takes one).
  const double rate = model.nested_weights() ? 4 : 1;
  return rate * 2.0 * config.num_layers() * config.heads * config.head_dim / macs;
}

// Share of a layer's routed experts that a token uses; 0 without any.
double ExpertTouch(const ModelConfig& config) {
  const int experts = config.router.num_experts;
  return experts > 0 ? static_cast<double>(config.router.experts_per_token) / experts : 0;
}

// What a second row adds to a step of one, as a share of it: bytes of its experts, most of which
// are others than the first row's, beside those that any step reads.
double RowShare(const Model& model) {
  const ModelFootprint footprint = model.footprint();
  const RouterConfig& router = model.config().router;
  if (router.num_experts == 0 || footprint.expert_bytes == 0) return 0.1;
  const int layers =
      static_cast<int>(std::count_if(model.config().layers.begin(), model.config().layers.end(),
                                     [](const LayerConfig& layer) { return layer.sparse; }));
  const double experts =
      static_cast<double>(footprint.expert_bytes) * layers * router.experts_per_token;
  const double other = 1.0 - static_cast<double>(router.experts_per_token) / router.num_experts;
  const double step = experts + static_cast<double>(footprint.dense_bytes_per_token);
  return std::clamp(other * experts / step, 0.1, 1.0);
}

SchedulerOptions ForScheduler(const EngineOptions& options, const Model& loaded) {
  const ModelOptions& model = loaded.options();
  SchedulerOptions s;
  s.kv_blocks = model.kv_blocks;
  s.block_tokens = kKvBlockTokens;
  s.max_running = options.max_running;
  s.max_batch_tokens = options.max_batch_tokens;
  s.prefill_chunk = options.prefill_chunk;
  s.ageing_seconds = options.ageing_seconds;
  s.max_rows = model.max_logit_rows;
  s.account_weights = options.account_weights;
  s.prefix_cache = options.prefix_cache;
  s.max_decode_stall_seconds = options.max_decode_stall_seconds;
  s.attention_cost = AttentionCost(loaded);
  s.expert_touch = ExpertTouch(loaded.config());
  return s;
}

int ContextLimit(const Model& model) {
  int limit = model.options().max_context;
  if (limit <= 0) limit = model.config().max_positions;
  return static_cast<int>(
      std::min<int64_t>(limit, static_cast<int64_t>(model.options().kv_blocks) * kKvBlockTokens));
}

LogitRows ForModel(RowsWanted rows) {
  switch (rows) {
    case RowsWanted::kNone:
      return LogitRows::kNone;
    case RowsWanted::kLast:
      return LogitRows::kLast;
    case RowsWanted::kAll:
      return LogitRows::kAll;
  }
  return LogitRows::kAll;
}

size_t RowCount(const ScheduledChunk& chunk) {
  return chunk.rows == RowsWanted::kAll ? chunk.tokens.size()
                                        : (chunk.rows == RowsWanted::kLast ? 1 : 0);
}

// The boundary to code of others: past it an exception is a bug that ends the process, so no step
// is ever left half delivered.
void CallOnPrompt(OutputSink* sink, std::vector<TokenOutput> prompt) noexcept {
  sink->OnPrompt(std::move(prompt));
}
void CallOnToken(OutputSink* sink, TokenOutput token) noexcept { sink->OnToken(std::move(token)); }
void CallOnFinish(OutputSink* sink, Finish finish) noexcept { sink->OnFinish(std::move(finish)); }

}  // namespace

EngineCore::Active::Active(GenerationRequest* request, std::vector<int32_t> endings,
                           std::shared_ptr<OutputSink> output, TimePoint submission)
    : sink(std::move(output)),
      sampler(std::move(request->sampling), request->prompt, request->min_tokens, endings),
      ending_ids(std::move(endings)),
      logprobs(request->logprobs),
      prompt_logprobs(request->prompt_logprobs),
      prompt_tokens(static_cast<int>(request->prompt.size())),
      quality(request->quality),
      submitted_at(submission) {
  if (prompt_logprobs >= 0) {
    prompt.resize(request->prompt.size());
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i].token = request->prompt[i];
  }
}

EngineCore::EngineCore(Model* model, const EngineOptions& options, const Clock* clock,
                       StepObserver observer)
    : model_(model),
      clock_(clock),
      observer_(std::move(observer)),
      options_(Lower(options, model->options())),
      vocab_(model->config().vocab),
      max_context_(ContextLimit(*model)),
      scheduler_(ForScheduler(options_, *model)) {
  for (int32_t id : model->config().eos_ids) {
    if (id >= 0 && id < vocab_) eos_ids_.push_back(id);
  }
  if (model->outlook() != nullptr) {
    const ModelFootprint footprint = model->footprint();
    affinity_.emplace(
        AffinityOptions{.order = options_.batch_order,
                        .max_delay_seconds = options_.max_affinity_delay_seconds,
                        .dense_bytes = static_cast<double>(footprint.dense_bytes_per_token),
                        .expert_bytes = static_cast<double>(footprint.expert_bytes)},
        model->outlook(), clock);
    scheduler_.SetBatchFormer(&*affinity_);
  }
  if (options_.speculation != Speculation::kOff) {
    speculator_.emplace(
        SpeculatorOptions{.mode = options_.speculation, .row_share = RowShare(*model)});
    scheduler_.SetDraftSource(&*speculator_);
  }
  RefreshTiers(/*at_once=*/true);
  Publish();
}

Result<> EngineCore::Validate(const GenerationRequest& request) const {
  if (request.prompt.empty()) return InvalidArgument("the prompt must have at least one token");
  if (request.account < 0 ||
      static_cast<size_t>(request.account) >= options_.account_weights.size()) {
    return InvalidArgument("account " + std::to_string(request.account) + " does not exist");
  }
  if (request.max_tokens < 0) return InvalidArgument("max_tokens must be at least 0");
  if (request.min_tokens < 0) return InvalidArgument("min_tokens must be at least 0");
  if (request.min_tokens > request.max_tokens) {
    return InvalidArgument("min_tokens is " + std::to_string(request.min_tokens) +
                           ", more than max_tokens " + std::to_string(request.max_tokens));
  }
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  if (total > max_context_) {
    return InvalidArgument("the prompt has " + std::to_string(request.prompt.size()) +
                           " tokens and max_tokens is " + std::to_string(request.max_tokens) +
                           ": together " + std::to_string(total) +
                           ", but the context holds at most " + std::to_string(max_context_));
  }
  const auto out_of_vocab = [this](int32_t id) { return id < 0 || id >= vocab_; };
  const auto bad = std::find_if(request.prompt.begin(), request.prompt.end(), out_of_vocab);
  if (bad != request.prompt.end()) {
    return InvalidArgument("the prompt's token " + std::to_string(bad - request.prompt.begin()) +
                           " is " + std::to_string(*bad) + ", but ids run from 0 to " +
                           std::to_string(vocab_ - 1));
  }
  for (int32_t id : request.stop_token_ids) {
    if (out_of_vocab(id)) {
      return InvalidArgument("stop_token_ids holds " + std::to_string(id) +
                             ", but ids run from 0 to " + std::to_string(vocab_ - 1));
    }
  }
  if (std::max(request.logprobs, request.prompt_logprobs) > kMaxTopLogprobs) {
    return InvalidArgument("at most " + std::to_string(kMaxTopLogprobs) +
                           " log-probabilities can be asked for per token");
  }
  return ValidateSampling(request.sampling, vocab_);
}

bool EngineCore::Reserve(int64_t prompt_tokens) {
  int taken = queued_.load(std::memory_order_relaxed);
  do {
    if (taken >= options_.max_queue) return false;
  } while (!queued_.compare_exchange_weak(taken, taken + 1, std::memory_order_relaxed));
  const int64_t before = queued_tokens_.fetch_add(prompt_tokens, std::memory_order_relaxed);
  if (options_.max_queue_tokens > 0 && before > 0 &&
      before + prompt_tokens > options_.max_queue_tokens) {
    queued_tokens_.fetch_sub(prompt_tokens, std::memory_order_relaxed);
    queued_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  unfinished_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void EngineCore::GiveBackPlace(const Active& active) {
  queued_.fetch_sub(1, std::memory_order_relaxed);
  queued_tokens_.fetch_sub(active.prompt_tokens, std::memory_order_relaxed);
}

EngineCore::Active& EngineCore::Find(RequestId id) {
  const auto it = active_.find(id);
  SLUICE_CHECK(it != active_.end());
  return it->second;
}

void EngineCore::Add(RequestId id, GenerationRequest request, std::shared_ptr<OutputSink> sink,
                     TimePoint submitted) {
  SequenceSpec spec;
  spec.id = id;
  spec.max_tokens = request.max_tokens;
  spec.ending_ids = request.stop_token_ids;
  if (!request.ignore_eos) {
    spec.ending_ids.insert(spec.ending_ids.end(), eos_ids_.begin(), eos_ids_.end());
  }
  spec.priority = request.priority;
  spec.account = request.account;
  spec.prompt_rows = request.prompt_logprobs >= 0;
  spec.prefix_key = QualityKey(request.quality);
  spec.arrival = submitted;
  const auto [it, added] =
      active_.try_emplace(id, &request, spec.ending_ids, std::move(sink), submitted);
  SLUICE_CHECK(added, "request ids are unique");
  spec.prompt = std::move(request.prompt);
  scheduler_.Add(std::move(spec));
  Publish();
}

void EngineCore::Cancel(RequestId id) {
  if (!scheduler_.Cancel(id)) return;
  Finish(id, FinishReason::kCancelled, -1, clock_->Now());
  Publish();
}

void EngineCore::CancelAll() {
  std::vector<RequestId> ids;
  for (const auto& entry : active_) ids.push_back(entry.first);
  std::sort(ids.begin(), ids.end());
  for (RequestId id : ids) Cancel(id);
}

void EngineCore::RestoreState(const std::function<void()>& progress) {
  if (options_.state_file.empty()) return;
  const Result<int> blocks = ReadSavedState(
      {.file = options_.state_file, .identity = options_.state_identity, .progress = progress},
      &scheduler_, model_);
  Publish();
  if (!options_.state_log) return;
  options_.state_log(blocks ? "took " + std::to_string(*blocks) +
                                  " KV blocks and the heat of experts of the run before from " +
                                  options_.state_file.string()
                            : "begins cold: " + blocks.error().message);
}

void EngineCore::SaveState(const std::function<void()>& progress) const {
  if (options_.state_file.empty()) return;
  const Result<int> blocks = WriteSavedState(
      {.file = options_.state_file, .identity = options_.state_identity, .progress = progress},
      scheduler_, *model_);
  if (!options_.state_log) return;
  options_.state_log(blocks ? "kept " + std::to_string(*blocks) +
                                  " KV blocks and the heat of experts in " +
                                  options_.state_file.string()
                            : "could not keep the state: " + blocks.error().message);
}

bool EngineCore::Step() {
  if (scheduler_.empty()) return false;
  const TimePoint begin = clock_->Now();
  const bool waited = scheduler_.waiting() > 0;
  const Batch& batch = scheduler_.Schedule();
  NoteSchedule(batch, begin);

  std::span<const float> rows = RunModel(batch);
  results_.assign(batch.chunks.size(), ChunkResult{});
  outputs_.clear();
  output_ends_.clear();
  usable_rows_.assign(batch.chunks.size(), std::numeric_limits<int>::max());
  for (const ChunkFailure& failure : model_->failures()) {
    const auto i = static_cast<size_t>(failure.chunk);
    // A guess that cannot be computed is no failure: if it is right, the next step begins with it.
    if (batch.chunks[i].drafts > 0 && failure.token > 0) {
      usable_rows_[i] = failure.token;
      continue;
    }
    results_[i].failed = true;
    Find(batch.chunks[i].id).error = failure.error;
  }
  for (size_t i = 0; i < batch.chunks.size(); ++i) {
    const size_t count = RowCount(batch.chunks[i]) * static_cast<size_t>(vocab_);
    SLUICE_CHECK(count <= rows.size(), "the model returned fewer rows than asked for");
    if (!results_[i].failed) ReadRows(i, batch.chunks[i], rows.first(count), usable_rows_[i]);
    output_ends_.push_back(outputs_.size());
    rows = rows.subspan(count);
  }
  scheduler_.Commit(results_, &ends_);

  const TimePoint end = clock_->Now();
  const double seconds = Seconds(begin, end);
  scheduler_.ObserveStep(seconds);
  const int generated = static_cast<int>(outputs_.size());
  if (affinity_) affinity_->OnStep(generated, batch.prompt_tokens);
  if (speculator_) {
    speculator_->OnStep(batch.tokens, batch.prompt_tokens, generated, seconds);
    stats_.speculation.drafted_tokens += static_cast<uint64_t>(batch.draft_tokens);
    for (const ChunkResult& result : results_) {
      stats_.speculation.accepted_tokens += static_cast<uint64_t>(result.accepted);
    }
  }
  if (waited) {
    const double kept = std::exp2(-seconds / kRateHalfLifeSeconds);
    begun_ = kept * begun_ + static_cast<double>(batch.first_scheduled.size());
    begun_seconds_ = kept * begun_seconds_ + seconds;
  }
  const ForwardStats& forward = model_->last_stats();
  ++stats_.steps;
  stats_.step_seconds += seconds;
  stats_.expert_assignments += static_cast<uint64_t>(forward.expert_assignments);
  stats_.unique_experts += static_cast<uint64_t>(forward.unique_experts);
  CountExperts(batch);
  const int sequences = static_cast<int>(batch.chunks.size());
  // Before anybody can see that a request is done.
  if (observer_) observer_(batch.tokens, sequences, seconds);
  tiers_changed_ = true;
  RefreshTiers(/*at_once=*/false);
  Deliver(batch, end);
  Publish();
  return true;
}

bool EngineCore::Background() {
  const bool more = model_->Background();
  tiers_changed_ |= more;
  // What the last step did is not left untold while nothing runs.
  if (RefreshTiers(/*at_once=*/!more && tiers_changed_)) Publish();
  return more;
}

Result<> EngineCore::SetMemoryBudget(uint64_t bytes) {
  const Result<> set = model_->SetMemoryBudget(bytes);
  if (RefreshTiers(/*at_once=*/true)) Publish();
  return set;
}

bool EngineCore::RefreshTiers(bool at_once) {
  const TimePoint now = clock_->Now();
  if (!at_once && now - tiers_at_ < kTiersAge) return false;
  tiers_at_ = now;
  tiers_changed_ = false;
  std::shared_ptr<const ExpertTierStats> stats = model_->expert_stats();
  const LiveGuard* affinity = affinity_ ? affinity_->guard() : nullptr;
  const LiveGuard* speculation = speculator_ ? speculator_->guard() : nullptr;
  if (speculation != nullptr) {
    stats_.speculation.guard = std::make_shared<const ExpertTierStats::Guard>(speculation->stats());
  }
  if (stats != nullptr && (affinity != nullptr || speculation != nullptr)) {
    auto with_ours = std::make_shared<ExpertTierStats>(*stats);
    for (const LiveGuard* guard : {affinity, speculation}) {
      if (guard != nullptr) with_ours->guards.push_back(guard->stats());
    }
    stats = std::move(with_ours);
  }
  stats_.expert_tiers = std::move(stats);
  const ExpertTierStats* tiers = stats_.expert_tiers.get();
  scheduler_.SetOffloaded(tiers != nullptr && tiers->budget_bytes < tiers->full_budget_bytes);
  return tiers != nullptr || speculation != nullptr;
}

void EngineCore::CountExperts(const Batch& batch) {
  const std::span<const ExpertCounts> experts = model_->chunk_experts();
  std::span<const ExpertCounts> by_token = model_->token_experts();
  if (experts.empty()) return;
  size_t output = 0;
  for (size_t i = 0; i < batch.chunks.size(); ++i) {
    const ScheduledChunk& chunk = batch.chunks[i];
    stats_.degraded_assignments += static_cast<uint64_t>(experts[i].degraded);
    stats_.skipped_assignments += static_cast<uint64_t>(experts[i].skipped);
    // Wrong guesses were never part of the sequence.
    const auto guesses = static_cast<size_t>(chunk.drafts);
    const size_t real = chunk.tokens.size() - guesses + static_cast<size_t>(results_[i].accepted);
    ExpertCounts* sum = &Find(chunk.id).experts;
    for (size_t t = 0; t < real; ++t) {
      *sum += by_token[t];
      if (t + guesses >= chunk.tokens.size() - 1 && output < output_ends_[i]) {
        outputs_[output++].experts = *sum;
      }
    }
    SLUICE_CHECK(output == output_ends_[i]);
    by_token = by_token.subspan(chunk.tokens.size());
  }
}

void EngineCore::NoteSchedule(const Batch& batch, TimePoint now) {
  for (SequenceId id : batch.first_scheduled) {
    Active& active = Find(id);
    active.scheduled = true;
    active.scheduled_at = now;
    GiveBackPlace(active);
  }
  for (SequenceId id : batch.preempted) {
    ++Find(id).preemptions;
    ++stats_.preemptions;
  }
  if (!batch.first_scheduled.empty() || !batch.preempted.empty()) Publish();
}

std::span<const float> EngineCore::RunModel(const Batch& batch) {
  chunks_.clear();
  for (const ScheduledChunk& chunk : batch.chunks) {
    chunks_.push_back({chunk.tokens, chunk.position, chunk.kv_blocks, ForModel(chunk.rows),
                       static_cast<int64_t>(chunk.id), Find(chunk.id).quality});
  }
  return model_->Forward(chunks_);
}

void EngineCore::ReadRows(size_t i, const ScheduledChunk& chunk, std::span<const float> rows,
                          int usable) {
  if (chunk.rows == RowsWanted::kNone) return;
  Active& active = Find(chunk.id);
  if (!ReadPromptRows(chunk, rows, &active)) {
    results_[i].failed = true;
    return;
  }
  if (!chunk.samples) return;
  const auto vocab = static_cast<size_t>(vocab_);
  const size_t guesses = static_cast<size_t>(chunk.drafts);
  const auto tokens = chunk.tokens.last(guesses);
  rows = rows.last((guesses + 1) * vocab);
  for (size_t r = 0; r <= guesses && r < static_cast<size_t>(usable); ++r) {
    if (!ReadSample(rows.subspan(r * vocab, vocab), chunk.sample_index + static_cast<int>(r),
                    &active)) {
      // The row of a guess that was right is computed again, and fails, as the newest token's.
      results_[i].failed = r == 0;
      if (r > 0) active.error = {};
      break;
    }
    const int32_t token = outputs_.back().token;
    results_[i].token = token;
    results_[i].accepted = static_cast<int>(r);
    const auto& endings = active.ending_ids;
    if (std::find(endings.begin(), endings.end(), token) != endings.end()) break;
    if (r < guesses && tokens[r] != token) break;
  }
}

bool EngineCore::ReadPromptRows(const ScheduledChunk& chunk, std::span<const float> rows,
                                Active* active) {
  for (int r = chunk.prompt_rows_begin; r < chunk.prompt_rows_end; ++r) {
    TokenOutput& output = active->prompt[static_cast<size_t>(chunk.position + r + 1)];
    const auto row = rows.subspan(static_cast<size_t>(r) * static_cast<size_t>(vocab_),
                                  static_cast<size_t>(vocab_));
    if (!ComputeLogprobs(row, output.token, active->prompt_logprobs, &logprob_scratch_,
                         &output.logprob, &output.top)) {
      active->error = Internal(
          "the model produced logits that are not finite numbers at prompt "
          "token " +
          std::to_string(chunk.position + r));
      return false;
    }
  }
  return true;
}

bool EngineCore::ReadSample(std::span<const float> row, int index, Active* active) {
  const Result<int32_t> token = active->sampler.Sample(row, index, &sampler_scratch_);
  if (!token) {
    active->error = token.error();
    return false;
  }
  TokenOutput& output = outputs_.emplace_back(TokenOutput{*token, 0, {}, {}});
  if (active->logprobs >= 0) {
    const bool finite = ComputeLogprobs(row, *token, active->logprobs, &logprob_scratch_,
                                        &output.logprob, &output.top);
    SLUICE_CHECK(finite, "the sampler refuses such rows");
  }
  active->sampler.Accept(*token);
  return true;
}

void EngineCore::Deliver(const Batch& batch, TimePoint now) {
  size_t next_end = 0;
  size_t next_output = 0;
  for (size_t i = 0; i < batch.chunks.size(); ++i) {
    const ScheduledChunk& chunk = batch.chunks[i];
    Active& active = Find(chunk.id);
    const bool failed = results_[i].failed;
    active.cached_tokens = chunk.cached_tokens;
    const int computed = chunk.position + static_cast<int>(chunk.tokens.size());
    if (!failed && !active.prompt_done && computed >= active.prompt_tokens) {
      active.prompt_done = true;
      stats_.prompt_tokens += static_cast<uint64_t>(active.prompt_tokens);
      if (active.prompt_logprobs >= 0) {
        CallOnPrompt(active.sink.get(), std::exchange(active.prompt, {}));
      }
    }
    for (; next_output < output_ends_[i]; ++next_output) {
      ++stats_.generated_tokens;
      if (active.completion_tokens++ == 0) {
        active.first_token_at = now;
        stats_.prefill_seconds += Seconds(active.scheduled_at, now);
      } else {
        stats_.decode_seconds += Seconds(active.last_token_at, now);
      }
      active.last_token_at = now;
      CallOnToken(active.sink.get(), std::move(outputs_[next_output]));
    }
    if (next_end < ends_.size() && ends_[next_end].id == chunk.id) {
      const EndReason reason = ends_[next_end++].reason;
      const int32_t stop_token = reason == EndReason::kStop ? results_[i].token : -1;
      Finish(chunk.id,
             reason == EndReason::kStop     ? FinishReason::kStop
             : reason == EndReason::kLength ? FinishReason::kLength
                                            : FinishReason::kError,
             stop_token, now);
    }
  }
  SLUICE_CHECK(next_end == ends_.size());
}

void EngineCore::Finish(RequestId id, FinishReason reason, int32_t stop_token, TimePoint now) {
  if (affinity_) affinity_->OnEnd(id);
  if (speculator_) speculator_->OnEnd(id);
  auto node = active_.extract(id);
  SLUICE_CHECK(!node.empty());
  Active& active = node.mapped();
  sluice::Finish finish;
  finish.reason = reason;
  finish.stop_token = stop_token;
  finish.error = std::move(active.error);
  Usage& usage = finish.usage;
  usage.prompt_tokens = active.prompt_tokens;
  usage.completion_tokens = active.completion_tokens;
  usage.cached_tokens = active.cached_tokens;
  usage.preemptions = active.preemptions;
  usage.experts = active.experts;
  usage.queue_seconds = Seconds(active.submitted_at, active.scheduled ? active.scheduled_at : now);
  if (active.completion_tokens > 0) {
    usage.prefill_seconds = Seconds(active.scheduled_at, active.first_token_at);
    usage.decode_seconds = Seconds(active.first_token_at, active.last_token_at);
  } else if (active.scheduled) {
    usage.prefill_seconds = Seconds(active.scheduled_at, now);
    stats_.prefill_seconds += usage.prefill_seconds;
  }
  switch (reason) {
    case FinishReason::kStop:
      ++stats_.finished_stop;
      break;
    case FinishReason::kLength:
      ++stats_.finished_length;
      break;
    case FinishReason::kCancelled:
      ++stats_.finished_cancelled;
      break;
    case FinishReason::kError:
      ++stats_.finished_error;
      break;
  }
  if (!active.scheduled) GiveBackPlace(active);
  Publish();
  model_->EndStream(static_cast<int64_t>(id));
  CallOnFinish(active.sink.get(), std::move(finish));
  active.sink.reset();
  unfinished_.fetch_sub(1, std::memory_order_release);
}

void EngineCore::Publish() {
  stats_.begun_per_second = begun_seconds_ > 0 ? begun_ / begun_seconds_ : 0;
  stats_.running = scheduler_.running();
  stats_.waiting = scheduler_.waiting();
  stats_.kv_blocks_total = scheduler_.pool().total();
  stats_.kv_blocks_used = scheduler_.pool().used();
  stats_.kv_blocks_cached = scheduler_.pool().idle_kept();
  const PrefixCacheStats& prefix = scheduler_.prefix_stats();
  stats_.prefix_queried_tokens = prefix.queried_tokens;
  stats_.prefix_hit_tokens = prefix.hit_tokens;
  stats_.prefix_evicted_blocks = prefix.evicted_blocks;
  stats_.decode_stalls = scheduler_.stalls();
  if (affinity_) stats_.affinity = affinity_->stats();
  std::lock_guard<std::mutex> lock(published_mutex_);
  published_ = stats_;
}

EngineStats EngineCore::Stats() const {
  EngineStats stats;
  {
    std::lock_guard<std::mutex> lock(published_mutex_);
    stats = published_;
  }
  stats.queued_requests = queued_.load(std::memory_order_relaxed);
  stats.queued_tokens = queued_tokens_.load(std::memory_order_relaxed);
  return stats;
}

int RetryAfterSeconds(const EngineStats& stats) {
  constexpr double kLeast = 1, kMost = 600;
  if (stats.begun_per_second <= 0) return static_cast<int>(kLeast);
  const double seconds = stats.queued_requests / stats.begun_per_second;
  return static_cast<int>(std::ceil(std::clamp(seconds, kLeast, kMost)));
}

std::string EngineCore::CheckInvariants() const {
  if (std::string wrong = scheduler_.CheckInvariants(); !wrong.empty()) return wrong;
  const auto sequences = static_cast<size_t>(scheduler_.running() + scheduler_.waiting());
  if (active_.size() != sequences) return "requests and sequences differ in number";
  for (const auto& [id, active] : active_) {
    const Sequence* sequence = scheduler_.Find(id);
    if (sequence == nullptr) return "request " + std::to_string(id) + " has no sequence";
    if (sequence->generated() != active.completion_tokens) return "a token was lost on its way";
    if (sequence->preemptions != active.preemptions) return "a preemption was not counted";
    if ((sequence->state == SequenceState::kWaiting) == active.scheduled) {
      return "request " + std::to_string(id) + " disagrees about having been scheduled";
    }
  }
  return {};
}

}  // namespace sluice
