#include "engine/convert/hf_checkpoint.h"

#include <algorithm>
#include <climits>
#include <map>
#include <utility>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/base/check.h"
#include "engine/base/model_files.h"
#include "engine/formats/safetensors.h"

namespace sluice {
namespace {

GgufTypeInfo TypeOf(DType dtype) {
  const GgufType type = dtype == DType::kF32   ? GgufType::kF32
                        : dtype == DType::kF16 ? GgufType::kF16
                                               : GgufType::kBF16;
  return *FindGgufType(static_cast<uint32_t>(type));
}

class HfCheckpoint final : public Checkpoint {
 public:
  HfCheckpoint(ModelFiles files, ModelConfig config, SafetensorsReader reader)
      : files_(std::move(files)), config_(std::move(config)), reader_(std::move(reader)) {}

  const ModelConfig& config() const override { return config_; }
  const std::map<std::string, std::string>& files() const override { return files_.texts(); }

  std::string description() const override {
    // The type of most bytes.
    std::map<std::string, uint64_t> bytes;
    for (const TensorInfo& tensor : reader_.tensors()) bytes[tensor.dtype_name] += tensor.bytes;
    std::string most = "no tensors";
    uint64_t largest = 0;
    for (const auto& [name, count] : bytes) {
      if (count > largest) most = name;
      largest = std::max(largest, count);
    }
    const std::filesystem::path path =
        std::filesystem::absolute(files_.source()).lexically_normal();
    const std::string name =
        path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
    return name + ", safetensors, " + most;
  }

  uint64_t weight_bytes() const override {
    uint64_t bytes = 0;
    for (const TensorInfo& tensor : reader_.tensors()) bytes += tensor.bytes;
    return bytes;
  }

  Result<CheckpointWeight> Find(TensorRole role, int layer, int expert) const override {
    const TensorLookup lookup = [this](std::string_view name) -> const std::vector<int64_t>* {
      const TensorInfo* info = reader_.Find(name);
      return info == nullptr ? nullptr : &info->shape;
    };
    Result<TensorSlice> slice = FindTensor(config_, lookup, role, layer, expert);
    if (!slice) return WithContext(files_.source().string(), slice.error());
    const TensorInfo* info = reader_.Find(slice->name);
    if (!info->readable) {
      return Unsupported(files_.source().string() + ": tensor " + slice->name + " has type " +
                         info->dtype_name + "; only F32, F16 and BF16 checkpoints can be read");
    }
    if (slice->rows > INT_MAX || slice->columns > INT_MAX) {
      return Unsupported(files_.source().string() + ": tensor " + slice->name + " is too large");
    }
    CheckpointWeight weight;
    weight.name = std::move(slice->name);
    weight.rows = static_cast<int>(slice->rows);
    weight.cols = static_cast<int>(slice->columns);
    weight.type = TypeOf(info->dtype);
    weight.tensor = static_cast<size_t>(info - reader_.tensors().data());
    weight.first_row = slice->first_row;
    return weight;
  }

  Result<> ReadRaw(const CheckpointWeight& weight, int first_row, int rows,
                   std::span<std::byte> out) const override {
    SLUICE_CHECK(first_row >= 0 && rows >= 0 && first_row <= weight.rows - rows);
    const uint64_t row_bytes = GgufBytes(weight.type, static_cast<uint64_t>(weight.cols));
    SLUICE_CHECK(out.size() == static_cast<uint64_t>(rows) * row_bytes);
    const TensorInfo& tensor = reader_.tensors()[weight.tensor];
    return reader_.Read(tensor, static_cast<uint64_t>(weight.first_row + first_row) * row_bytes,
                        out);
  }

 private:
  ModelFiles files_;
  ModelConfig config_;
  SafetensorsReader reader_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::filesystem::path& directory) {
  Result<ModelFiles> files = ModelFiles::Read(directory);
  if (!files) return files.error();
  Result<ModelConfig> config = LoadHfConfig(*files);
  if (!config) return config.error();
  Result<SafetensorsReader> reader = SafetensorsReader::Open(directory);
  if (!reader) return reader.error();
  auto checkpoint =
      std::make_unique<HfCheckpoint>(std::move(*files), std::move(*config), std::move(*reader));
  for (const ExpectedTensor& expected : ExpectedTensors(checkpoint->config())) {
    auto found = checkpoint->Find(expected.role, expected.layer, expected.expert);
    if (!found) return found.error();
  }
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace sluice
