// Reader of safetensors checkpoints: one `model.safetensors`, or shards listed in
// `model.safetensors.index.json`. Format: 8 bytes little-endian header length, a JSON header
// {name: {dtype, shape, data_offsets}}, then tensor bytes, row-major little-endian, without holes
// (https://huggingface.co/docs/safetensors). Files are untrusted: everything is checked at Open,
// and each fault is one sentence with the file's name.
//
//   Result<SafetensorsReader> reader = SafetensorsReader::Open("/models/olmoe");
//   const TensorInfo* info = reader->Find("model.norm.weight");
//   reader->Read(*info, 0, std::as_writable_bytes(std::span(weights)));
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/result.h"
#include "kernels/common/dtype.h"

namespace sluice {

struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as the file spells it: "F32", "BF16", "I64", ...
  bool readable = false;       // F32, F16 or BF16; others are listed, and Read refuses them
  DType dtype = DType::kF32;   // meaningful when readable
  std::vector<int64_t> shape;  // may hold zeros; [] is a scalar
  int shard = 0;               // index into shard_paths()
  uint64_t offset = 0;         // of the first byte, in the shard's file
  uint64_t bytes = 0;          // when readable: the product of shape times DTypeBytes(dtype)
};

// Threads: const members may be called from any number of threads at once. Movable, not copyable;
// TensorInfo pointers stay valid while the reader (or what it was moved to) lives.
class SafetensorsReader {
 public:
  // `directory` as published: model.safetensors if it is there, else the shards of the index. Only
  // tensors that the index maps are listed.
  static Result<SafetensorsReader> Open(const std::filesystem::path& directory);
  static Result<SafetensorsReader> OpenFile(const std::filesystem::path& path);

  // Null when there is no such tensor.
  const TensorInfo* Find(std::string_view name) const;
  // By shard, then by offset: reading in this order is sequential.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  std::filesystem::path shard_path(int shard) const { return files_[shard].path(); }
  int num_shards() const { return static_cast<int>(files_.size()); }

  // Fills `destination` with the tensor's bytes from `byte_offset`. Errors: kUnsupported for a
  // dtype that is not readable, kCorrupt when the file was truncated since Open, kIo. REQUIRES:
  // `tensor` comes from this reader; byte_offset + destination.size() <= tensor.bytes.
  Result<void> Read(const TensorInfo& tensor, uint64_t byte_offset,
                    std::span<std::byte> destination) const;

 private:
  SafetensorsReader() = default;
  Result<void> BuildIndex();

  std::vector<File> files_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;  // keys view into tensors_
};

}  // namespace sluice
