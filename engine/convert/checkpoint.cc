#include "engine/convert/checkpoint.h"

#include <system_error>
#include <vector>

#include "engine/base/check.h"
#include "engine/convert/gguf_checkpoint.h"
#include "engine/convert/hf_checkpoint.h"

namespace sluice {

int64_t CheckpointWeight::SourceRow(int64_t row) const {
  if (interleaved_head_dim == 0) return row;
  // The model has the two halves of a head one after the other, the file row by row in turns.
  const int64_t in_head = row % interleaved_head_dim;
  const int64_t half = interleaved_head_dim / 2;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

Result<> Checkpoint::ReadF32(const CheckpointWeight& weight, int first_row, int rows,
                             std::span<float> out) const {
  SLUICE_CHECK(out.size() == static_cast<uint64_t>(rows) * static_cast<uint64_t>(weight.cols));
  std::vector<std::byte> raw(GgufBytes(weight.type, out.size()));
  if (auto ok = ReadRaw(weight, first_row, rows, raw); !ok) return ok;
  DequantizeGguf(weight.type, raw.data(), out);
  return {};
}

Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return OpenHfCheckpoint(path);
  if (!std::filesystem::exists(path, ignored)) return NotFound(path.string() + " does not exist");
  if (path.extension() == ".safetensors") {
    return InvalidArgument(path.string() +
                           " is one file of a model; name the directory that it lies in");
  }
  if (path.extension() == ".gguf") return OpenGgufCheckpoint(path);
  return Unsupported(path.string() +
                     " is neither a directory in Hugging Face form nor a .gguf file");
}

}  // namespace sluice
