#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/convert/checkpoint.h"
#include "engine/formats/safetensors.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

fs::path ModelPath(const std::string& name) { return fs::path(SLUICE_TEST_DATA "/models") / name; }

std::string MessageOf(const fs::path& path) {
  const auto opened = OpenCheckpoint(path);
  return opened ? "opened" : opened.error().message;
}

std::vector<std::byte> Raw(const Checkpoint& source, const CheckpointWeight& weight) {
  std::vector<std::byte> bytes(weight.bytes());
  REQUIRE(source.ReadRaw(weight, 0, weight.rows, bytes));
  return bytes;
}

}  // namespace

TEST_CASE("A Hugging Face directory gives every weight of the model as its own rows",
          "[convert][checkpoint]") {
  // One tensor per expert, fused experts, shards, tied heads, 16-bit types, dense layers.
  for (const char* name :
       {"mixtral", "mixtral_fused", "mixtral_bf16", "olmoe_norm_topk", "olmoe_f16",
        "qwen2_moe_tied_fused", "qwen2_moe_dense_layers", "qwen3_moe_tied"}) {
    INFO(name);
    const auto source = OpenCheckpoint(ModelPath(name));
    REQUIRE(source);
    const ModelConfig& config = (*source)->config();
    CHECK(config.family == LoadHfConfig(ModelPath(name))->family);
    const Result<SafetensorsReader> reader = SafetensorsReader::Open(ModelPath(name));
    REQUIRE(reader);
    uint64_t bytes = 0;
    for (const ExpectedTensor& expected : ExpectedTensors(config)) {
      const auto weight = (*source)->Find(expected.role, expected.layer, expected.expert);
      REQUIRE(weight);
      const TensorInfo* info = reader->Find(weight->name);
      REQUIRE(info != nullptr);
      std::vector<std::byte> slice(weight->bytes());
      const uint64_t row_bytes = weight->bytes() / static_cast<uint64_t>(weight->rows);
      REQUIRE(reader->Read(*info, static_cast<uint64_t>(weight->first_row) * row_bytes, slice));
      CHECK(Raw(**source, *weight) == slice);
      std::vector<float> values(static_cast<size_t>(weight->rows) * weight->cols);
      REQUIRE((*source)->ReadF32(*weight, 0, weight->rows, values));
      std::vector<float> wanted(values.size());
      DequantizeGguf(weight->type, slice.data(), wanted);
      CHECK(std::memcmp(values.data(), wanted.data(), values.size() * sizeof(float)) == 0);
      bytes += weight->bytes();
    }
    CHECK((*source)->weight_bytes() == bytes);
    CHECK((*source)->files().contains("config.json"));
    CHECK((*source)->description().starts_with(std::string(name) + ", safetensors, "));
  }
}

TEST_CASE("Rows are read from where they are asked for", "[convert][checkpoint]") {
  const auto source = OpenCheckpoint(ModelPath("mixtral_fused"));
  REQUIRE(source);
  const auto up = (*source)->Find(TensorRole::kExpertUp, 1, 3);
  REQUIRE(up);
  std::vector<float> all(static_cast<size_t>(up->rows) * up->cols);
  REQUIRE((*source)->ReadF32(*up, 0, up->rows, all));
  std::vector<float> part(static_cast<size_t>(3) * up->cols);
  REQUIRE((*source)->ReadF32(*up, 5, 3, part));
  CHECK(std::memcmp(part.data(), all.data() + 5 * up->cols, part.size() * sizeof(float)) == 0);
}

TEST_CASE("A tied head is the embedding", "[convert][checkpoint]") {
  const auto source = OpenCheckpoint(ModelPath("mixtral_tied"));
  REQUIRE(source);
  const auto head = (*source)->Find(TensorRole::kLmHead, -1, -1);
  const auto embedding = (*source)->Find(TensorRole::kEmbedding, -1, -1);
  REQUIRE(head);
  REQUIRE(embedding);
  CHECK(head->tensor == embedding->tensor);
  CHECK(Raw(**source, *head) == Raw(**source, *embedding));
}

TEST_CASE("What is not a model is refused with its name", "[convert][checkpoint]") {
  CHECK(MessageOf("/nonexistent/model") == "/nonexistent/model does not exist");
  CHECK(MessageOf(ModelPath("mixtral") / "model.safetensors").find("name the directory") !=
        std::string::npos);
  CHECK(MessageOf(ModelPath("mixtral") / "config.json").find("config.json is ") !=
        std::string::npos);
  CHECK(MessageOf(SLUICE_TEST_DATA "/models").find("models/config.json") != std::string::npos);
}

TEST_CASE("A checkpoint without one of its tensors is refused with the tensor's name",
          "[convert][checkpoint]") {
  std::string pattern = (fs::temp_directory_path() / "sluice_checkpoint_XXXXXX").string();
  REQUIRE(mkdtemp(pattern.data()) != nullptr);
  const fs::path directory = pattern;
  fs::copy(ModelPath("olmoe"), directory, fs::copy_options::recursive);
  std::fstream file(directory / "model.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  std::string header(1 << 16, '\0');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  const size_t at = header.find("model.layers.1.mlp.experts.2.up_proj");
  REQUIRE(at != std::string::npos);
  file.seekp(static_cast<std::streamoff>(at));
  file << "model.layers.1.mlp.experts.2.UP_proj";
  file.close();
  const std::string message = MessageOf(directory);
  CHECK(message.find("model.layers.1.mlp.experts.2.up_proj.weight") != std::string::npos);
  CHECK(message.find(directory.string()) != std::string::npos);
  fs::remove_all(directory);
}

}  // namespace sluice
