#include "tests/unit/model/golden.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"

namespace sluice::testing {
namespace {

std::vector<float> ReadFloats(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  std::vector<float> values(std::filesystem::file_size(path) / sizeof(float));
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(float)));
  return values;
}

}  // namespace

Golden LoadGolden(const std::string& name) {
  Golden golden;
  golden.name = name;
  golden.directory = std::filesystem::path(SLUICE_TEST_DATA) / "models" / name;
  std::ifstream file(golden.directory / "expected.json");
  REQUIRE(file.good());
  const nlohmann::json expected = nlohmann::json::parse(file);
  golden.dtype = expected.at("dtype").get<std::string>();
  golden.prompt = expected.at("prompt").get<std::vector<int32_t>>();
  golden.continuation = expected.at("continuation").get<std::vector<int32_t>>();
  golden.vocab = expected.at("logits_shape").at(1).get<int>();
  golden.logits = ReadFloats(golden.directory / "logits.f32");
  const auto upcast = golden.directory / "logits_upcast.f32";
  if (std::filesystem::exists(upcast)) golden.upcast = ReadFloats(upcast);
  REQUIRE(golden.logits.size() == golden.prompt.size() * static_cast<size_t>(golden.vocab));
  return golden;
}

std::vector<Golden> LoadGoldens() {
  std::vector<std::string> names;
  const auto root = std::filesystem::path(SLUICE_TEST_DATA) / "models";
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (std::filesystem::exists(entry.path() / "expected.json")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  std::vector<Golden> goldens;
  for (const std::string& name : names) goldens.push_back(LoadGolden(name));
  REQUIRE(!goldens.empty());
  return goldens;
}

ModelOptions SmallOptions() {
  ModelOptions options;
  options.threads = 2;
  options.max_batch_tokens = 256;
  options.max_sequences = 24;
  options.kv_blocks = 256;
  return options;
}

std::unique_ptr<Model> LoadOrFail(const std::filesystem::path& directory, ModelOptions options) {
  auto model = Model::Load(directory, options);
  if (!model) FAIL(directory.string() + ": " + model.error().message);
  return std::move(*model);
}

std::vector<cpu::Isa> UsableIsas() {
  std::vector<cpu::Isa> isas;
  for (cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16,
                       cpu::Isa::kNeon}) {
    if (cpu::SelectOps(isa) != nullptr) isas.push_back(isa);
  }
  return isas;
}

int Argmax(std::span<const float> row) {
  return static_cast<int>(std::max_element(row.begin(), row.end()) - row.begin());
}

}  // namespace sluice::testing
