#include "engine/runtime/benchmark.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/disk_speed.h"
#include "engine/base/process_memory.h"
#include "engine/formats/pack.h"
#include "engine/runtime/collector.h"
#include "engine/runtime/cost_model.h"
#include "engine/runtime/engine.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

double Median(std::vector<double> values) {
  SLUICE_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Of all layers, since the model was loaded.
struct TierTotals {
  double hits = 0, misses = 0, bytes = 0, stall_seconds = 0;
  ExpertCounts experts;

  static TierTotals Of(const Model& model) {
    TierTotals totals;
    const std::shared_ptr<const ExpertTierStats> stats = model.expert_stats();
    if (stats == nullptr) return totals;
    for (const ExpertTierStats::Layer& layer : stats->layers) {
      totals.hits += static_cast<double>(layer.hits);
      totals.misses += static_cast<double>(layer.misses);
      totals.bytes += static_cast<double>(layer.bytes_read);
      totals.stall_seconds += layer.stall_seconds;
    }
    return totals;
  }
  void Add(const TierTotals& from, const TierTotals& to) {
    hits += to.hits - from.hits;
    misses += to.misses - from.misses;
    bytes += to.bytes - from.bytes;
    stall_seconds += to.stall_seconds - from.stall_seconds;
    experts.assignments += to.experts.assignments - from.experts.assignments;
    experts.degraded += to.experts.degraded - from.experts.degraded;
    experts.skipped += to.experts.skipped - from.experts.skipped;
  }
};

struct StepRecord {
  int tokens = 0;
  int sequences = 0;
  int64_t unique_experts = 0;
  Clock::time_point end;
  TierTotals tiers;  // since the start
};

// Collects one record per step on the engine thread; read only while no request is in flight.
class StepLog {
 public:
  void Attach(const Model* model) { model_ = model; }
  void Add(int tokens, int sequences) {
    before_ = records_.empty() ? last_ : before_;
    for (const ExpertCounts& counts : model_->chunk_experts()) experts_ += counts;
    last_ = TierTotals::Of(*model_);
    last_.experts = experts_;
    records_.push_back(
        {tokens, sequences, model_->last_stats().unique_experts, Clock::now(), last_});
  }
  void Clear() { records_.clear(); }
  const std::vector<StepRecord>& records() const { return records_; }
  // As it was when the first record's step began.
  const TierTotals& before() const { return before_; }

 private:
  const Model* model_ = nullptr;
  std::vector<StepRecord> records_;
  TierTotals last_, before_;
  ExpertCounts experts_;
};

class Runner {
 public:
  Runner(const BenchmarkOptions& options, Engine& engine, StepLog& log, const Roofline& roofline)
      : options_(options),
        engine_(engine),
        log_(log),
        cost_(engine.model().footprint(), engine.model().config(), roofline) {}

  // One row per test. Warm-up first; each repeat uses other prompts.
  Result<std::vector<BenchmarkRow>> Run() {
    std::vector<double> prefill, decode;
    for (int repeat = options_.warm_up ? -1 : 0; repeat < options_.repeats; ++repeat) {
      prefill_ = {};
      const Phase decoded = std::exchange(decode_, {});
      Result<void> status = Measure(1, &prefill_);
      if (status && options_.generate > 1) status = Measure(options_.generate, &decode_);
      if (!status) return status.error();
      const bool overlapped = decode_.tokens > 0;
      if (!overlapped) decode_ = decoded;  // one stream was done before the next was submitted
      prefill_total_.AddTiers(prefill_);
      if (overlapped) decode_total_.AddTiers(decode_);
      if (repeat < 0) {
        prefill_total_ = decode_total_ = {};
        continue;
      }
      prefill.push_back(prefill_.tokens / prefill_.seconds);
      if (overlapped) decode.push_back(decode_.tokens / decode_.seconds);
    }
    std::vector<BenchmarkRow> rows;
    rows.push_back(Row("prefill", prefill_, prefill_total_, prefill));
    if (!decode.empty()) rows.push_back(Row("decode", decode_, decode_total_, decode));
    return rows;
  }

 private:
  struct Phase {
    double tokens = 0, seconds = 0;
    double bound_seconds = 0, memory_seconds = 0, arithmetic_seconds = 0, bytes = 0;
    double unique_experts = 0;
    int steps = 0;
    TierTotals tiers;

    void AddTiers(const Phase& phase) {
      tokens += phase.tokens;
      seconds += phase.seconds;
      tiers.Add({}, phase.tiers);
    }
  };

  // Runs `streams` requests of `generate` tokens. With generate == 1 the phase is the prefill, from
  // submission to the end; otherwise it is the steps in which every stream decodes.
  Result<void> Measure(int generate, Phase* phase) {
    log_.Clear();
    const auto start = Clock::now();
    std::vector<std::shared_ptr<Collector>> sinks;
    for (int s = 0; s < options_.streams; ++s) {
      GenerationRequest request;
      request.name = "bench";
      request.max_tokens = generate;
      request.ignore_eos = true;
      request.quality = options_.quality;
      // Streams that all take their likeliest token soon agree on it, at least with random weights,
      // and would then share every expert.
      request.sampling.temperature = options_.temperature >= 0
                                         ? static_cast<float>(options_.temperature)
                                         : (options_.streams > 1 ? 1.0f : 0.0f);
      request.sampling.seed = options_.seed + static_cast<uint64_t>(s);
      std::uniform_int_distribution<int32_t> token(0, engine_.model().config().vocab - 1);
      for (int i = 0; i < options_.prompt; ++i) request.prompt.push_back(token(random_));
      sinks.push_back(std::make_shared<Collector>());
      Result<RequestId> id = engine_.Submit(std::move(request), sinks.back());
      if (!id) return id.error();
    }
    for (auto& sink : sinks) {
      const Finish& finish = sink->Wait();
      if (finish.reason == FinishReason::kError) return finish.error;
    }
    while (!engine_.Idle()) std::this_thread::yield();

    const auto& steps = log_.records();
    if (generate == 1) {
      int first_rows = 0;
      double done = 0;
      for (const StepRecord& step : steps) {
        done += step.tokens;
        // Each stream's last chunk yields one row; which step that is does not change the sum.
        const int rows = std::min(options_.streams - first_rows,
                                  static_cast<int>(done / options_.prompt) - first_rows);
        first_rows += std::max(rows, 0);
        AddStep(step, std::max(rows, 0), 0, (options_.prompt + 1) / 2.0, phase);
      }
      phase->tokens = static_cast<double>(options_.prompt) * options_.streams;
      phase->seconds = Seconds(steps.back().end - start);
      phase->tiers.Add(log_.before(), steps.back().tiers);
      return {};
    }
    // While every stream has its prompt behind it and none has ended: not all of them need be in
    // every step.
    Clock::time_point first_end = Clock::time_point::max();
    for (const auto& sink : sinks) first_end = std::min(first_end, sink->finished_at());
    size_t begin = 0;
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].tokens != steps[i].sequences || steps[i].tokens == 0) begin = i + 1;
    }
    for (size_t i = begin + 1; i < steps.size() && steps[i].end <= first_end; ++i) {
      phase->seconds += Seconds(steps[i].end - steps[i - 1].end);
      phase->tokens += steps[i].tokens;
      phase->tiers.Add(steps[i - 1].tiers, steps[i].tiers);
      const double context = options_.prompt + phase->tokens / options_.streams;
      AddStep(steps[i], steps[i].tokens, steps[i].tokens * context, context, phase);
    }
    return {};
  }

  void AddStep(const StepRecord& step, int logit_rows, double kv_tokens, double context,
               Phase* phase) const {
    const StepCost cost = cost_.Cost({.tokens = static_cast<double>(step.tokens),
                                      .unique_experts = static_cast<double>(step.unique_experts),
                                      .logit_rows = static_cast<double>(logit_rows),
                                      .kv_tokens = kv_tokens,
                                      .context = context});
    const double memory = cost_.MemorySeconds(cost), arithmetic = cost_.ArithmeticSeconds(cost);
    phase->memory_seconds += memory;
    phase->arithmetic_seconds += arithmetic;
    phase->bound_seconds += std::max(memory, arithmetic);
    phase->bytes += cost.bytes;
    phase->unique_experts += static_cast<double>(step.unique_experts);
    ++phase->steps;
  }

  BenchmarkRow Row(const char* test, const Phase& phase, const Phase& total,
                   const std::vector<double>& rates) const {
    BenchmarkRow row;
    row.test = test;
    row.prompt = options_.prompt;
    row.generate = options_.generate;
    row.streams = options_.streams;
    row.threads = engine_.model().options().threads;
    row.tokens_per_second = Median(rates);
    row.min = *std::min_element(rates.begin(), rates.end());
    row.max = *std::max_element(rates.begin(), rates.end());
    row.bound = phase.tokens / phase.bound_seconds;
    row.bound_fraction = row.tokens_per_second / row.bound;
    row.bound_by = phase.memory_seconds >= phase.arithmetic_seconds ? "memory" : "arithmetic";
    row.unique_experts_per_step = phase.unique_experts / std::max(phase.steps, 1);
    row.bytes_per_token = phase.bytes / phase.tokens;
    const double asked = total.tiers.hits + total.tiers.misses;
    if (asked > 0) row.hit_rate = total.tiers.hits / asked;
    row.bytes_read_per_token = total.tiers.bytes / total.tokens;
    row.stall_fraction = total.tiers.stall_seconds / total.seconds;
    row.missed_bytes_per_token = total.tiers.misses / total.tokens *
                                 static_cast<double>(engine_.model().footprint().expert_bytes);
    const auto assignments =
        static_cast<double>(std::max<int64_t>(total.tiers.experts.assignments, 1));
    row.degraded_fraction = static_cast<double>(total.tiers.experts.degraded) / assignments;
    row.skipped_fraction = static_cast<double>(total.tiers.experts.skipped) / assignments;
    return row;
  }

  const BenchmarkOptions& options_;
  Engine& engine_;
  StepLog& log_;
  CostModel cost_;
  std::mt19937_64 random_{options_.seed};
  Phase prefill_, decode_;              // of the last repeat
  Phase prefill_total_, decode_total_;  // of all counted ones: tokens, seconds, tiers
};

void BoundByDisk(double bytes_per_second, BenchmarkRow* row) {
  if (row->missed_bytes_per_token * row->bound <= bytes_per_second) return;
  row->bound = bytes_per_second / row->missed_bytes_per_token;
  row->bound_fraction = row->tokens_per_second / row->bound;
  row->bound_by = "disk";
}

}  // namespace

Result<BenchmarkReport> RunBenchmark(const BenchmarkOptions& options) {
  auto say = [&](const std::string& what) {
    if (options.progress) options.progress(what);
  };
  if (options.prompt < 1 || options.generate < 1 || options.streams < 1 || options.repeats < 1) {
    return InvalidArgument("prompt, generate, streams and repeats must each be at least 1");
  }

  const int context = options.prompt + options.generate + 1;
  const int blocks_per_stream = (context + kKvBlockTokens - 1) / kKvBlockTokens + 1;
  ModelOptions model_options;
  model_options.isa = options.isa;
  model_options.threads = options.threads;
  model_options.max_batch_tokens = std::max(options.prefill_chunk, options.streams);
  model_options.max_sequences = options.streams;
  model_options.max_logit_rows = std::min(options.streams + 1, model_options.max_batch_tokens);
  model_options.max_context = context;
  model_options.kv_blocks = blocks_per_stream * options.streams;
  model_options.expert_bits = options.expert_bits;
  model_options.activation_bits = options.activation_bits;
  model_options.kv_dtype = options.kv_dtype;
  model_options.tiers = options.tiers;
  BenchmarkReport report;
  const cpu::Ops* ops = cpu::SelectOps(options.isa);
  if (ops == nullptr) {
    return Unsupported("this CPU or this build lacks the instruction set asked for");
  }
  const int threads = options.threads > 0 ? options.threads : cpu::UsableCores();
  say("measuring memory bandwidth");
  {
    cpu::ThreadPool pool(threads);
    report.roofline = MeasureMemory(*ops, pool, options.tiers.memory_budget / 2);
  }
  if (PackReader::LooksLikePack(options.model)) {
    say("measuring the disk");
    // A pack shorter than a piece has no figure.
    if (const Result<DiskSpeed> disk = MeasureDisk(options.model)) {
      report.disk_bandwidth = disk->bytes_per_second;
    }
  }
  ReturnFreeMemory();
  ResetPeakResidentBytes();
  say("loading " + options.model.string());
  const auto load_start = Clock::now();
  Result<std::unique_ptr<Model>> model = Model::Load(options.model, model_options);
  if (!model) return model.error();

  report.load_seconds = Seconds(Clock::now() - load_start);
  const std::optional<MemoryDivision> memory = (*model)->memory();
  if (options.tiers.cache && memory && memory->expert_capacity >= memory->expert_bytes) {
    // What arrives as it is asked for is no part of what a resident model does.
    say("reading experts");
    const auto fill_start = Clock::now();
    while ((*model)->Background()) {
    }
    report.fill_seconds = Seconds(Clock::now() - fill_start);
  }
  report.model = options.model.filename().empty() ? options.model.parent_path().filename().string()
                                                  : options.model.filename().string();
  report.isa = (*model)->isa();
  report.footprint = (*model)->footprint();
  report.weight_dtype = WeightName(**model);
  report.kv_dtype = KvDTypeName(*(*model)->options().kv_dtype);
  {
    say("measuring arithmetic");
    cpu::ThreadPool pool(threads);
    MeasureArithmetic(*ops, pool, **model, &report.roofline);
  }

  StepLog log;
  log.Attach(model->get());
  EngineOptions engine_options;
  engine_options.max_queue = options.streams;
  engine_options.max_running = options.streams;
  engine_options.max_batch_tokens = model_options.max_batch_tokens;
  engine_options.prefill_chunk = options.prefill_chunk;
  engine_options.batch_order = options.batch_order;
  engine_options.max_affinity_delay_seconds = options.max_affinity_delay_seconds;
  engine_options.max_decode_stall_seconds = 0;  // prompts are measured alone
  engine_options.prefix_cache = false;          // repeats have the same prompts
  std::unique_ptr<Engine> engine =
      Engine::Start(std::move(*model), engine_options,
                    [&log](int tokens, int sequences, double) { log.Add(tokens, sequences); });
  say("measuring");
  Result<std::vector<BenchmarkRow>> rows = Runner(options, *engine, log, report.roofline).Run();
  if (!rows) return rows.error();
  report.rows = std::move(*rows);

  report.peak_rss_bytes = PeakResidentBytes();
  report.experts = engine->model().expert_stats();
  if (report.disk_bandwidth > 0 && report.experts != nullptr) {
    say("measuring the disk");
    // Again, since disks that others use change within minutes; without the engine, whose budget
    // has no room for it.
    engine.reset();
    if (const Result<DiskSpeed> disk = MeasureDisk(options.model)) {
      report.disk_bandwidth = (report.disk_bandwidth + disk->bytes_per_second) / 2;
    }
    for (BenchmarkRow& row : report.rows) BoundByDisk(report.disk_bandwidth, &row);
  }
  return report;
}

}  // namespace sluice
