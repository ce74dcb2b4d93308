// `sluice trace`: record, synthesize and replay the routing of models.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>

#include "engine/experts/synthetic_trace.h"
#include "server/commands/commands.h"
#include "server/commands/replay_report.h"
#include "server/commands/trace_record.h"

namespace sluice {
namespace {

constexpr const char* kReplayManual =
    R"(Policies: those of --expert-policy, "optimal" (Belady: what the best cache of this size would have hit; added by
itself) and "none" (nothing is kept). Budgets are shares of the bytes of all experts. With --horizon above 0 predictions
for so many layers ahead are used, to choose what leaves and to read ahead; --predictor says whose: "recorded" in the
trace, or previous-token, prior: predicted anew from the trace. Time is simulated: --disk, --latency-us, --dense-us per
layer, --expert-us per expert.

Example:
  sluice trace replay day.trace --policy lru,next-use --budget 75%,50%,25% --disk 2 --plot hits.svg)";

struct ReplayArguments {
  std::string trace, plot, title, prior;
  std::vector<std::string> policies = {"auto"};
  std::vector<std::string> budgets = {"75%", "50%", "25%"};
  ReplayOptions options;
  double disk_gb = 2, latency_us = 100, dense_us = 100, expert_us = 50;
  bool json = false, no_read_ahead = false;
};

int Fail(const char* command, const Error& error) {
  std::fprintf(stderr, "sluice trace %s: %s\n", command, error.message.c_str());
  return error.code == ErrorCode::kInvalidArgument ? kExitUsage : kExitRuntime;
}

// "50%" or "0.5".
Result<double> ParseShare(const std::string& text) {
  const bool percent = !text.empty() && text.back() == '%';
  std::istringstream in(percent ? text.substr(0, text.size() - 1) : text);
  double value = 0;
  if (!(in >> value) || !in.eof()) {
    return InvalidArgument("\"" + text + "\" is no share; write 50% or 0.5");
  }
  return percent ? value / 100 : value;
}

Result<std::vector<ReplayRow>> ReplayAll(ReplayArguments a, const Trace& trace) {
  a.options.disk_bytes_per_second = a.disk_gb * 1e9;
  a.options.disk_latency_seconds = a.latency_us * 1e-6;
  a.options.dense_seconds = a.dense_us * 1e-6;
  a.options.expert_seconds = a.expert_us * 1e-6;
  a.options.read_ahead = !a.no_read_ahead;
  if (!a.prior.empty()) {
    const Result<Trace> seen = ReadTrace(a.prior);
    if (!seen) return seen.error();
    if (seen->model.space != trace.model.space) {
      return InvalidArgument(a.prior + " is a trace of another model");
    }
    a.options.prior = CountFrequency(*seen);
  }
  a.policies.emplace_back("optimal");
  std::vector<ReplayRow> rows;
  for (const std::string& budget : a.budgets) {
    const Result<double> share = ParseShare(budget);
    if (!share) return share.error();
    for (const std::string& policy : a.policies) {
      ReplayRow row = {a.options, {}};
      row.options.policy = policy;
      row.options.budget = *share;
      // Without reading ahead, whatever the others do: its hit rate is the yardstick.
      if (policy == "optimal") row.options.horizon = 0;
      const Result<ReplayResult> result = Replay(trace, row.options);
      if (!result) return result.error();
      row.result = *result;
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

int RunReplay(const ReplayArguments& a) {
  const Result<Trace> trace = ReadTrace(a.trace);
  if (!trace) return Fail("replay", trace.error());
  if (trace->truncated || trace->lost_steps > 0) {
    std::fprintf(stderr, "sluice trace replay: %s%s, %lld steps were lost while recording\n",
                 a.trace.c_str(), trace->truncated ? " was cut short" : "",
                 static_cast<long long>(trace->lost_steps));
  }
  const Result<std::vector<ReplayRow>> rows = ReplayAll(a, *trace);
  if (!rows) return Fail("replay", rows.error());
  if (!a.plot.empty()) {
    std::ofstream file(a.plot, std::ios::binary);
    file << ReplayPlot(a.title.empty() ? trace->model.name : a.title, *rows);
    if (!file.flush()) return Fail("replay", IoError("cannot write " + a.plot));
  }
  if (a.json) {
    std::printf("%s\n", ReplayJson(*trace, *rows)
                            .dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
                            .c_str());
  } else {
    std::printf("%s", ReplayTable(*rows).c_str());
  }
  return 0;
}

void AddReplay(CLI::App& trace, int* exit_code) {
  auto a = std::make_shared<ReplayArguments>();
  CLI::App* command =
      trace.add_subcommand("replay", "Run cache policies over a trace, beside the optimum.");
  command->footer(kReplayManual);
  command->add_option("TRACE", a->trace, "Trace file")->required();
  command->add_option("--policy", a->policies, "Policies, separated by commas")->delimiter(',');
  command->add_option("--budget", a->budgets, "Shares of the experts, separated by commas")
      ->delimiter(',');
  command->add_option("--horizon", a->options.horizon, "Layers ahead that predictions are used for")
      ->capture_default_str();
  command->add_option("--predictor", a->options.predictor, "Whose predictions")
      ->capture_default_str();
  command
      ->add_option("--least-probability", a->options.least_probability,
                   "Of an expert that is read ahead")
      ->capture_default_str();
  command->add_flag("--no-read-ahead", a->no_read_ahead,
                    "Predictions choose what leaves, nothing else");
  command->add_option("--prior", a->prior, "A trace that tells how often experts are used");
  command->add_option("--warm-steps", a->options.warm_steps, "First steps that do not count")
      ->capture_default_str();
  command->add_option("--disk", a->disk_gb, "Disk bandwidth in GB/s")->capture_default_str();
  command->add_option("--latency-us", a->latency_us, "Of a read")->capture_default_str();
  command->add_option("--dense-us", a->dense_us, "Compute per layer besides its experts")
      ->capture_default_str();
  command->add_option("--expert-us", a->expert_us, "Compute per expert used")
      ->capture_default_str();
  command->add_option("--plot", a->plot, "Writes hit rate over budget as SVG");
  command->add_option("--title", a->title, "Of the plot; default: the model's name");
  command->add_flag("--json", a->json, "Print JSON instead of the table");
  command->callback([a, exit_code] { *exit_code = RunReplay(*a); });
}

int RunRecord(const TraceRecordOptions& options, bool json) {
  const Result<TraceRecordReport> report = RecordTrace(options);
  if (!report) return Fail("record", report.error());
  const nlohmann::ordered_json out = {{"trace", options.out},
                                      {"documents", report->documents},
                                      {"tokens", report->tokens},
                                      {"steps", report->steps},
                                      {"lost_steps", report->lost_steps},
                                      {"file_bytes", report->file_bytes}};
  if (json) {
    std::printf("%s\n", out.dump(2).c_str());
  } else {
    std::printf("%s: %lld documents, %lld tokens, %lld steps, %llu bytes\n", options.out.c_str(),
                static_cast<long long>(report->documents), static_cast<long long>(report->tokens),
                static_cast<long long>(report->steps),
                static_cast<unsigned long long>(report->file_bytes));
  }
  return 0;
}

void AddRecord(CLI::App& trace, int* exit_code) {
  auto o = std::make_shared<TraceRecordOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = trace.add_subcommand(
      "record", "Run a model over texts, prompts and then token by token, and write its routing.");
  command->add_option("--model", o->model, "A pack, a GGUF file or a Hugging Face directory")
      ->required();
  command->add_option("--text", o->texts, "Text files")->required();
  command->add_option("--out", o->out, "Trace file")->required();
  command->add_option("--prompt-tokens", o->prompt_tokens, "Of each document, prefilled")
      ->capture_default_str();
  command->add_option("--decode-tokens", o->decode_tokens, "Of each document, one per step")
      ->capture_default_str();
  command->add_option("--documents", o->documents, "Per text; 0: all it holds")
      ->capture_default_str();
  command->add_option("--streams", o->streams, "Documents at once")->capture_default_str();
  command->add_option("--batch-tokens", o->batch_tokens, "Tokens of a prefill step")
      ->capture_default_str();
  command->add_option("--threads", o->threads, "Compute threads; 0: all cores")
      ->capture_default_str();
  command->add_option("--cpu-isa", o->isa, "Kernels to use")->capture_default_str();
  command->add_option("--cache-dir", o->cache_directory,
                      "Where packs made of GGUF files are kept; default: the user's cache");
  command->add_flag("--json", *json, "Print JSON instead of a sentence");
  command->callback([o, json, exit_code] { *exit_code = RunRecord(*o, *json); });
}

void AddSynthesize(CLI::App& trace, int* exit_code) {
  struct Arguments {
    SyntheticTraceOptions options;
    std::string out;
    uint64_t expert_bytes = 4 << 20;
  };
  auto a = std::make_shared<Arguments>();
  SyntheticTraceOptions& o = a->options;
  o.model.name = "synthetic";
  o.model.space = {16, 64};
  o.model.experts_per_token = 8;
  CLI::App* command = trace.add_subcommand(
      "synthesize", "Write a trace of a model that does not exist, with known skew and locality.");
  command->add_option("--out", a->out, "Trace file")->required();
  command->add_option("--layers", o.model.space.layers)->capture_default_str();
  command->add_option("--experts", o.model.space.experts_per_layer, "Per layer")
      ->capture_default_str();
  command->add_option("--experts-per-token", o.model.experts_per_token)->capture_default_str();
  command->add_option("--expert-bytes", a->expert_bytes)->capture_default_str();
  command->add_option("--documents", o.documents)->capture_default_str();
  command->add_option("--prompt-tokens", o.prompt_tokens)->capture_default_str();
  command->add_option("--decode-tokens", o.decode_tokens)->capture_default_str();
  command->add_option("--skew", o.skew, "Popularity falls with its rank to this power")
      ->capture_default_str();
  command
      ->add_option("--locality", o.locality,
                   "Probability that an expert comes from those last used by the layer")
      ->capture_default_str();
  command->add_option("--recency-depth", o.recency_depth, "Mean recency rank of these")
      ->capture_default_str();
  command->add_option("--horizon", o.horizon, "Layers ahead that are predicted")
      ->capture_default_str();
  command->add_option("--recall", o.recall, "Of predictions one layer ahead")
      ->capture_default_str();
  command->add_option("--seed", o.seed)->capture_default_str();
  command->callback([a, exit_code] {
    a->options.model.expert_bytes = {a->expert_bytes};
    const Result<void> written = WriteSyntheticTrace(a->out, a->options);
    *exit_code = written ? 0 : Fail("synthesize", written.error());
  });
}

}  // namespace

void AddTrace(CLI::App& app, int* exit_code) {
  CLI::App* command =
      app.add_subcommand("trace", "Record which experts a model uses, and replay cache policies.");
  command->require_subcommand(1);
  AddRecord(*command, exit_code);
  AddReplay(*command, exit_code);
  AddSynthesize(*command, exit_code);
}

}  // namespace sluice
