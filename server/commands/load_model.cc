#include "server/commands/load_model.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "engine/arch/hf_config.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/process_memory.h"
#include "engine/model/model.h"
#include "engine/runtime/saved_state.h"
#include "server/api/model_codec.h"
#include "server/commands/decode_forecast.h"
#include "server/commands/progress.h"
#include "server/commands/settings.h"
#include "server/commands/trace_model.h"
#include "server/config/cache_dir.h"
#include "server/config/memory.h"
#include "server/system/memory_pressure.h"
#include "server/system/notify.h"
#include "server/version.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

// Bytes of weights that must be resident: of a pack all but its routed experts.
uint64_t WeightBytes(const fs::path& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    const Result<uint64_t> dense = DensePackBytes(directory);
    return dense ? *dense : fs::file_size(directory, error);
  }
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() != ".safetensors") continue;
    std::error_code ignored;
    const auto size = it->file_size(ignored);
    if (!ignored) bytes += size;
  }
  return bytes;
}

// Tokens that one request may use, before memory is considered.
Result<int> WantedContext(const ModelSettings& settings, const ModelConfig& model) {
  if (settings.context == 0) return model.max_positions;
  if (settings.context > model.max_positions) {
    return InvalidArgument("model.context is " + std::to_string(settings.context) +
                           ", but the model was made for " + std::to_string(model.max_positions) +
                           " tokens (max_position_embeddings)");
  }
  return settings.context;
}

Result<KvPlan> MakeKvPlan(const Config& config, const fs::path& path, const ModelConfig& model,
                          KvDType kv_dtype, Logger& log) {
  const Result<int> wanted = WantedContext(config.model, model);
  if (!wanted) return wanted.error();
  const size_t block_bytes = KvBytesPerBlock(model, kv_dtype);
  const auto budget = static_cast<uint64_t>(config.experts.memory_budget.count);
  const uint64_t available = budget > 0 ? budget : AvailableMemoryBytes();
  const KvPlan plan = PlanKv(static_cast<uint64_t>(config.model.kv_memory.count), available,
                             WeightBytes(path), block_bytes, kKvBlockTokens, *wanted);
  if (plan.blocks == 0) {
    return ResourceExhausted("there is no memory for the KV cache: one block takes " +
                             std::to_string(block_bytes) + " bytes, " + std::to_string(available) +
                             " bytes are available; set model.kv_memory");
  }
  if (plan.context < *wanted) {
    if (config.model.context > 0) {
      return ResourceExhausted("model.context of " + std::to_string(*wanted) +
                               " tokens does not fit: the KV cache holds " +
                               std::to_string(plan.context) + " tokens; raise model.kv_memory");
    }
    log.Warn("the KV cache does not hold a full context; requests are limited to what fits",
             {{"model_context", *wanted}, {"context", plan.context}});
  }
  log.Info("planned the KV cache", {{"blocks", plan.blocks},
                                    {"bytes", static_cast<uint64_t>(plan.blocks) * block_bytes},
                                    {"dtype", KvDTypeName(kv_dtype)},
                                    {"context", plan.context},
                                    {"memory_available_bytes", available}});
  return plan;
}

}  // namespace

Result<KvDType> ServedKvDType(const Config& config, const ModelFiles& files) {
  if (const std::optional<KvDType> dtype = ParseKvDType(config.model.kv_dtype)) return *dtype;
  const auto text = files.Require(ModelFiles::kConfig);
  if (!text) return text.error();
  const auto json = ParseJson(**text, "config.json");
  if (!json) return json.error();
  for (const char* name : {"dtype", "torch_dtype"}) {
    const auto field = json->find(name);
    if (field != json->end() && *field == "float32") return KvDType::kF32;
  }
  return KvDType::kF16;
}

Result<ModelOptions> ServedModelOptions(const Config& config, const fs::path& path,
                                        const ModelFiles& files, const ModelConfig& architecture,
                                        Logger& log) {
  const Result<KvDType> kv_dtype = ServedKvDType(config, files);
  if (!kv_dtype) return kv_dtype.error();
  const Result<KvPlan> plan = MakeKvPlan(config, path, architecture, *kv_dtype, log);
  if (!plan) return plan.error();
  ModelOptions options;
  if (!cpu::ParseIsa(config.engine.cpu_isa.c_str(), &options.isa) ||
      cpu::SelectOps(options.isa) == nullptr) {
    return Unsupported("engine.cpu_isa " + config.engine.cpu_isa +
                       ": this CPU or this build does not have it; use auto");
  }
  options.threads = config.engine.threads;
  options.max_batch_tokens = config.engine.max_batch_tokens;
  options.max_sequences = config.engine.max_running;
  // Prompts whose log-probabilities are wanted get 64 rows a step, half of them drafts if there are
  // any: the output head's rows are large.
  options.max_logit_rows = std::min(config.engine.max_batch_tokens, config.engine.max_running + 64);
  options.max_context = plan->context;
  options.kv_blocks = plan->blocks;
  options.kv_dtype = *kv_dtype;
  options.expert_bits = config.model.precision;
  options.activation_bits = config.engine.activation_bits;
  options.tiers = MakeTierOptions(config.experts);
  if (options.tiers.memory_budget == 0) {
    options.tiers.memory_budget = AutomaticBudget(AvailableMemoryBytes() + ResidentBytes());
  }
  options.progress = [shown = -1](double fraction) mutable {
    const int tenth = static_cast<int>(fraction * 10);
    if (tenth == shown) return;
    shown = tenth;
    NotifyStarting("loading the model: " + std::to_string(tenth * 10) + "%");
  };
  return options;
}

Result<ResolvedModel> ServedModelPath(const Config& config, Logger& log) {
  ModelPathOptions options;
  options.cache_directory = CacheDirectory(config.model.cache_dir);
  options.cache_limit_bytes = static_cast<uint64_t>(config.model.cache_limit.count);
  options.pack_directories = true;
  options.threads = config.engine.threads;
  options.say = [&log](const std::string& sentence) { log.Info(sentence); };
  options.progress = [bar = ProgressBar("packing"), shown = -1](double fraction) mutable {
    bar(fraction);
    const int tenth = static_cast<int>(fraction * 10);
    if (tenth == shown) return;
    shown = tenth;
    NotifyStarting("packing the model: " + std::to_string(tenth * 10) + "%");
  };
  return ResolveModelPath(config.model.path, options);
}

namespace {

fs::path StateFile(const EngineSettings& settings) {
  return fs::path(settings.state_dir) / "engine.state";
}

// Makes engine.state_dir, and sees to it that the state can be written there when the server stops.
Result<> PrepareStateDirectory(const EngineSettings& settings) {
  if (settings.state_dir.empty()) return {};
  std::error_code error;
  fs::create_directories(settings.state_dir, error);
  if (error) {
    return InvalidArgument("engine.state_dir " + settings.state_dir + ": " + error.message());
  }
  if (auto ok = CheckSavedStateFile(StateFile(settings)); !ok) {
    return WithContext("engine.state_dir", ok.error());
  }
  return {};
}

// All that decides what the model's KvBlocks hold, beside tokens. A pack's first bytes have the
// checksums of all others.
Result<std::string> StateIdentity(const fs::path& path, const Model& model) {
  const Result<File> file = File::Open(path);
  if (!file) return WithContext("engine.state_dir needs a pack", file.error());
  std::vector<std::byte> head(4096);
  if (auto read = file->ReadAt(0, head); !read) return read.error();
  const ModelOptions& options = model.options();
  return std::string("sluice ") + kVersion + " " + model.isa() + " " +
         KvDTypeName(*options.kv_dtype) + " " + std::to_string(options.expert_bits) + " " +
         std::to_string(options.activation_bits) + " " +
         std::string(reinterpret_cast<const char*>(head.data()), head.size());
}

}  // namespace

std::string ModelId(const ModelSettings& settings) {
  if (!settings.id.empty()) return settings.id;
  std::error_code ignored;
  const fs::path path = fs::weakly_canonical(settings.path, ignored);
  const bool file = path.extension() == ".sluice" || path.extension() == ".gguf";
  const std::string name = (file ? path.stem() : path.filename()).string();
  return name.empty() ? "model" : name;
}

namespace {

// Sets served->routing.
Result<> Listen(const Config& config, const fs::path& path, Model& model, ServedModel* served) {
  const ExpertSettings& settings = config.experts;
  if (model.expert_stats() == nullptr) {
    if (settings.trace.empty()) return {};
    return InvalidArgument("experts.trace: this model has no experts to record");
  }
  auto routing = ServedRouting::Create(DescribeModel(path, model), settings.trace,
                                       static_cast<uint64_t>(settings.trace_limit.count));
  if (!routing) return routing.error();
  served->routing = std::move(*routing);
  model.SetRoutingTap(served->routing.get());
  return {};
}

}  // namespace

Result<std::shared_ptr<ServedModel>> LoadServedModel(const Config& config,
                                                     std::vector<double> account_weights,
                                                     std::shared_ptr<Metrics> metrics,
                                                     Logger& log) {
  const auto start = std::chrono::steady_clock::now();
  // Before the model, which takes long.
  if (auto ok = PrepareStateDirectory(config.engine); !ok) return ok.error();
  auto resolved = ServedModelPath(config, log);
  if (!resolved) return resolved.error();
  const fs::path& path = resolved->path;
  const auto files = ReadModelFiles(path);
  if (!files) return files.error();
  const auto architecture = LoadHfConfig(*files);
  if (!architecture) return architecture.error();
  auto served = std::make_shared<ServedModel>();
  served->lease = std::move(resolved->lease);
  auto codec = LoadModelCodec(*files);
  if (!codec) return codec.error();
  served->codec = std::move(*codec);
  const auto model_options = ServedModelOptions(config, path, *files, *architecture, log);
  if (!model_options) return model_options.error();
  auto forecast = DecodeForecast::Prepare(path, *model_options);
  auto model = Model::Load(path, *model_options);
  if (!model) return model.error();
  if (forecast != nullptr) forecast->SetModel(model->get());

  served->id = ModelId(config.model);
  served->created = std::chrono::duration_cast<std::chrono::seconds>(
                        std::chrono::system_clock::now().time_since_epoch())
                        .count();
  served->family = (*model)->config().family;
  served->vocab = (*model)->config().vocab;
  served->eos_ids = (*model)->config().eos_ids;
  served->max_running = config.engine.max_running;
  served->max_queue = config.engine.max_queue;
  served->quality = MakeQualitySettings(config.experts);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  log.Info("loaded the model", {{"model", served->id},
                                {"family", served->family},
                                {"isa", (*model)->isa()},
                                {"weights", WeightName(**model)},
                                {"threads", (*model)->options().threads},
                                {"weight_bytes", (*model)->footprint().weight_bytes},
                                {"seconds", seconds.count()}});
  if (auto ok = Listen(config, path, **model, served.get()); !ok) return ok.error();
  EngineOptions options;
  options.max_queue = config.engine.max_queue;
  options.max_queue_tokens = config.engine.max_queue_tokens;
  if (!config.engine.state_dir.empty()) {
    const auto identity = StateIdentity(path, **model);
    if (!identity) return identity.error();
    options.state_file = StateFile(config.engine);
    options.state_identity = *identity;
    options.state_log = [&log](const std::string& sentence) { log.Info(sentence); };
  }
  if (!account_weights.empty()) options.account_weights = std::move(account_weights);
  options.max_running = config.engine.max_running;
  options.max_batch_tokens = config.engine.max_batch_tokens;
  options.prefill_chunk = config.engine.prefill_chunk;
  options.max_decode_stall_seconds = config.engine.max_decode_stall_ms / 1000.0;
  options.prefix_cache = config.engine.prefix_cache == "on";
  options.batch_order = *ParseBatchOrder(config.engine.batch_order);  // checked by the schema
  options.max_affinity_delay_seconds = config.engine.max_affinity_delay_ms / 1000.0;
  options.speculation = *ParseSpeculation(config.engine.speculation);  // checked by the schema
  served->engine = Engine::Start(std::move(*model), options,
                                 [metrics, forecast = std::shared_ptr(std::move(forecast)), &log](
                                     int batch_tokens, int sequences, double step_seconds) {
                                   metrics->ObserveStep(batch_tokens, sequences, step_seconds);
                                   if (forecast == nullptr) return;
                                   forecast->Observe(batch_tokens, sequences, step_seconds, &log);
                                 });
  served->max_context = served->engine->max_context();
  return served;
}

}  // namespace sluice
