// `sluice bench`: tokens per second of prefill and decode beside the machine's own bound.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/runtime/benchmark.h"
#include "server/commands/commands.h"
#include "server/commands/model_path.h"
#include "server/commands/progress.h"
#include "server/commands/settings.h"
#include "server/config/cache_dir.h"

namespace sluice {
namespace {

constexpr const char* kManual =
    R"(Each test runs once to warm up and then --repeats times on new random prompts; the median is printed with
the minimum, the maximum, and the bound: what this machine's memory, arithmetic and disk, measured in the same
run with the same threads, would allow for the bytes and operations that the model needs. A model small enough
to stay in the caches may exceed a bound set by memory.

Examples:
  sluice bench --model deploy/demo-model
  sluice bench --model DIR --prompt 512 --generate 128 --streams 8 --threads 2 --json)";

struct Arguments {
  BenchmarkOptions options;
  std::string batch_order = "fcfs";
  int max_affinity_delay_ms = 2000;
  std::string model, cache_directory, isa = "auto", kv_dtype = "auto";
  CommandLine experts;
  bool json = false;
};

nlohmann::ordered_json RowToJson(const BenchmarkRow& row, const BenchmarkReport& report) {
  return {{"test", row.test},
          {"model", report.model},
          {"weight_dtype", report.weight_dtype},
          {"cpu_isa", report.isa},
          {"kv_dtype", report.kv_dtype},
          {"prompt", row.prompt},
          {"generate", row.generate},
          {"streams", row.streams},
          {"threads", row.threads},
          {"tokens_per_second", row.tokens_per_second},
          {"min", row.min},
          {"max", row.max},
          {"bound", row.bound},
          {"bound_fraction", row.bound_fraction},
          {"bound_by", row.bound_by},
          {"unique_experts_per_step", row.unique_experts_per_step},
          {"bytes_per_token", row.bytes_per_token},
          {"read_bandwidth", report.roofline.read_bytes_per_second},
          {"peak_macs_per_second", report.roofline.macs_per_second},
          {"peak_f32_macs_per_second", report.roofline.f32_macs_per_second},
          {"weight_bytes", report.footprint.weight_bytes},
          {"hit_rate", row.hit_rate},
          {"bytes_read_per_token", row.bytes_read_per_token},
          {"missed_bytes_per_token", row.missed_bytes_per_token},
          {"stall_fraction", row.stall_fraction},
          {"degraded_fraction", row.degraded_fraction},
          {"skipped_fraction", row.skipped_fraction},
          {"disk_bandwidth", report.disk_bandwidth},
          {"peak_rss", report.peak_rss_bytes},
          {"load_seconds", report.load_seconds},
          {"fill_seconds", report.fill_seconds}};
}

void PrintTable(const BenchmarkReport& report) {
  std::printf(
      "%s: %s weights, %.1f MB, loaded in %.2f s; %s KV cache; %s; peak resident memory %.0f MB\n",
      report.model.c_str(), report.weight_dtype.c_str(), report.footprint.weight_bytes / 1e6,
      report.load_seconds, report.kv_dtype.c_str(), report.isa.c_str(),
      report.peak_rss_bytes / 1e6);
  std::printf("this machine: memory read %.1f GB/s, arithmetic %.0f Gmac/s in %s, %.0f in F32\n\n",
              report.roofline.read_bytes_per_second / 1e9, report.roofline.macs_per_second / 1e9,
              report.weight_dtype.c_str(), report.roofline.f32_macs_per_second / 1e9);
  std::printf("%-8s %7s %8s %7s %7s %10s %10s %10s %10s %6s  %s\n", "test", "prompt", "generate",
              "streams", "threads", "tokens/s", "min", "max", "bound", "%", "bound by");
  for (const BenchmarkRow& row : report.rows) {
    std::printf("%-8s %7d %8d %7d %7d %10.1f %10.1f %10.1f %10.1f %6.1f  %s\n", row.test.c_str(),
                row.prompt, row.generate, row.streams, row.threads, row.tokens_per_second, row.min,
                row.max, row.bound, 100 * row.bound_fraction, row.bound_by.c_str());
  }
  for (const BenchmarkRow& row : report.rows) {
    if (row.bytes_read_per_token == 0 && row.hit_rate == 1) continue;
    std::printf(
        "%-8s experts in memory %.1f%%, %.1f MB read from disk per token, %.1f%% of the "
        "time waiting for them\n",
        row.test.c_str(), 100 * row.hit_rate, row.bytes_read_per_token / 1e6,
        100 * row.stall_fraction);
  }
  for (const BenchmarkRow& row : report.rows) {
    if (row.degraded_fraction == 0 && row.skipped_fraction == 0) continue;
    std::printf("%-8s %.1f%% of the experts' uses at a lower precision, %.1f%% skipped\n",
                row.test.c_str(), 100 * row.degraded_fraction, 100 * row.skipped_fraction);
  }
  if (report.experts != nullptr) {
    ExpertTierStats::Layer sum;
    for (const ExpertTierStats::Layer& layer : report.experts->layers) {
      sum.prefetch_issued += layer.prefetch_issued;
      sum.prefetch_used += layer.prefetch_used;
      sum.prefetch_late += layer.prefetch_late;
      sum.prefetch_wasted += layer.prefetch_wasted;
      sum.prefetch_cancelled += layer.prefetch_cancelled;
      sum.prediction_wanted += layer.prediction_wanted;
      sum.prediction_hits += layer.prediction_hits;
    }
    if (sum.prefetch_issued > 0) {
      std::printf(
          "read ahead: %llu experts, %.1f%% in time, %.1f%% late, %.1f%% never asked for, "
          "%.1f%% withdrawn; gates foretold %.1f%% of the choices\n",
          static_cast<unsigned long long>(sum.prefetch_issued),
          100.0 * sum.prefetch_used / sum.prefetch_issued,
          100.0 * sum.prefetch_late / sum.prefetch_issued,
          100.0 * sum.prefetch_wasted / sum.prefetch_issued,
          100.0 * sum.prefetch_cancelled / sum.prefetch_issued,
          100.0 * sum.prediction_hits /
              static_cast<double>(std::max<uint64_t>(sum.prediction_wanted, 1)));
    }
    for (const ExpertTierStats::Guard& guard : report.experts->guards) {
      if (guard.gain == 0) continue;
      std::printf("%s is %s: without it steps took %.2f times as long\n", guard.name.c_str(),
                  guard.on ? "on" : "off", guard.gain);
    }
  }
  if (report.disk_bandwidth > 0) {
    std::printf("direct reads of the pack: %.2f GB/s\n", report.disk_bandwidth / 1e9);
  }
}

int Run(const Arguments& arguments) {
  BenchmarkOptions options = arguments.options;
  if (!cpu::ParseIsa(arguments.isa.c_str(), &options.isa)) {
    std::fprintf(stderr, "sluice bench: unknown --cpu-isa %s\n", arguments.isa.c_str());
    return kExitUsage;
  }
  options.kv_dtype = ParseKvDType(arguments.kv_dtype);
  options.batch_order = *ParseBatchOrder(arguments.batch_order);  // checked when parsed
  options.max_affinity_delay_seconds = arguments.max_affinity_delay_ms / 1000.0;
  if (!options.kv_dtype && arguments.kv_dtype != "auto") {
    std::fprintf(stderr, "sluice bench: unknown --kv-dtype %s; use auto, f32, f16, bf16 or q8\n",
                 arguments.kv_dtype.c_str());
    return kExitUsage;
  }
  if (isatty(STDERR_FILENO)) {
    options.progress = [](const std::string& what) {
      std::fprintf(stderr, "%s ...\n", what.c_str());
    };
  }
  ModelPathOptions path_options;
  path_options.cache_directory = CacheDirectory(arguments.cache_directory);
  path_options.threads = options.threads;
  path_options.say = [](const std::string& sentence) {
    std::fprintf(stderr, "sluice bench: %s\n", sentence.c_str());
  };
  path_options.progress = ProgressBar("packing");
  const Result<ResolvedModel> resolved = ResolveModelPath(arguments.model, path_options);
  if (!resolved) {
    std::fprintf(stderr, "sluice bench: %s\n", resolved.error().message.c_str());
    return kExitRuntime;
  }
  options.model = resolved->path;
  const Result<LoadedConfig> settings = LoadConfig("", arguments.experts.Values());
  if (!settings) {
    std::fprintf(stderr, "sluice bench: %s\n", settings.error().message.c_str());
    return kExitUsage;
  }
  options.tiers = MakeTierOptions(settings->values.experts);
  options.quality = MakeQualitySettings(settings->values.experts);
  const Result<BenchmarkReport> report = RunBenchmark(options);
  if (!report) {
    std::fprintf(stderr, "sluice bench: %s\n", report.error().message.c_str());
    return report.error().code == ErrorCode::kInvalidArgument ? kExitUsage : kExitRuntime;
  }
  if (arguments.json) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const BenchmarkRow& row : report->rows) rows.push_back(RowToJson(row, *report));
    std::printf("%s\n", rows.dump(2).c_str());
  } else {
    PrintTable(*report);
  }
  return 0;
}

}  // namespace

void AddBench(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  BenchmarkOptions& o = arguments->options;
  CLI::App* command = app.add_subcommand(
      "bench", "Measure tokens per second of prefill and decode, through the engine that serves.");
  command->footer(kManual);
  command
      ->add_option("--model", arguments->model, "A pack, a GGUF file or a Hugging Face directory")
      ->required();
  command
      ->add_option("--precision", o.expert_bits,
                   "Highest precision of a pack's routed experts, in bits; 0: all there is")
      ->capture_default_str();
  command
      ->add_option("--activation-bits", o.activation_bits,
                   "Inputs of bit-nested weights: 8, 16 or 24 bits")
      ->capture_default_str();
  command
      ->add_option("--kv-dtype", arguments->kv_dtype,
                   "Format of keys and values: auto, f32, f16, bf16, q8")
      ->capture_default_str();
  command->add_option("--cache-dir", arguments->cache_directory,
                      "Where packs made of GGUF files are kept; default: the user's cache");
  command->add_option("--prompt", o.prompt, "Tokens of each prompt")->capture_default_str();
  command->add_option("--generate", o.generate, "Tokens generated after each prompt")
      ->capture_default_str();
  command->add_option("--streams", o.streams, "Concurrent requests")->capture_default_str();
  command
      ->add_option("--threads", o.threads, "Compute threads; 0: the cores that the process may use")
      ->capture_default_str();
  command->add_option("--repeats", o.repeats, "Counted runs of each test, after one warm-up")
      ->capture_default_str();
  command
      ->add_option("--batch-order", arguments->batch_order,
                   "Who decodes together where experts come from disk")
      ->check(CLI::IsMember({"auto", "affinity", "longest-queue", "fcfs"}))
      ->capture_default_str();
  command
      ->add_option("--max-affinity-delay-ms", arguments->max_affinity_delay_ms,
                   "Most that a stream waits for others with the same experts")
      ->check(CLI::Range(1, 3600000))
      ->capture_default_str();
  command->add_option("--prefill-chunk", o.prefill_chunk, "Most prompt tokens in one step")
      ->capture_default_str();
  command
      ->add_option("--cpu-isa", arguments->isa,
                   "Kernels to use: auto, scalar, avx2, avx512, avx512bf16, neon")
      ->capture_default_str();
  command->add_option("--seed", o.seed, "Seed of the random prompts")->capture_default_str();
  command->add_option("--temperature", o.temperature,
                      "Of decoding; default: 0 (greedy) with one stream, else 1. Random weights "
                      "repeat themselves when greedy, which flatters caches");
  command->add_flag(
      "--cold", [arguments](int64_t) { arguments->options.warm_up = false; },
      "No warm-up: the first run finds caches cold");
  AddSectionSettings(*command, "experts", arguments->experts);
  command->add_flag("--json", arguments->json, "Print a JSON array instead of the table");
  command->callback([arguments, exit_code] { *exit_code = Run(*arguments); });
}

}  // namespace sluice
