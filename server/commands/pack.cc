// `sluice pack`: a Hugging Face directory or a GGUF file as one .sluice file.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/convert/checkpoint.h"
#include "engine/convert/packer.h"
#include "server/commands/commands.h"
#include "server/commands/progress.h"
#include "server/version.h"

namespace sluice {
namespace {

constexpr const char* kManual =
    R"(Without --bits, weights keep what the source has: quantized GGUF blocks are stored without loss, floats as
floats. With --bits, routed experts are quantized so that a prefix of each expert's bytes is that expert at a lower
precision (2, 3, 4, 6, 8 bits); everything else becomes --dense-bits.

The file appears under its name only when it is whole; an interrupted run leaves nothing that loads.

Examples:
  sluice pack olmoe-q4_0.gguf olmoe.sluice
  sluice pack ./OLMoE-1B-7B olmoe.sluice --bits 4
  sluice inspect olmoe.sluice)";

struct Arguments {
  std::string source, target;
  PackOptions options;
  bool json = false;
};

int Run(const Arguments& a) {
  const auto fail = [](const Error& error) {
    std::fprintf(stderr, "sluice pack: %s\n", error.message.c_str());
    return error.code == ErrorCode::kInvalidArgument ? kExitUsage : kExitRuntime;
  };
  const auto source = OpenCheckpoint(a.source);
  if (!source) return fail(source.error());
  PackOptions options = a.options;
  options.tool = std::string("sluice ") + kVersion;
  options.source = std::filesystem::path(a.source).filename().string();
  options.progress = ProgressBar("packing");
  const auto report = PackModel(**source, a.target, options);
  if (!report) return fail(report.error());
  const double rate =
      static_cast<double>(report->source_bytes) / 1e6 / std::max(report->seconds, 1e-9);
  if (a.json) {
    const nlohmann::ordered_json json = {{"source", a.source},
                                         {"source_bytes", report->source_bytes},
                                         {"pack", a.target},
                                         {"pack_bytes", report->pack_bytes},
                                         {"expert_bits", report->expert_bits},
                                         {"dense_bits", report->dense_bits},
                                         {"seconds", report->seconds},
                                         {"source_mb_per_second", rate}};
    std::printf("%s\n", json.dump(2).c_str());
    return 0;
  }
  std::printf("%s: %s\n", a.source.c_str(), (*source)->description().c_str());
  std::printf("%s: %.1f MB from %.1f MB of weights in %.1f s (%.0f MB/s)\n", a.target.c_str(),
              report->pack_bytes / 1e6, report->source_bytes / 1e6, report->seconds, rate);
  std::printf("bits per weight, scales included: experts %.2f, everything else %.2f\n",
              report->expert_bits, report->dense_bits);
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
                   "Bits per weight of routed experts, 2 to 8; 0: as the source has them")
      ->capture_default_str();
  command
      ->add_option("--dense-bits", a->options.dense_bits,
                   "Bits of attention, embeddings, output head and shared experts: 2, 3, 4, 6, 8; "
                   "0: as the source has them")
      ->capture_default_str();
  command
      ->add_option("--threads", a->options.threads,
                   "Threads; 0: the cores that the process may use")
      ->capture_default_str();
  command->add_flag("--json", a->json, "Print JSON instead of the summary");
  command->callback([a, exit_code] { *exit_code = Run(*a); });
}

}  // namespace sluice
