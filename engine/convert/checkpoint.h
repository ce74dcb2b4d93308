// A model to convert, whatever file it comes in (SEAM): weights by role, as F32 rows or as the
// file's own quantized blocks, and the documents (configuration, tokenizer, chat template) in the
// form of a Hugging Face directory.
//
//   Result<std::unique_ptr<Checkpoint>> source = OpenCheckpoint("olmoe-q4_0.gguf");
//   Result<CheckpointWeight> w = (*source)->Find(TensorRole::kExpertGate, layer, expert);
//   (*source)->ReadF32(*w, first_row, rows, out);
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/arch/model_config.h"
#include "engine/arch/tensor_names.h"
#include "engine/base/result.h"
#include "engine/formats/gguf_types.h"

namespace sluice {

// Rows of a weight in the source. Valid while its Checkpoint lives.
struct CheckpointWeight {
  std::string name;  // of the tensor in the file
  int rows = 0;
  int cols = 0;
  // How the file stores it. Float types are kF32, kF16 and kBF16 for every kind of file.
  GgufTypeInfo type{};
  // Where, for the Checkpoint that made it.
  size_t tensor = 0;
  int64_t first_row = 0;
  // Rows of attention projections that the file holds in another order (GGUF's "llama" interleaves
  // the halves of a head): row r of the weight is row SourceRow(r) of the tensor's slice. 0: as is.
  int interleaved_head_dim = 0;

  int64_t SourceRow(int64_t row) const;
  uint64_t bytes() const { return GgufBytes(type, static_cast<uint64_t>(rows) * cols); }
};

// Threads: const members from any number of threads.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  virtual const ModelConfig& config() const = 0;
  // "config.json", "tokenizer.json", ... as texts; what the source lacks is absent. For GGUF they
  // are written from its metadata.
  virtual const std::map<std::string, std::string>& files() const = 0;
  // For people: "OLMoE-1B-7B, gguf v3, Q4_0", and the bytes of all weights.
  virtual std::string description() const = 0;
  virtual uint64_t weight_bytes() const = 0;

  // Errors as FindTensor's: missing, another shape, a type that is not read.
  virtual Result<CheckpointWeight> Find(TensorRole role, int layer, int expert) const = 0;
  // Rows in the model's order, [rows, cols].
  Result<> ReadF32(const CheckpointWeight& weight, int first_row, int rows,
                   std::span<float> out) const;
  // The file's own bytes of these rows, in the model's order; GgufBytes(type, rows * cols) of them.
  virtual Result<> ReadRaw(const CheckpointWeight& weight, int first_row, int rows,
                           std::span<std::byte> out) const = 0;
};

// A Hugging Face directory, or a .gguf file (the first of a split).
Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::filesystem::path& path);

}  // namespace sluice
