// The tensor types of GGUF files and their way back to F32. Layouts are those of ggml
// (https://github.com/ggml-org/ggml, docs/gguf.md and src/ggml-common.h): facts of the file format,
// little-endian.
//
// Dequantization is bit-exact to the `gguf` Python package: the same float32 operations in the same
// order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace sluice {

// Values are those of the file.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIq4Nl = 20,
  kIq4Xs = 23,
  kBF16 = 30,
  kMxfp4 = 39,
};

// Whether values stand on their own, not in quantized blocks.
constexpr bool IsGgufFloat(GgufType type) {
  return type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16;
}

struct GgufTypeInfo {
  GgufType type;
  std::string_view name;  // as ggml prints it: "Q4_K"
  int block_values;       // values that share a block
  int block_bytes;
};

// Nothing for types that Sluice does not read.
std::optional<GgufTypeInfo> FindGgufType(uint32_t type);

// Bytes of `values` values. REQUIRES: values is a multiple of block_values.
constexpr uint64_t GgufBytes(const GgufTypeInfo& info, uint64_t values) {
  return values / static_cast<uint64_t>(info.block_values) *
         static_cast<uint64_t>(info.block_bytes);
}

// out.size() values from as many as needed blocks at `blocks` (any alignment). REQUIRES: out.size()
// is a multiple of block_values and `blocks` holds GgufBytes(info, out.size()) bytes.
void DequantizeGguf(const GgufTypeInfo& info, const std::byte* blocks, std::span<float> out);

}  // namespace sluice
