// `sluice plan`: what a model will take and do on this machine, before it is loaded.
#include "engine/runtime/plan.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/arch/hf_config.h"
#include "server/commands/commands.h"
#include "server/commands/load_model.h"
#include "server/commands/settings.h"

namespace sluice {
namespace {

constexpr int kDefaultPrompt = 512;

constexpr const char* kManual =
    R"(Takes the settings of `sluice serve` and says what would fit where, the least memory budget, how often an expert
would be in memory, tokens per second, bytes read per token and start-up time. Memory is exact. Times are reckoned
from memory bandwidth, arithmetic and disk bandwidth, measured now, in a few seconds. Hit rates come from the trace,
if one is given, laid side by side for so many users; else from the calibration statistics in the pack; else from how
experts are typically used, which may be far from how this model uses them.

With --context, memory for keys and values holds that much for every user, and attention sees half of it.

Examples:
  sluice plan --model olmoe.sluice --memory-budget 2GiB --users 4
  sluice plan --model olmoe.sluice --memory-budget 2GiB --trace day.trace --json)";

struct Arguments {
  CommandLine settings;
  int users = 1;
  std::optional<int> prompt;  // set by Make
  std::string trace;
  bool json = false;
};

nlohmann::ordered_json ToJson(const Plan& plan) {
  return {{"memory_budget", plan.budget},
          {"least_budget", plan.least_budget},
          {"weights_bytes", plan.weights_bytes},
          {"kv_bytes", plan.kv_bytes},
          {"buffer_bytes", plan.buffer_bytes},
          {"process_bytes", plan.process_bytes},
          {"experts", plan.experts},
          {"expert_bytes", plan.expert_bytes},
          {"expert_bytes_in_memory", plan.expert_bytes_in_memory},
          {"hit_rate", plan.hit_rate},
          {"hit_rate_source", plan.hit_rate_source},
          {"prefill_hit_rate", plan.prefill_hit_rate},
          {"unique_experts_per_step", plan.unique_experts_per_step},
          {"decode_tokens_per_second", plan.decode_tokens_per_second},
          {"prefill_tokens_per_second", plan.prefill_tokens_per_second},
          {"bytes_read_per_token", plan.bytes_read_per_token},
          {"prefill_bytes_read_per_token", plan.prefill_bytes_read_per_token},
          {"stall_fraction", plan.stall_fraction},
          {"startup_seconds", plan.startup_seconds},
          {"read_bandwidth", plan.roofline.typical_read_bytes_per_second},
          {"peak_macs_per_second", plan.roofline.macs_per_second},
          {"disk_bandwidth", plan.disk_bytes_per_second},
          {"cpu_isa", plan.isa},
          {"threads", plan.threads},
          {"weight_dtype", plan.weight_dtype},
          {"kv_dtype", plan.kv_dtype}};
}

const char* SourceText(const std::string& source) {
  if (source == "trace") return "replayed from the trace";
  if (source == "calibration") return "from the pack's calibration";
  if (source == "typical") return "as models typically use them: no trace, no calibration";
  return "every expert fits";
}

void PrintTable(const Plan& plan, const Arguments& arguments) {
  const auto size = [](const char* what, uint64_t bytes) {
    std::printf("  %-34s %10.1f MB\n", what, static_cast<double>(bytes) / 1e6);
  };
  std::printf("memory\n");
  size("dense weights", plan.weights_bytes);
  size("keys and values", plan.kv_bytes);
  size("buffers", plan.buffer_bytes);
  size("code, and a reserve for requests", plan.process_bytes);
  size("experts in memory", plan.expert_bytes_in_memory);
  size("experts", plan.expert_bytes);
  if (plan.budget > 0) size("the budget", plan.budget);
  size("the least budget", plan.least_budget);
  std::printf("this machine: memory read %.1f GB/s, arithmetic %.0f Gmac/s, disk %.2f GB/s\n",
              plan.roofline.typical_read_bytes_per_second / 1e9,
              plan.roofline.macs_per_second / 1e9, plan.disk_bytes_per_second / 1e9);
  std::printf("experts found in memory: %.1f%% while decoding, %.1f%% in prompts, %s\n",
              100 * plan.hit_rate, 100 * plan.prefill_hit_rate, SourceText(plan.hit_rate_source));
  std::printf("decode   %8.1f tokens/s for %d at once, %.1f MB read per token, %.0f%% waiting\n",
              plan.decode_tokens_per_second, arguments.users, plan.bytes_read_per_token / 1e6,
              100 * plan.stall_fraction);
  std::printf("prefill  %8.1f tokens/s for %d prompts of %d at once, %.1f MB read per token\n",
              plan.prefill_tokens_per_second, arguments.users, *arguments.prompt,
              plan.prefill_bytes_read_per_token / 1e6);
  std::printf("ready    %8.2f s after the start\n", plan.startup_seconds);
}

int Fail(const Error& error) {
  std::fprintf(stderr, "sluice plan: %s\n", error.message.c_str());
  const bool usage =
      error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kNotFound;
  return usage ? kExitUsage : kExitRuntime;
}

// KV blocks for every user's context.
void GiveEveryUserContext(int users, const ModelConfig& model, KvDType kv_dtype, Config* config) {
  const int64_t blocks =
      (config->model.context + kKvBlockTokens - 1) / kKvBlockTokens * int64_t{users};
  config->model.kv_memory.count = blocks * static_cast<int64_t>(KvBytesPerBlock(model, kv_dtype));
}

// Sets arguments.prompt where it was not given.
Result<Plan> Make(Arguments& arguments) {
  const Result<LoadedConfig> loaded =
      LoadConfig(arguments.settings.config_file, arguments.settings.Values());
  if (!loaded) return InvalidArgument(loaded.error().message);
  Config config = loaded->values;
  if (config.model.path.empty()) {
    return InvalidArgument("no model is given: use --model PATH or model.path in the file");
  }
  if (arguments.users < 1 || arguments.users > config.engine.max_running) {
    return InvalidArgument("--users must lie between 1 and --max-running, " +
                           std::to_string(config.engine.max_running));
  }
  Logger log(LogLevel::kError, LogFormat::kText);
  const auto resolved = ServedModelPath(config, log);
  if (!resolved) return resolved.error();
  const std::filesystem::path& path = resolved->path;
  const auto files = ReadModelFiles(path);
  if (!files) return files.error();
  const auto architecture = LoadHfConfig(*files);
  if (!architecture) return architecture.error();
  const auto kv_dtype = ServedKvDType(config, *files);
  if (!kv_dtype) return kv_dtype.error();
  if (config.model.context > 0 && config.model.kv_memory.count == 0) {
    GiveEveryUserContext(arguments.users, *architecture, *kv_dtype, &config);
  }
  const auto load = ServedModelOptions(config, path, *files, *architecture, log);
  if (!load) return load.error();
  PlanOptions options;
  options.model = path;
  options.load = *load;
  options.load.progress = nullptr;
  options.users = arguments.users;
  options.context = std::max(1, std::min(load->max_context, 2048) / 2);
  if (config.model.context > 0) options.context = std::max(1, config.model.context / 2);
  if (!arguments.prompt) arguments.prompt = std::min(kDefaultPrompt, architecture->max_positions);
  options.prompt = *arguments.prompt;
  options.prefill_chunk = config.engine.prefill_chunk;
  options.trace = arguments.trace;
  if (isatty(STDERR_FILENO)) {
    options.progress = [](const std::string& what) {
      std::fprintf(stderr, "%s ...\n", what.c_str());
    };
  }
  return MakePlan(options);
}

int Run(Arguments& arguments) {
  const Result<Plan> plan = Make(arguments);
  if (!plan) return Fail(plan.error());
  if (arguments.json) {
    std::printf("%s\n", ToJson(*plan).dump(2).c_str());
  } else {
    PrintTable(*plan, arguments);
  }
  return 0;
}

}  // namespace

void AddPlan(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("plan", "Foretell memory, hit rates and speed of a model here.");
  command->footer(kManual);
  command->add_option("--users", arguments->users, "Requests at once")->capture_default_str();
  command->add_option(
      "--prompt", arguments->prompt,
      "Tokens of a prompt; default: 512, or all that the model was made for if that "
      "is less");
  command->add_option("--trace", arguments->trace, "Routing to replay (sluice trace record)");
  command->add_flag("--json", arguments->json, "Print JSON instead of the table");
  command
      ->add_option("--config", arguments->settings.config_file,
                   "TOML file of settings (config/sluice.toml).")
      ->option_text("FILE");
  for (const char* section : {"model", "experts", "engine"}) {
    AddSectionSettings(*command, section, arguments->settings);
  }
  command->callback([arguments, exit_code] { *exit_code = Run(*arguments); });
}

}  // namespace sluice
