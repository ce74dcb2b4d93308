// Reader of GGUF files, versions 2 and 3, little-endian, whole or split
// (https://github.com/ggml-org/ggml, docs/gguf.md). Files are untrusted: counts, lengths, offsets
// and nesting are checked against the file's size before anything is read or allocated, and each
// fault is one sentence with the file's name.
//
//   Result<GgufReader> reader = GgufReader::Open("model-00001-of-00002.gguf");
//   const GgufTensor* t = reader->Find("blk.0.ffn_gate_exps.weight");
//   reader->ReadF32(*t, 0, values);
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/result.h"
#include "engine/formats/gguf_types.h"

namespace sluice {

// A metadata value. Integers of every width are widened; arrays hold one kind (arrays of arrays are
// refused: no published model has one).
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<bool>,
                               std::vector<int64_t>, std::vector<uint64_t>, std::vector<double>,
                               std::vector<std::string>>;

struct GgufTensor {
  std::string name;
  uint32_t type_number = 0;
  std::optional<GgufTypeInfo> type;  // nothing: a type that is not read
  // Row-major as elsewhere in Sluice: the file's dimensions reversed, so [rows, cols] for a matrix
  // and [experts, rows, cols] for stacked experts. One to four, all positive.
  std::vector<int64_t> shape;
  int shard = 0;        // index of the split file
  uint64_t offset = 0;  // of the first byte, in the shard's file
  uint64_t bytes = 0;   // when type is known

  int64_t values() const;
  int64_t columns() const { return shape.back(); }
};

// Threads: const members may be called from any number of threads at once. Movable, not copyable;
// pointers to tensors stay valid while the reader (or what it was moved to) lives.
class GgufReader {
 public:
  // A file, or the first of a split ("...-00001-of-000NN.gguf"; the others are found beside it).
  static Result<GgufReader> Open(const std::filesystem::path& path);

  uint32_t version() const { return version_; }
  // Of the first file.
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const GgufValue* FindMetadata(std::string_view key) const;
  // Typed lookups: an absent key is kNotFound, another kind (or a number that does not fit)
  // kCorrupt; both name key and file.
  Result<std::string> GetString(std::string_view key) const;
  Result<int64_t> GetInt(std::string_view key) const;
  Result<double> GetFloat(std::string_view key) const;
  Result<bool> GetBool(std::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* Find(std::string_view name) const;
  int num_shards() const { return static_cast<int>(files_.size()); }
  uint64_t total_bytes() const;  // of all files
  std::filesystem::path path() const { return files_[0].path(); }

  // Raw blocks. Errors: kUnsupported for a type that is not read, kCorrupt when the file was
  // truncated since Open, kIo. REQUIRES: byte_offset + destination.size() <= tensor.bytes.
  Result<void> Read(const GgufTensor& tensor, uint64_t byte_offset,
                    std::span<std::byte> destination) const;
  // Dequantized values from `first` on. REQUIRES: first and out.size() are multiples of the type's
  // block.
  Result<void> ReadF32(const GgufTensor& tensor, int64_t first, std::span<float> out) const;

 private:
  GgufReader() = default;
  Result<void> ReadFile(const std::filesystem::path& path, int shard);
  Error Fault(int shard, std::string what) const;

  uint32_t version_ = 0;
  std::vector<File> files_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;  // keys view into tensors_
};

}  // namespace sluice
