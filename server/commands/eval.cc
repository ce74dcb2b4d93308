// `sluice eval`: perplexity of a text, exact-match accuracy on task files.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/runtime/divergence.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/evaluation.h"
#include "engine/text/tokenizer.h"
#include "server/commands/commands.h"
#include "server/commands/model_path.h"
#include "server/commands/progress.h"
#include "server/commands/settings.h"
#include "server/config/cache_dir.h"

namespace sluice {
namespace {

constexpr const char* kManual =
    R"(--text slides a window over the file; every token but the first is scored once, with at least half a window of
context where there is as much. --tasks reads lines of {"task", "prompt", "answer"}; the greedy continuation of the raw
prompt up to the first line break must equal the answer. --reference compares the predictions on --text, token by
token, with those of another model of the same vocabulary: the mean Kullback-Leibler divergence from it in nats,
the share of positions where both prefer the same token, and the relative error of the logits.
What a --quality costs at most shows with --cache off, where no expert is in memory when it is asked for, and
--step 1, where each token stands for itself as in decoding.

Examples:
  sluice eval --model deploy/demo-model --text tests/data/heldout/stories.txt
  sluice eval --model model.sluice --reference DIR --text FILE --precision 3
  sluice eval --model DIR --reference DIR --text FILE --kv-dtype q8
  sluice eval --model model.sluice --reference DIR --text FILE --quality fast --cache off --step 1
  sluice eval --model DIR --tasks tests/data/tasks/*.jsonl --json)";

struct Arguments {
  std::string model, reference, text, cache_directory, isa = "auto", kv_dtype = "auto";
  std::vector<std::string> tasks;
  CommandLine experts;
  TierOptions tiers;
  QualitySettings quality;
  int step = 0;
  int context = 0, stride = 0, threads = 0, streams = 16, precision = 0, activation_bits = 8;
  bool json = false;
};

Result<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return NotFound("cannot open the text file " + path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

struct OpenedModel {
  PackLease lease;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<Model> model;
};

// The reference is opened at its best: precision, activations and KV cache are settings of --model.
Result<OpenedModel> OpenModel(const Arguments& a, cpu::Isa isa, bool is_reference, int streams) {
  const std::string& name = is_reference ? a.reference : a.model;
  ModelPathOptions path_options;
  path_options.cache_directory = CacheDirectory(a.cache_directory);
  path_options.threads = a.threads;
  path_options.say = [](const std::string& sentence) {
    std::fprintf(stderr, "sluice eval: %s\n", sentence.c_str());
  };
  path_options.progress = ProgressBar("packing");
  Result<ResolvedModel> resolved = ResolveModelPath(name, path_options);
  if (!resolved) return resolved.error();
  const std::filesystem::path& path = resolved->path;
  const Result<ModelFiles> files = ReadModelFiles(path);
  if (!files) return files.error();
  const Result<ModelConfig> config = LoadHfConfig(*files);
  if (!config) return config.error();
  Result<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(*files);
  if (!tokenizer) return tokenizer.error();

  ModelOptions options;
  options.isa = isa;
  options.threads = a.threads;
  options.max_sequences = streams;
  options.max_context = std::min(config->max_positions, std::max(a.context, 2048));
  // Every stream may hold a whole context.
  options.kv_blocks = streams * (options.max_context / kKvBlockTokens + 2);
  if (!is_reference) {
    options.kv_dtype = ParseKvDType(a.kv_dtype);
    options.expert_bits = a.precision;
    options.activation_bits = a.activation_bits;
    options.tiers = a.tiers;
  }
  Result<std::unique_ptr<Model>> model = Model::Load(path, options);
  if (!model) return model.error();
  return OpenedModel{std::move(resolved->lease), *tokenizer, std::move(*model)};
}

Result<Divergence> Compare(const Arguments& a, cpu::Isa isa, OpenedModel& model,
                           const std::string& text) {
  Result<OpenedModel> reference = OpenModel(a, isa, true, 1);
  if (!reference) return WithContext(a.reference, reference.error());
  const std::vector<int32_t> tokens = model.tokenizer->Encode(text);
  if (tokens != reference->tokenizer->Encode(text)) {
    return InvalidArgument("the tokenizers of " + a.model + " and " + a.reference +
                           " split the text differently, so their predictions cannot be compared");
  }
  DivergenceOptions options;
  options.context = a.context;
  options.stride = a.stride;
  options.step_tokens = a.step;
  options.quality = a.quality;
  options.progress = ProgressBar("comparing");
  return EvaluateDivergence(*reference->model, *model.model, tokens, options);
}

// Shares of (token, expert) pairs.
nlohmann::ordered_json ExpertsJson(const ExpertCounts& counts) {
  const auto share = [&](int64_t part) {
    return static_cast<double>(part) /
           static_cast<double>(std::max<int64_t>(counts.assignments, 1));
  };
  return {{"degraded_fraction", share(counts.degraded)},
          {"skipped_fraction", share(counts.skipped)}};
}

Result<nlohmann::ordered_json> Evaluate(const Arguments& a, std::vector<TaskReport::Miss>* misses) {
  cpu::Isa isa = cpu::Isa::kAuto;
  if (!cpu::ParseIsa(a.isa.c_str(), &isa)) return InvalidArgument("unknown --cpu-isa " + a.isa);
  if (a.kv_dtype != "auto" && !ParseKvDType(a.kv_dtype)) {
    return InvalidArgument("unknown --kv-dtype " + a.kv_dtype + "; use auto, f32, f16, bf16 or q8");
  }
  if (a.text.empty() && a.tasks.empty()) return InvalidArgument("give --text, --tasks or both");
  if (!a.reference.empty() && a.text.empty()) return InvalidArgument("--reference needs --text");
  if (a.streams < 1) return InvalidArgument("--streams must be at least 1");
  std::string text;
  if (!a.text.empty()) {
    Result<std::string> read = ReadText(a.text);
    if (!read) return read.error();
    text = std::move(*read);
  }
  std::vector<TaskItem> items;
  for (const std::string& path : a.tasks) {
    Result<std::vector<TaskItem>> read = ReadTaskFile(path);
    if (!read) return read.error();
    items.insert(items.end(), read->begin(), read->end());
  }

  Result<OpenedModel> opened = OpenModel(a, isa, false, a.streams);
  if (!opened) return WithContext(a.model, opened.error());
  const std::shared_ptr<const Tokenizer> tokenizer = opened->tokenizer;

  nlohmann::ordered_json report = {{"model", a.model}};
  if (!a.reference.empty()) {
    Result<Divergence> result = Compare(a, isa, *opened, text);
    if (!result) return result.error();
    report["reference"] = a.reference;
    report["kl_per_token"] = result->kl_per_token;
    report["kl_max"] = result->kl_max;
    report["top1_agreement"] = result->top1_agreement;
    report["logit_error"] = result->logit_error;
    report["reference_experts"] = ExpertsJson(result->experts);
  }
  EngineOptions engine_options;
  engine_options.max_queue = a.streams;
  engine_options.max_running = a.streams;
  engine_options.max_decode_stall_seconds = 0;
  engine_options.prefix_cache = false;
  std::unique_ptr<Engine> engine = Engine::Start(std::move(opened->model), engine_options);
  if (!a.text.empty()) {
    PerplexityOptions options;
    options.context = a.context;
    options.stride = a.stride;
    options.quality = a.quality;
    options.progress = ProgressBar("text ");
    Result<Perplexity> result = EvaluateText(*engine, *tokenizer, text, options);
    if (!result) return WithContext(a.text, result.error());
    report["text"] = a.text;
    report["perplexity"] = result->perplexity;
    report["nll_per_token"] = result->nll_per_token;
    report["tokens"] = result->tokens;
    report["text_experts"] = ExpertsJson(result->experts);
  }
  if (!items.empty()) {
    Result<TaskReport> result =
        EvaluateTasks(*engine, tokenizer, items, a.quality, ProgressBar("tasks"));
    if (!result) return result.error();
    for (const auto& [task, score] : result->tasks) {
      report["accuracy"][task] = score.accuracy();
      report["items"][task] = score.items;
    }
    report["tasks_experts"] = ExpertsJson(result->experts);
    *misses = std::move(result->misses);
  }
  return Result<nlohmann::ordered_json>(boost::system::in_place_value, std::move(report));
}

void PrintExperts(const nlohmann::ordered_json& report, const char* what, const char* key) {
  if (!report.contains(key)) return;
  const double degraded = report[key]["degraded_fraction"],
               skipped = report[key]["skipped_fraction"];
  if (degraded == 0 && skipped == 0) return;
  std::printf("%s: %.1f%% of the experts' uses at a lower precision, %.1f%% skipped\n", what,
              100 * degraded, 100 * skipped);
}

void PrintTable(const nlohmann::ordered_json& report, const std::vector<TaskReport::Miss>& misses) {
  PrintExperts(report, "comparison", "reference_experts");
  PrintExperts(report, "text", "text_experts");
  PrintExperts(report, "tasks", "tasks_experts");
  if (report.contains("perplexity")) {
    std::printf("%s: perplexity %.4f, %.5f nats per token, %lld tokens\n",
                report["text"].get<std::string>().c_str(), report["perplexity"].get<double>(),
                report["nll_per_token"].get<double>(), report["tokens"].get<long long>());
  }
  if (report.contains("kl_per_token")) {
    std::printf(
        "against %s: KL %.6f nats per token (at most %.4f), same first choice %.2f%%, "
        "logits %.5f apart\n",
        report["reference"].get<std::string>().c_str(), report["kl_per_token"].get<double>(),
        report["kl_max"].get<double>(), 100 * report["top1_agreement"].get<double>(),
        report["logit_error"].get<double>());
  }
  if (!report.contains("accuracy")) return;
  std::printf("%-24s %8s %8s\n", "task", "items", "correct");
  for (const auto& [task, accuracy] : report["accuracy"].items()) {
    std::printf("%-24s %8d %7.1f%%\n", task.c_str(), report["items"][task].get<int>(),
                100 * accuracy.get<double>());
  }
  if (!misses.empty()) std::printf("\nsome misses:\n");
  for (const TaskReport::Miss& miss : misses) {
    std::printf("  %s\n    expected %s\n    got      %s\n", miss.prompt.c_str(),
                miss.expected.c_str(), miss.got.c_str());
  }
}

int Run(Arguments& arguments) {
  const Result<LoadedConfig> settings = LoadConfig("", arguments.experts.Values());
  if (!settings) {
    std::fprintf(stderr, "sluice eval: %s\n", settings.error().message.c_str());
    return kExitUsage;
  }
  arguments.tiers = MakeTierOptions(settings->values.experts);
  arguments.quality = MakeQualitySettings(settings->values.experts);
  std::vector<TaskReport::Miss> misses;
  const Result<nlohmann::ordered_json> report = Evaluate(arguments, &misses);
  if (!report) {
    std::fprintf(stderr, "sluice eval: %s\n", report.error().message.c_str());
    return report.error().code == ErrorCode::kInvalidArgument ? kExitUsage : kExitRuntime;
  }
  if (arguments.json) {
    std::printf("%s\n", report->dump(2).c_str());
  } else {
    PrintTable(*report, misses);
  }
  return 0;
}

}  // namespace

void AddEval(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("eval",
                                         "Measure the quality of a model: perplexity of a text "
                                         "file, exact-match accuracy on task files.");
  command->footer(kManual);
  command
      ->add_option("--model", arguments->model, "A pack, a GGUF file or a Hugging Face directory")
      ->required();
  command->add_option("--reference", arguments->reference,
                      "Another model to compare predictions with, on --text");
  command
      ->add_option("--precision", arguments->precision,
                   "Highest precision of a pack's routed experts, in bits; 0: all there is")
      ->capture_default_str();
  command
      ->add_option("--activation-bits", arguments->activation_bits,
                   "Inputs of bit-nested weights: 8, 16 or 24 bits")
      ->capture_default_str();
  command
      ->add_option("--kv-dtype", arguments->kv_dtype,
                   "Format of keys and values: auto, f32, f16, bf16, q8")
      ->capture_default_str();
  command->add_option("--cache-dir", arguments->cache_directory,
                      "Where packs made of GGUF files are kept; default: the user's cache");
  command->add_option("--text", arguments->text, "Text file to score");
  command->add_option("--tasks", arguments->tasks, "Task files (.jsonl), one or more");
  command->add_option("--context", arguments->context, "Tokens per window; 0: up to 2048")
      ->capture_default_str();
  command->add_option("--stride", arguments->stride, "Tokens between windows; 0: half a window")
      ->capture_default_str();
  command
      ->add_option("--threads", arguments->threads,
                   "Compute threads; 0: the cores that the process may use")
      ->capture_default_str();
  command->add_option("--streams", arguments->streams, "Sequences evaluated together")
      ->capture_default_str();
  command
      ->add_option("--cpu-isa", arguments->isa,
                   "Kernels to use: auto, scalar, avx2, avx512, avx512bf16, neon")
      ->capture_default_str();
  command
      ->add_option("--step", arguments->step,
                   "Tokens that --reference computes at once; 0: as many as fit")
      ->capture_default_str();
  AddSectionSettings(*command, "experts", arguments->experts);
  command->add_flag("--json", arguments->json, "Print JSON instead of the table");
  command->callback([arguments, exit_code] { *exit_code = Run(*arguments); });
}

}  // namespace sluice
