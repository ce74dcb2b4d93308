// `sluice pack`: a Hugging Face directory or a GGUF file as one .sluice file.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "engine/base/file.h"
#include "engine/convert/checkpoint.h"
#include "engine/convert/layer_calibrator.h"
#include "engine/convert/packer.h"
#include "server/commands/calibration_text.h"
#include "server/commands/commands.h"
#include "server/commands/progress.h"
#include "server/version.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManual =
    R"(Without --bits, weights keep what the source has: quantized GGUF blocks are stored without loss, floats as
floats. With --bits, routed experts are quantized so that a prefix of each expert's bytes is that expert at a lower
precision (2, 3, 4, 6, 8 bits), and everything else becomes --dense-bits.

Quantizing first runs the model over a text to learn which inputs matter to each matrix and which experts matter to
the model; that needs memory for the whole model in its own precision. --bits is then an average: experts that matter
more get more bits, unless --uniform. --calibration none does without.

The file appears under its name only when it is whole; an interrupted run leaves nothing that loads.

Examples:
  sluice pack olmoe-q4_0.gguf olmoe.sluice
  sluice pack ./OLMoE-1B-7B olmoe.sluice --bits 3.5
  sluice pack ./OLMoE-1B-7B olmoe.sluice --bits 8 --uniform    # one file for 2, 3, 4, 6 and 8 bits
  sluice inspect olmoe.sluice)";

constexpr const char* kShippedText = "default";
constexpr const char* kNoText = "none";
constexpr uint64_t kMaxTextBytes = uint64_t{256} << 20;

struct Arguments {
  std::string source, target, calibration = kShippedText;
  PackOptions options;
  int calibration_tokens = 256;
  bool no_compensation = false;
  bool json = false;
};

// A file that is gone with this object.
class TemporaryFile {
 public:
  explicit TemporaryFile(fs::path path) : path_(std::move(path)) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

Result<std::string> CalibrationTextOf(const Arguments& a) {
  if (a.calibration == kShippedText) return std::string(CalibrationText());
  return ReadTextFile(a.calibration, kMaxTextBytes);
}

// Runs the source over the text. `loadable` keeps what the model is loaded from while it is needed:
// the directory itself, or a pack of a GGUF file without loss.
Result<std::unique_ptr<LayerCalibrator>> Calibrate(const Arguments& a, const Checkpoint& source,
                                                   const PackOptions& options,
                                                   const TemporaryFile& loadable) {
  const Result<std::string> text = CalibrationTextOf(a);
  if (!text) return text.error();
  fs::path model = a.source;
  if (!fs::is_directory(model)) {
    PackOptions keep;
    keep.threads = options.threads;
    keep.progress = [&](const std::string&, double fraction) {
      options.progress("reading the source", fraction);
    };
    if (auto made = PackModel(source, loadable.path(), keep); !made) return made.error();
    model = loadable.path();
  }
  LayerCalibratorOptions calibrator;
  calibrator.threads = options.threads;
  calibrator.sequence_tokens = a.calibration_tokens;
  calibrator.progress = options.progress;
  return LayerCalibrator::Run(model, *text, calibrator);
}

Result<PackReport> MakePack(const Arguments& a, const Checkpoint& source) {
  PackOptions options = a.options;
  options.tool = std::string("sluice ") + kVersion;
  options.source_name = fs::path(a.source).filename().string();
  options.progress = PhaseBars();
  options.compensate = !a.no_compensation;
  const TemporaryFile loadable(a.target + ".calibration.sluice");
  std::unique_ptr<LayerCalibrator> calibration;
  const bool quantizes = options.expert_bits != kKeepBits || options.dense_bits != 0;
  if (quantizes && a.calibration != kNoText) {
    auto made = Calibrate(a, source, options, loadable);
    if (!made) return WithContext("calibration", made.error());
    calibration = std::move(*made);
    options.calibration = calibration.get();
    options.calibration_name =
        a.calibration == kShippedText ? "the text that sluice carries" : a.calibration;
  }
  return PackModel(source, a.target, options);
}

nlohmann::ordered_json ReportJson(const Arguments& a, const PackReport& report, double rate) {
  nlohmann::ordered_json json = {{"source", a.source},
                                 {"source_bytes", report.source_bytes},
                                 {"pack", a.target},
                                 {"pack_bytes", report.pack_bytes},
                                 {"expert_bits", report.expert_bits},
                                 {"dense_bits", report.dense_bits},
                                 {"seconds", report.seconds},
                                 {"source_mb_per_second", rate}};
  if (!report.allocation.bits.empty()) {
    json["allocated_bits"] = report.allocation.average_bits;
    json["super_experts"] = report.allocation.super_experts.size();
  }
  return json;
}

int Run(const Arguments& a) {
  const auto fail = [](const Error& error) {
    std::fprintf(stderr, "sluice pack: %s\n", error.message.c_str());
    return error.code == ErrorCode::kInvalidArgument ? kExitUsage : kExitRuntime;
  };
  const auto source = OpenCheckpoint(a.source);
  if (!source) return fail(source.error());
  const auto report = MakePack(a, **source);
  if (!report) return fail(report.error());
  const double rate =
      static_cast<double>(report->source_bytes) / 1e6 / std::max(report->seconds, 1e-9);
  if (a.json) {
    std::printf("%s\n", ReportJson(a, *report, rate).dump(2).c_str());
    return 0;
  }
  std::printf("%s: %s\n", a.source.c_str(), (*source)->description().c_str());
  std::printf("%s: %.1f MB from %.1f MB of weights in %.1f s (%.0f MB/s)\n", a.target.c_str(),
              report->pack_bytes / 1e6, report->source_bytes / 1e6, report->seconds, rate);
  std::printf("bits per weight, scales included: experts %.2f, everything else %.2f\n",
              report->expert_bits, report->dense_bits);
  if (!report->allocation.bits.empty()) {
    std::printf("allocated %.2f bits per expert on average; %zu super experts kept high\n",
                report->allocation.average_bits, report->allocation.super_experts.size());
  }
  return 0;
}

}  // namespace

void AddPack(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "pack", "Make one .sluice file of a Hugging Face directory or a GGUF file.");
  command->footer(kManual);
  command->add_option("source", a->source, "Hugging Face directory or .gguf file")->required();
  command->add_option("target", a->target, "The pack to write")->required();
  command
      ->add_option("--bits", a->options.expert_bits,
                   "Average bits per weight of routed experts, 2 to 8; 0: as the source has them")
      ->capture_default_str();
  command
      ->add_option("--dense-bits", a->options.dense_bits,
                   "Bits of attention, embeddings, output head and shared experts: 2, 3, 4, 6, 8; "
                   "0: as the source has them")
      ->capture_default_str();
  command
      ->add_option("--calibration", a->calibration,
                   "Text file to learn from; \"default\": the text that sluice carries, \"none\": "
                   "none")
      ->capture_default_str();
  command
      ->add_option("--calibration-tokens", a->calibration_tokens,
                   "The text is read in sequences of this many tokens")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  command->add_flag("--uniform", a->options.uniform, "The same bits for every expert");
  command->add_option("--alpha", a->options.allocation.alpha, "x");
  command->add_option("--beta", a->options.allocation.beta, "x");
  command->add_option("--gamma", a->options.allocation.gamma, "x");
  command->add_flag("--across", a->options.allocation.across_layers, "x");
  command->add_flag("--no-compensation", a->no_compensation,
                    "Round every weight on its own (for comparisons)");
  command
      ->add_option("--threads", a->options.threads,
                   "Threads; 0: the cores that the process may use")
      ->capture_default_str();
  command->add_flag("--json", a->json, "Print JSON instead of the summary");
  command->callback([a, exit_code] { *exit_code = Run(*a); });
}

}  // namespace sluice
