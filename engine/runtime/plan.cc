#include "engine/runtime/plan.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "engine/base/disk_speed.h"
#include "engine/base/process_memory.h"
#include "engine/experts/pack_prior.h"
#include "engine/experts/trace.h"
#include "engine/formats/pack.h"
#include "engine/runtime/cost_model.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {
namespace {

// Opening files, tables and threads, and the measuring that DecodeForecast does, beside reading
// weights.
constexpr double kFixedStartSeconds = 0.35;
// Memory that is touched for the first time.
constexpr double kTouchBytesPerSecond = 3e9;

// What `serve` had resident beyond `plan` when the model was loaded: front end, threads, more code.
// Measured on the demo model: 4 MiB.
constexpr uint64_t kServingBytes = uint64_t{5} << 20;

// A pack that is too short to measure its disk is read in no time.
double DiskOr(double measured) { return measured > 0 ? measured : 1e9; }

StepReads Reads(const Model& model, const ExpertForecast::Step& step, double disk) {
  StepReads reads;
  reads.experts = step.unique - step.hits;
  reads.bytes_per_second = DiskOr(disk);
  const TierOptions& tiers = model.options().tiers;
  if (tiers.cache && !tiers.predictor.empty()) reads.covered = kCoveredReads;
  return reads;
}

Result<> Check(const PlanOptions& options) {
  if (options.users < 1 || options.context < 1 || options.prompt < 1 || options.prefill_chunk < 1) {
    return InvalidArgument("users, context, prompt and prefill chunk must each be at least 1");
  }
  if (!PackReader::LooksLikePack(options.model)) {
    return InvalidArgument(options.model.string() +
                           " is not a pack; make one with `sluice pack` first");
  }
  return {};
}

// Memory's bandwidth moves from second to second where others use it, too: it is measured three
// times, with the arithmetic between, and the median counts.
Roofline MeasureMachine(const ModelOptions& load, const Model& model, uint64_t budget,
                        const std::function<void(const std::string&)>& say) {
  say("measuring memory and arithmetic");
  cpu::ThreadPool pool(model.options().threads);
  const cpu::Ops* ops = cpu::SelectOps(load.isa);
  Roofline roofline = MeasureMemory(*ops, pool, budget / 2);
  MeasureArithmetic(*ops, pool, model, &roofline);
  std::array<double, 3> rates = {roofline.typical_read_bytes_per_second, 0, 0};
  for (size_t i = 1; i < rates.size(); ++i) {
    const Roofline again = MeasureMemory(*ops, pool, budget / 2);
    rates[i] = again.typical_read_bytes_per_second;
    roofline.read_bytes_per_second =
        std::max(roofline.read_bytes_per_second, again.read_bytes_per_second);
    roofline.fork_seconds = std::min(roofline.fork_seconds, again.fork_seconds);
  }
  std::sort(rates.begin(), rates.end());
  roofline.typical_read_bytes_per_second = rates[1];
  return roofline;
}

// The better of two: what a disk does for a moment while it is used by others says little.
double MeasureDiskTwice(const std::filesystem::path& path,
                        const std::function<void(const std::string&)>& say) {
  say("measuring the disk");
  double best = 0;
  for (int i = 0; i < 2; ++i) {
    if (const Result<DiskSpeed> disk = MeasureDisk(path)) {
      best = std::max(best, disk->bytes_per_second);
    }
  }
  return best;
}

void DivideMemory(const Model& model, const ModelFootprint& footprint, uint64_t process_bytes,
                  Plan* plan) {
  const size_t expert_weights = plan->experts * footprint.expert_bytes;
  plan->weights_bytes = footprint.weight_bytes - std::min(footprint.weight_bytes, expert_weights);
  plan->kv_bytes = footprint.kv_bytes_per_block * static_cast<size_t>(model.options().kv_blocks);
  plan->buffer_bytes = footprint.arena_bytes;
  plan->process_bytes = process_bytes;
  if (const std::optional<MemoryDivision> memory = model.memory()) {
    plan->weights_bytes = memory->dense_bytes;
    plan->expert_bytes = memory->expert_bytes;
    plan->expert_bytes_in_memory = memory->expert_capacity;
    plan->least_budget = memory->least_budget;
    plan->process_bytes =
        memory->other_bytes - plan->weights_bytes - plan->kv_bytes - plan->buffer_bytes;
  } else {
    plan->least_budget =
        plan->weights_bytes + plan->kv_bytes + plan->buffer_bytes + plan->process_bytes;
  }
}

}  // namespace

Result<ExpertForecast> ForecastExperts(const std::filesystem::path& pack, const Model& model,
                                       const Trace* trace, int users, std::string* source) {
  const ModelConfig& config = model.config();
  const std::optional<MemoryDivision> memory = model.memory();
  double share = 1;
  if (memory && memory->expert_bytes > 0) {
    share =
        static_cast<double>(memory->expert_capacity) / static_cast<double>(memory->expert_bytes);
  }
  const Result<PackReader> reader = PackReader::Open(pack);
  if (!reader) return reader.error();
  const ExpertPrior prior =
      ReadPackPrior(reader->metadata(), {config.num_layers(), config.router.num_experts});
  const auto known_from = [&](const char* name) {
    if (source != nullptr) *source = share >= 1 ? "everything fits" : name;
  };
  if (trace != nullptr) {
    known_from("trace");
    return ExpertForecast::FromTrace(*trace, config, model.options().tiers.policy, prior, share,
                                     users);
  }
  if (!prior.frequency.empty()) {
    known_from("calibration");
    return ExpertForecast(prior.frequency, share);
  }
  known_from("typical");
  return ExpertForecast::Typical(config, share);
}

StepRates ForecastDecode(const Model& model, const ExpertForecast& experts,
                         const Roofline& roofline, double disk_bytes_per_second, double users,
                         double context) {
  const ModelFootprint footprint = model.footprint();
  StepRates rates;
  rates.experts = experts.Decode(users);
  const StepReads reads = Reads(model, rates.experts, disk_bytes_per_second);
  const StepSeconds seconds = CostModel(footprint, model.config(), roofline)
                                  .Seconds({.tokens = users,
                                            .unique_experts = rates.experts.unique,
                                            .logit_rows = users,
                                            .kv_tokens = users * context,
                                            .context = context},
                                           reads, model.options().threads);
  rates.tokens_per_second = users / seconds.total();
  rates.bytes_read_per_token = reads.experts * static_cast<double>(footprint.expert_bytes) / users;
  rates.stall_fraction = seconds.stall / seconds.total();
  return rates;
}

StepRates ForecastPrefill(const Model& model, const ExpertForecast& experts,
                          const Roofline& roofline, double disk_bytes_per_second, int prompt,
                          int prompts, int chunk) {
  const ModelFootprint footprint = model.footprint();
  const CostModel cost(footprint, model.config(), roofline);
  // What a step holds of each prompt.
  chunk = std::clamp(model.options().max_batch_tokens / prompts, 1, chunk);
  const double all = prompts;
  StepRates rates;
  double total = 0, stall = 0, missed = 0;
  for (int done = 0; done < prompt; done += chunk) {
    const int tokens = std::min(chunk, prompt - done);
    const ExpertForecast::Step step = experts.Prefill(tokens, all);
    const StepReads reads = Reads(model, step, disk_bytes_per_second);
    const StepSeconds seconds = cost.Seconds({.tokens = all * tokens,
                                              .unique_experts = step.unique,
                                              .logit_rows = done + tokens == prompt ? all : 0.0,
                                              .kv_tokens = all * done,
                                              .context = done + (tokens + 1) / 2.0},
                                             reads, model.options().threads);
    total += seconds.total();
    stall += seconds.stall;
    missed += reads.experts;
    rates.experts.unique += step.unique;
    rates.experts.hits += step.hits;
  }
  rates.tokens_per_second = all * prompt / total;
  rates.bytes_read_per_token =
      missed * static_cast<double>(footprint.expert_bytes) / (all * prompt);
  rates.stall_fraction = stall / total;
  return rates;
}

Result<Plan> MakePlan(const PlanOptions& options) {
  const auto say = [&](const std::string& what) {
    if (options.progress) options.progress(what);
  };
  if (auto ok = Check(options); !ok) return ok.error();
  ReturnFreeMemory();
  const uint64_t process_bytes = ResidentBytes() + kServingBytes;
  ModelOptions load = options.load;
  load.read_weights = false;
  load.later_bytes = kServingBytes;
  const Result<std::unique_ptr<Model>> loaded = Model::Load(options.model, load);
  if (!loaded) return loaded.error();
  const Model& model = **loaded;
  const ModelConfig& config = model.config();
  // Longer ones are refused by the server, and reckoning goes through a prompt step by step.
  if (std::max(options.context, options.prompt) > config.max_positions) {
    return InvalidArgument("a context of " + std::to_string(options.context) +
                           " tokens or a prompt of " + std::to_string(options.prompt) +
                           " is longer than the model was made for, " +
                           std::to_string(config.max_positions) + " tokens");
  }
  const ModelFootprint footprint = model.footprint();

  Plan plan;
  plan.budget = load.tiers.memory_budget;
  for (const LayerConfig& layer : config.layers) {
    plan.experts += layer.sparse ? config.router.num_experts : 0;
  }
  DivideMemory(model, footprint, process_bytes, &plan);
  plan.isa = model.isa();
  plan.weight_dtype = WeightName(model);
  plan.kv_dtype = KvDTypeName(*model.options().kv_dtype);
  plan.threads = model.options().threads;

  plan.roofline = MeasureMachine(load, model, plan.budget, say);
  ReturnFreeMemory();
  plan.disk_bytes_per_second = MeasureDiskTwice(options.model, say);

  std::optional<Trace> trace;
  if (!options.trace.empty()) {
    say("replaying " + options.trace.string());
    Result<Trace> read = ReadTrace(options.trace);
    if (!read) return read.error();
    trace = std::move(*read);
  }
  const Result<ExpertForecast> forecast = ForecastExperts(
      options.model, model, trace ? &*trace : nullptr, options.users, &plan.hit_rate_source);
  if (!forecast) return forecast.error();
  const ExpertForecast& experts = *forecast;

  const double disk = plan.disk_bytes_per_second;
  const StepRates decode =
      ForecastDecode(model, experts, plan.roofline, disk, options.users, options.context);
  const StepRates prefill = ForecastPrefill(model, experts, plan.roofline, disk, options.prompt,
                                            options.users, options.prefill_chunk);
  plan.hit_rate = decode.experts.hit_rate();
  plan.unique_experts_per_step = decode.experts.unique;
  plan.decode_tokens_per_second = decode.tokens_per_second;
  plan.bytes_read_per_token = decode.bytes_read_per_token;
  plan.stall_fraction = decode.stall_fraction;
  plan.prefill_hit_rate = prefill.experts.hit_rate();
  plan.prefill_tokens_per_second = prefill.tokens_per_second;
  plan.prefill_bytes_read_per_token = prefill.bytes_read_per_token;
  plan.startup_seconds = kFixedStartSeconds + static_cast<double>(plan.weights_bytes) *
                                                  (1 / DiskOr(disk) + 1 / kTouchBytesPerSecond);
  return plan;
}

}  // namespace sluice
