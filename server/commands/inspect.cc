// `sluice inspect`: what a pack holds, and whether it is whole.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "server/commands/commands.h"
#include "server/commands/pack_summary.h"
#include "server/commands/progress.h"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kManual =
    R"(Prints where the pack came from, the model, what each precision of its ladder takes in memory, how the bits are
spread over experts, and the bytes of every kind of weight and of every layer. Bits per weight count everything that is
read for a weight, scales and padding included. Reading the header, the index and the metadata verifies them; --verify
also reads every weight and compares it with its checksum.

Exit status: 0 the pack is sound as far as it was read; 1 it is damaged, or cannot be read; each damaged tensor, or
expert and plane set, is named on standard error.

Examples:
  sluice inspect olmoe.sluice
  sluice inspect olmoe.sluice --verify
  sluice inspect olmoe.sluice --json | jq .totals.experts.bits_per_weight)";

struct Arguments {
  std::string pack;
  bool verify = false, json = false;
};

// "1.2 GB", "34.5 MB", "678 B".
std::string Size(const Json& bytes) {
  const double value = bytes.get<double>();
  char text[32];
  if (value >= 1e9) {
    std::snprintf(text, sizeof(text), "%.2f GB", value / 1e9);
  } else if (value >= 1e6) {
    std::snprintf(text, sizeof(text), "%.1f MB", value / 1e6);
  } else if (value >= 1e4) {
    std::snprintf(text, sizeof(text), "%.1f kB", value / 1e3);
  } else {
    std::snprintf(text, sizeof(text), "%.0f B", value);
  }
  return text;
}

// "4 x 1000, 6 x 24".
std::string Counts(const Json& names) {
  std::string text;
  for (const auto& [name, count] : names.items()) {
    if (!text.empty()) text += ", ";
    text += name;
    if (names.size() > 1) text += " x " + std::to_string(count.get<size_t>());
  }
  return text;
}

// Foreign text for a terminal: control characters could move its cursor.
std::string Printable(const std::string& text, size_t limit) {
  std::string result;
  for (const char c : text.substr(0, limit)) {
    result += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  return result + (text.size() > limit ? "..." : "");
}

void PrintHead(const Json& report) {
  std::printf("%s: pack version %u, %s, plane sets aligned to %zu bytes\n",
              report["path"].get<std::string>().c_str(), report["version"].get<unsigned>(),
              Size(report["file_bytes"]).c_str(), report["align"].get<size_t>());
  const Json& model = report["model"];
  if (model.contains("error")) {
    std::printf("model       %s\n", model["error"].get<std::string>().c_str());
  } else {
    std::printf("model       %s, %d layers, hidden %d, vocabulary %d, up to %d tokens\n",
                model["family"].get<std::string>().c_str(), model["layers"].get<int>(),
                model["hidden"].get<int>(), model["vocab"].get<int>(),
                model["max_positions"].get<int>());
    std::printf("experts     %d per layer, %d per token, %d wide", model["experts"].get<int>(),
                model["experts_per_token"].get<int>(), model["expert_intermediate"].get<int>());
    const int shared = model["shared_intermediate"].get<int>();
    if (shared > 0) std::printf(", and a shared one, %d wide", shared);
    std::printf("\n");
  }
  const Json& totals = report["totals"];
  std::printf("weights     %.2f million in %s, %.3f bits per weight\n",
              totals["weights"].get<double>() / 1e6, Size(totals["bytes"]).c_str(),
              totals["bits_per_weight"].get<double>());
  std::string files;
  for (const auto& [name, bytes] : report["files"].items()) {
    files += (files.empty() ? "" : ", ") + Printable(name, 80) + " " + Size(bytes);
  }
  std::printf("files       %s\n", files.empty() ? "none" : files.c_str());
}

void PrintProvenance(const Json& provenance) {
  if (!provenance.is_object() || provenance.empty()) return;
  std::printf("\nprovenance\n");
  constexpr size_t kLongest = 160;
  for (const auto& [name, value] : provenance.items()) {
    const std::string text = value.is_string()
                                 ? value.get<std::string>()
                                 : value.dump(-1, ' ', false, Json::error_handler_t::replace);
    std::printf("  %-20s %s\n", Printable(name, 40).c_str(), Printable(text, kLongest).c_str());
  }
}

void PrintLadder(const Json& report) {
  const Json& experts = report["totals"]["experts"];
  if (experts["count"] == 0) return;
  if (!report["ladder"].empty()) {
    std::printf("\nexperts by precision\n  %-10s %14s %14s %12s\n", "precision", "bytes", "added",
                "bits/weight");
  }
  for (const Json& row : report["ladder"]) {
    std::printf("  %-10d %14s %14s %12.3f\n", row["precision"].get<int>(),
                Size(row["expert_bytes"]).c_str(), Size(row["added_bytes"]).c_str(),
                row["bits_per_weight"].get<double>());
  }
  std::printf("\nbit allocation\n  %-10s %14s %14s\n", "bits", "experts", "share");
  for (const auto& [bits, count] : experts["bits"].items()) {
    const double share = count.get<double>() / experts["count"].get<double>();
    std::printf("  %-10s %14zu %13.1f%%   %.*s\n", bits.c_str(), count.get<size_t>(), 100 * share,
                static_cast<int>(share * 40 + 0.5), "########################################");
  }
}

void PrintKinds(const Json& report) {
  std::printf("\n%-16s %8s %14s %12s   formats\n", "kind", "count", "bytes", "bits/weight");
  const auto row = [](const char* kind, const Json& sum, const char* count, const Json& names) {
    std::printf("%-16s %8zu %14s %12.3f   %s\n", kind, sum[count].get<size_t>(),
                Size(sum["bytes"]).c_str(), sum["bits_per_weight"].get<double>(),
                Counts(names).c_str());
  };
  for (const Json& kind : report["kinds"]) {
    row(kind["kind"].get<std::string>().c_str(), kind, "tensors", kind["formats"]);
  }
  const Json& experts = report["totals"]["experts"];
  if (experts["count"] != 0) row("experts", experts, "count", experts["bits"]);
}

void PrintLayers(const Json& report) {
  if (report["layers"].empty()) return;
  std::printf("\n%-6s %12s %9s %12s %12s   experts by bits\n", "layer", "dense", "experts", "bytes",
              "bits/weight");
  for (const Json& layer : report["layers"]) {
    const Json& experts = layer["experts"];
    std::printf("%-6d %12s %9zu %12s %12.3f   %s\n", layer["layer"].get<int>(),
                Size(layer["dense_bytes"]).c_str(), experts["count"].get<size_t>(),
                Size(experts["bytes"]).c_str(), experts["bits_per_weight"].get<double>(),
                Counts(experts["bits"]).c_str());
  }
}

int Run(const Arguments& arguments) {
  const Result<PackReader> pack = PackReader::Open(arguments.pack);
  if (!pack) {
    std::fprintf(stderr, "sluice inspect: %s\n", pack.error().message.c_str());
    return kExitRuntime;
  }
  Json report = PackSummary(*pack);
  std::vector<std::string> damaged;
  if (arguments.verify) {
    damaged = DamagedParts(*pack, ProgressBar("verifying"));
    report["verified"] = damaged.empty();
    report["damaged"] = damaged;
  }
  if (arguments.json) {
    std::printf("%s\n", report.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    PrintHead(report);
    PrintProvenance(report["provenance"]);
    PrintLadder(report);
    PrintKinds(report);
    PrintLayers(report);
    if (arguments.verify && damaged.empty()) std::printf("\nverified: every checksum is right\n");
  }
  for (const std::string& sentence : damaged) {
    std::fprintf(stderr, "sluice inspect: %s\n", sentence.c_str());
  }
  return damaged.empty() ? 0 : kExitRuntime;
}

}  // namespace

void AddInspect(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Show what a pack holds: model, precisions, bit allocation; verify it.");
  command->footer(kManual);
  command->add_option("PACK", arguments->pack, "Pack (.sluice)")->required();
  command->add_flag("--verify", arguments->verify, "Read everything and verify every checksum");
  command->add_flag("--json", arguments->json, "Print JSON instead of the tables");
  command->callback([arguments, exit_code] { *exit_code = Run(*arguments); });
}

}  // namespace sluice
