// What a checkpoint that does not fit its configuration is told, and what a loaded model says of
// itself.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/model/kv_cache.h"
#include "tests/support/catch.h"
#include "tests/unit/model/golden.h"

namespace sluice::testing {
namespace {

using nlohmann::json;

// A copy of a golden in a directory of its own, whose weights file can be edited.
class Copy {
 public:
  explicit Copy(const std::string& golden) {
    std::string pattern = (std::filesystem::temp_directory_path() / "sluice_load_XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    const auto source = std::filesystem::path(SLUICE_TEST_DATA) / "models" / golden;
    std::filesystem::copy_file(source / "config.json", directory / "config.json");
    std::ifstream file(source / "model.safetensors", std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    uint64_t length = 0;
    REQUIRE(all.size() > sizeof(length));
    std::memcpy(&length, all.data(), sizeof(length));
    header = json::parse(all.substr(8, length));
    data = all.substr(8 + length);
    Save();
  }
  ~Copy() { std::filesystem::remove_all(directory); }

  void Save() {
    const std::string text = header.dump();
    const uint64_t length = text.size();
    std::ofstream file(weights(), std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(&length), sizeof(length));
    file << text << data;
  }
  std::filesystem::path weights() const { return directory / "model.safetensors"; }

  // The message of the error that loading gives; the test fails when it loads.
  std::string Refusal(ModelOptions options = SmallOptions()) {
    Save();
    auto model = Model::Load(directory, options);
    REQUIRE(model.has_error());
    return model.error().message;
  }

  std::filesystem::path directory;
  json header;
  std::string data;
};

bool Has(const std::string& message, const std::string& part) {
  INFO(message);
  CHECK(message.find(part) != std::string::npos);
  return message.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("A missing tensor is refused by name", "[model]") {
  for (const char* name :
       {"model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.mlp.experts.3.up_proj.weight"}) {
    Copy copy("olmoe");
    REQUIRE(copy.header.contains(name));
    copy.header["unrelated"] = copy.header[name];
    copy.header.erase(name);
    const std::string message = copy.Refusal();
    Has(message, name);
    Has(message, "missing");
  }
}

TEST_CASE("A wrong shape is refused with both shapes", "[model]") {
  Copy copy("olmoe");
  copy.header["model.layers.0.self_attn.q_proj.weight"]["shape"] = {20, 80};
  const std::string message = copy.Refusal();
  Has(message, "model.layers.0.self_attn.q_proj.weight");
  Has(message, "[20, 80]");
  Has(message, "[40, 40]");
}

TEST_CASE("A tensor of a type that is not served is refused by name and type", "[model]") {
  Copy copy("olmoe");
  copy.header["model.layers.1.mlp.gate.weight"]["dtype"] = "I32";
  const std::string message = copy.Refusal();
  Has(message, "model.layers.1.mlp.gate.weight");
  Has(message, "I32");
}

TEST_CASE("A truncated weights file is refused by name", "[model]") {
  Copy copy("olmoe");
  copy.data.resize(copy.data.size() - 10);
  Has(copy.Refusal(), "model.safetensors");
}

TEST_CASE("A directory without a model, or without its weights, is refused by name", "[model]") {
  Copy copy("olmoe");
  std::filesystem::remove(copy.weights());
  auto model = Model::Load(copy.directory, SmallOptions());
  REQUIRE(model.has_error());
  Has(model.error().message, "safetensors");
  std::filesystem::remove(copy.directory / "config.json");
  model = Model::Load(copy.directory, SmallOptions());
  REQUIRE(model.has_error());
  Has(model.error().message, "config.json");
}

TEST_CASE("Options out of range are refused by name", "[model]") {
  Copy copy("olmoe");
  ModelOptions options = SmallOptions();
  options.kv_blocks = 0;
  Has(copy.Refusal(options), "kv_blocks");
  options = SmallOptions();
  options.max_batch_tokens = -1;
  Has(copy.Refusal(options), "max_batch_tokens");
  options = SmallOptions();
  options.threads = -2;
  Has(copy.Refusal(options), "threads");
}

TEST_CASE("Progress rises to one while weights load", "[model]") {
  std::vector<double> seen;
  ModelOptions options = SmallOptions();
  options.progress = [&](double fraction) { seen.push_back(fraction); };
  LoadOrFail(LoadGolden("qwen2_moe").directory, options);
  REQUIRE(seen.size() > 10);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.front() > 0.0);
  CHECK(seen.back() == 1.0);
}

TEST_CASE("A loaded model resolves its options and counts its bytes", "[model]") {
  const Golden golden = LoadGolden("qwen2_moe_bf16");
  ModelOptions options = SmallOptions();
  options.threads = 0;
  const auto model = LoadOrFail(golden.directory, options);
  const ModelConfig& config = model->config();
  CHECK(model->options().threads >= 1);
  CHECK(model->options().max_context == config.max_positions);
  CHECK(model->options().kv_dtype == KvDType::kF16);
  CHECK(model->weight_dtype() == DType::kBF16);

  const ModelFootprint footprint = model->footprint();
  CHECK(footprint.kv_bytes_per_block == KvBytesPerBlock(config, KvDType::kF16));
  CHECK(footprint.kv_bytes_per_block ==
        size_t{2} * config.layers.size() * config.kv_heads * config.head_dim * kKvBlockTokens * 2);
  // 8 bits, scales of 16 bits per 32 keys and 64 values of a token, filled up to 64 bytes.
  ModelConfig wide = config;
  wide.head_dim = 128;
  wide.kv_heads = 3;
  CHECK(KvBytesPerBlock(wide, KvDType::kQ8) ==
        wide.layers.size() * 3 * 16 * (128 + 4 * 2 + 128 + 2 * 2));
  const int64_t expert_macs = int64_t{3} * config.hidden * config.expert_intermediate;
  CHECK(footprint.expert_macs_per_token ==
        expert_macs * config.router.experts_per_token * config.num_layers());
  const int64_t shared_macs =
      int64_t{3} * config.hidden * config.shared_intermediate + config.hidden;
  const int64_t o_macs = int64_t{config.heads} * config.head_dim * config.hidden;
  CHECK(footprint.logit_row_macs == int64_t{config.vocab} * config.hidden + o_macs +
                                        int64_t{config.router.num_experts} * config.hidden +
                                        shared_macs +
                                        expert_macs * config.router.experts_per_token);
  // Padding to panels of 16 rows makes an expert a little larger than its numbers.
  CHECK(footprint.expert_bytes >= static_cast<size_t>(expert_macs) * 2);
  CHECK(footprint.expert_bytes < static_cast<size_t>(expert_macs) * 3);
  const size_t experts = footprint.expert_bytes * config.router.num_experts * config.layers.size();
  CHECK(footprint.weight_bytes > experts);
  const size_t table = size_t{2} * config.vocab * config.hidden;
  CHECK(footprint.weight_bytes ==
        experts + footprint.dense_bytes_per_token + table);  // the table is not tied here
  CHECK(footprint.arena_bytes > 0);
}

TEST_CASE("Forward counts its tokens, assignments and distinct experts", "[model]") {
  const Golden golden = LoadGolden("qwen2_moe_dense_layers");
  const auto model = LoadOrFail(golden.directory, SmallOptions());
  const ModelConfig& config = model->config();
  int sparse = 0;
  for (const LayerConfig& layer : config.layers) sparse += layer.sparse ? 1 : 0;
  REQUIRE(sparse > 0);
  REQUIRE(sparse < config.num_layers());
  TestSequence sequence(0, 8);
  const SequenceChunk chunk =
      sequence.Chunk(std::span(golden.prompt).subspan(0, 1), LogitRows::kLast);
  CHECK(model->Forward({&chunk, 1}).size() == static_cast<size_t>(config.vocab));
  // One token's experts are all different.
  CHECK(model->last_stats().tokens == 1);
  CHECK(model->last_stats().expert_assignments == sparse * config.router.experts_per_token);
  CHECK(model->last_stats().unique_experts == model->last_stats().expert_assignments);
}

}  // namespace sluice::testing
