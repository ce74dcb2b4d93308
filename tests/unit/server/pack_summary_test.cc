#include "server/commands/pack_summary.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (fs::temp_directory_path() / "pack_summary-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~ScratchDirectory() { fs::remove_all(path_); }
  fs::path file(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

constexpr const char* kConfig = R"({"model_type": "olmoe", "hidden_size": 64, "vocab_size": 32,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 2,
  "num_experts_per_tok": 1, "intermediate_size": 32})";

WeightLayout Matrix(int bits, int rows, int cols) {
  WeightLayout layout;
  layout.form = WeightForm::kNested;
  layout.nested = {ScaleKind::kU8Min, 32, static_cast<uint8_t>(bits)};
  layout.rows = rows;
  layout.cols = cols;
  return layout;
}

WeightLayout Floats(int rows, int cols) {
  WeightLayout layout;
  layout.rows = rows;
  layout.cols = cols;
  return layout;
}

// Zeros of a layout's planes; the spans point into `bytes`.
std::vector<std::span<const std::byte>> Zeros(const WeightLayout& layout,
                                              std::vector<std::byte>& bytes) {
  bytes.resize(std::max(bytes.size(), layout.bytes()));
  std::vector<std::span<const std::byte>> planes;
  for (int i = 0; i < layout.planes(); ++i) {
    planes.push_back(std::span(bytes).first(layout.plane_bytes(i)));
  }
  return planes;
}

// An embedding, a norm, a foreign tensor; expert (0, 1) has 8 bits, the others 4 with a down of 3.
void WritePack(const fs::path& path, const char* config) {
  Result<PackWriter> writer = PackWriter::Create(path, 2, 2, 512);
  REQUIRE(writer);
  std::vector<std::byte> bytes(1 << 16);
  const auto add = [&](const char* name, const WeightLayout& layout) {
    REQUIRE(writer->AddTensor(name, layout, Zeros(layout, bytes)));
  };
  add("model.embed_tokens.weight", Floats(32, 64));
  add("model.layers.1.input_layernorm.weight", Floats(1, 64));
  add("model.layers.1.self_attn.q_proj.weight", Matrix(6, 64, 64));
  add("foreign", Floats(1, 1));
  for (int layer = 0; layer < 2; ++layer) {
    for (int i = 0; i < 2; ++i) {
      const bool high = layer == 0 && i == 1;
      const int bits = high ? 8 : 4;
      const WeightLayout down = Matrix(high ? 8 : 3, 64, 32);
      REQUIRE(writer->AddExpert(layer, i, {Matrix(bits, 32, 64), Matrix(bits, 32, 64), down},
                                {Zeros(Matrix(bits, 32, 64), bytes),
                                 Zeros(Matrix(bits, 32, 64), bytes), Zeros(down, bytes)}));
    }
  }
  PackMetadata metadata;
  metadata.files["config.json"] = config;
  metadata.provenance = {{"source", "a test"}};
  REQUIRE(writer->Finish(metadata));
}

TEST_CASE("The summary of a pack adds up", "[inspect]") {
  const ScratchDirectory directory;
  WritePack(directory.file("x.sluice"), kConfig);
  const Result<PackReader> pack = PackReader::Open(directory.file("x.sluice"));
  REQUIRE(pack);
  const auto report = PackSummary(*pack);
  CHECK(report["model"]["family"] == "olmoe");
  CHECK(report["file_bytes"] == fs::file_size(directory.file("x.sluice")));
  CHECK(report["provenance"]["source"] == "a test");
  CHECK(report["files"]["config.json"] == std::string(kConfig).size());

  const auto& experts = report["totals"]["experts"];
  CHECK(experts["count"] == 4);
  CHECK(experts["weights"] == 4 * 3 * 32 * 64);
  CHECK(experts["bits"] == nlohmann::ordered_json({{"4/4/3", 3}, {"8", 1}}));
  CHECK(report["totals"]["weights"] == 4 * 3 * 32 * 64 + 32 * 64 + 64 + 64 * 64 + 1);

  std::vector<std::string> kinds;
  uint64_t kind_bytes = 0;
  for (const auto& kind : report["kinds"]) {
    kinds.push_back(kind["kind"]);
    kind_bytes += kind["bytes"].get<uint64_t>();
  }
  CHECK(kinds == std::vector<std::string>{"embedding", "attention", "norms", "other"});
  CHECK(kind_bytes == report["totals"]["dense"]["bytes"]);
  CHECK(report["totals"]["bytes"] == kind_bytes + experts["bytes"].get<uint64_t>());

  // The ladder ends at everything, and each step adds what it says.
  std::vector<int> precisions;
  uint64_t bytes = 0;
  for (const auto& row : report["ladder"]) {
    precisions.push_back(row["precision"]);
    bytes += row["added_bytes"].get<uint64_t>();
    CHECK(row["expert_bytes"] == bytes);
  }
  CHECK(precisions == std::vector<int>{2, 3, 4, 6, 8});
  CHECK(bytes == experts["bytes"]);
  CHECK(report["ladder"][0]["expert_bytes"] == 4 * pack->FindExpert(0, 0)->bytes(1));
  // Only the one of 8 bits has more than 4.
  CHECK(report["ladder"][3]["added_bytes"] == pack->FindExpert(0, 1)->sets[3].bytes);

  REQUIRE(report["layers"].size() == 2);
  CHECK(report["layers"][0]["dense_bytes"] == 0);
  CHECK(report["layers"][0]["experts"]["bits"].size() == 2);
  CHECK(report["layers"][1]["dense_bytes"] == 64 * 4 + Matrix(6, 64, 64).bytes());
  CHECK(report["layers"][1]["experts"]["bits"].size() == 1);
}

TEST_CASE("A pack of a model that is not served is summed up all the same", "[inspect]") {
  const ScratchDirectory directory;
  WritePack(directory.file("x.sluice"), R"({"model_type": "unheard-of"})");
  const Result<PackReader> pack = PackReader::Open(directory.file("x.sluice"));
  REQUIRE(pack);
  const auto report = PackSummary(*pack);
  CHECK(report["model"]["error"].get<std::string>().find("unheard-of") != std::string::npos);
  REQUIRE(report["kinds"].size() == 1);
  CHECK(report["kinds"][0]["kind"] == "other");
  CHECK(report["layers"].size() == 2);
}

TEST_CASE("Verification names every damaged part and goes on", "[inspect]") {
  const ScratchDirectory directory;
  const fs::path path = directory.file("x.sluice");
  WritePack(path, kConfig);
  const Result<PackReader> pack = PackReader::Open(path);
  REQUIRE(pack);
  std::vector<double> fractions;
  const auto progress = [&](double fraction) { fractions.push_back(fraction); };
  CHECK(DamagedParts(*pack, progress).empty());
  REQUIRE_FALSE(fractions.empty());
  CHECK(std::is_sorted(fractions.begin(), fractions.end()));
  CHECK(fractions.back() == 1);

  const int file = open(path.c_str(), O_WRONLY);
  const PackExpert& expert = *pack->FindExpert(1, 0);
  for (const uint64_t at : {pack->FindTensor("foreign")->offset, expert.offset + expert.bytes(2)}) {
    REQUIRE(pwrite(file, "x", 1, static_cast<off_t>(at)) == 1);
  }
  close(file);
  const std::vector<std::string> damaged = DamagedParts(*pack, progress);
  REQUIRE(damaged.size() == 2);
  CHECK(damaged[0].find("tensor \"foreign\"") != std::string::npos);
  CHECK(damaged[1].find("plane set 2 of expert 0 of layer 1") != std::string::npos);
}

}  // namespace
}  // namespace sluice
