// The golden checkpoints of tests/data/models, through configuration, names and reader together.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/arch/tensor_names.h"
#include "engine/base/file.h"
#include "engine/formats/safetensors.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> GoldenDirectories() {
  std::vector<fs::path> directories;
  for (const auto& entry : fs::directory_iterator(SLUICE_TEST_DATA "/models")) {
    if (entry.is_directory()) directories.push_back(entry.path());
  }
  std::sort(directories.begin(), directories.end());
  return directories;
}

TensorLookup In(const SafetensorsReader& reader) {
  return [&reader](std::string_view name) -> const std::vector<int64_t>* {
    const TensorInfo* info = reader.Find(name);
    return info == nullptr ? nullptr : &info->shape;
  };
}

ModelConfig Load(const std::string& name) {
  const Result<ModelConfig> config = LoadHfConfig(fs::path(SLUICE_TEST_DATA "/models") / name);
  REQUIRE(config);
  return *config;
}

}  // namespace

TEST_CASE("Every golden checkpoint has exactly the tensors that its configuration asks for",
          "[arch]") {
  const std::vector<fs::path> directories = GoldenDirectories();
  REQUIRE(directories.size() >= 30);
  for (const fs::path& directory : directories) {
    INFO(directory.filename().string());
    const Result<ModelConfig> config = LoadHfConfig(directory);
    REQUIRE(config);
    const Result<SafetensorsReader> reader = SafetensorsReader::Open(directory);
    REQUIRE(reader);
    REQUIRE(CheckTensors(*config, In(*reader)));

    const Result<std::string> text = ReadTextFile(directory / "expected.json", 1 << 20);
    REQUIRE(text);
    const nlohmann::json expected = nlohmann::json::parse(*text);
    CHECK(config->eos_ids == expected["eos_token_ids"].get<std::vector<int32_t>>());
    CHECK(config->bos_id == 1);

    std::set<std::string> used;
    int64_t elements = 0;
    for (const ExpectedTensor& wanted : ExpectedTensors(*config)) {
      const Result<TensorSlice> slice =
          FindTensor(*config, In(*reader), wanted.role, wanted.layer, wanted.expert);
      REQUIRE(slice);
      const TensorInfo* info = reader->Find(slice->name);
      CHECK(info->dtype_name == expected["dtype"].get<std::string>());
      const uint64_t width = DTypeBytes(info->dtype);
      std::vector<std::byte> bytes(static_cast<size_t>(slice->elements()) * width);
      CHECK(reader->Read(*info, static_cast<uint64_t>(slice->first_element()) * width, bytes));
      CHECK(std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{0}; }));
      used.insert(slice->name);
      elements += slice->elements();
    }
    int64_t stored = 0;
    for (const TensorInfo& info : reader->tensors()) {
      CHECK(used.count(info.name) == 1);
      stored += static_cast<int64_t>(info.bytes / DTypeBytes(info.dtype));
    }
    CHECK(elements == stored);  // slices of fused tensors neither overlap nor leave a gap

    const auto shape = expected["logits_shape"].get<std::vector<int64_t>>();
    CHECK(shape[1] == config->vocab);
    CHECK(shape[0] == static_cast<int64_t>(expected["prompt"].size()));
    CHECK(static_cast<int64_t>(fs::file_size(directory / "logits.f32")) == shape[0] * shape[1] * 4);
  }
}

TEST_CASE("Golden configurations carry the switch that they are named after", "[arch]") {
  const auto window = [](const ModelConfig& config, size_t layer) {
    return config.layers[layer].sliding_window;
  };
  CHECK(window(Load("mixtral_sliding"), 0) == 8);
  CHECK(Load("mixtral_tied").tied_embeddings);
  CHECK(Load("mixtral_yarn").rope_scaling.kind == RopeScalingKind::kYarn);
  CHECK(Load("olmoe_norm_topk").router.renormalize);
  CHECK(Load("olmoe_clip_qkv").clip_qkv == 0.8);
  CHECK(Load("olmoe_attention_bias").o_bias);
  CHECK(!Load("qwen2_moe_sparse_step").layers[0].sparse);
  CHECK(Load("qwen2_moe_sparse_step").layers[1].sparse);
  CHECK(!Load("qwen2_moe_dense_layers").layers[2].sparse);
  CHECK(Load("qwen2_moe_norm_topk").router.renormalize);
  CHECK(!Load("qwen2_moe_norm_topk").qkv_bias);
  const ModelConfig sliding = Load("qwen2_moe_sliding");
  CHECK(window(sliding, 0) == 6);
  CHECK(window(sliding, 1) == 0);
  CHECK(window(sliding, 2) == 6);
  CHECK(window(sliding, 3) == 0);
  CHECK(window(Load("qwen2_moe"), 0) == 0);
  CHECK(Load("qwen3_moe").head_dim == 16);
  CHECK(Load("qwen3_moe_tied").qkv_bias);
  CHECK(Load("qwen3_moe_llama3").rope_scaling.kind == RopeScalingKind::kLlama3);
  CHECK(Load("qwen3_moe_linear").rope_scaling.kind == RopeScalingKind::kLinear);
  CHECK(Load("qwen3_moe_dynamic").max_positions == 128);
  CHECK(!Load("qwen3_moe_dense_layers").layers[1].sparse);
  CHECK(window(Load("qwen3_moe_sliding"), 1) == 9);
}

}  // namespace sluice
