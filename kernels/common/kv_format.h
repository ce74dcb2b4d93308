// Formats of the paged K/V cache: what a KV block holds for one layer.
//
// A KV block is 16 tokens. For each kv head in turn it holds that head's K (KvKeyBytes), and
// elsewhere, in the same way, its V (KvValueBytes).
//
// F32, F16 and BF16: K is [head_dim][16 tokens] (lanes are tokens), V is [16 tokens][head_dim].
//
// Q8: a token's values of one head are quantized by themselves, once, when the token is written: K
// in groups of 32 along head_dim, V in groups of 64, the last group shorter where head_dim ends.
// Per group scale = max|x| / 127, rounded up to F16 (at most 65504); code = x / scale rounded to
// nearest even, in [-127, 127], stored plus 128. What is read back is scale * (code - 128).
//   K: codes [ceil(head_dim / 4)][16 tokens][4], then scales [groups][16 tokens] F16
//   V: codes [4 quads of tokens][head_dim to a multiple of 16][4 tokens], then scales as for K
// each filled up to a multiple of 64 bytes. Unused codes may hold anything. A K or V row of a head
// that is not finite gets NaN for the scales of K and 0 for those of V: attention to it gives NaN.
//
// K has the narrower groups because its outliers sit in few channels (KIVI, Liu et al. 2024,
// section 3.1) and would cost the others of their group; V's errors average out over tokens.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice {

enum class KvDType : uint8_t { kF32, kF16, kBF16, kQ8 };

inline constexpr int kKvKeyGroup = 32;
inline constexpr int kKvValueGroup = 64;

constexpr const char* KvDTypeName(KvDType dtype) {
  return dtype == KvDType::kF32    ? "F32"
         : dtype == KvDType::kF16  ? "F16"
         : dtype == KvDType::kBF16 ? "BF16"
                                   : "Q8";
}

// Bytes of one kv head in a KV block of 16 tokens; multiples of 64 for Q8.
constexpr size_t KvKeyBytes(KvDType dtype, int head_dim) {
  const auto dim = static_cast<size_t>(head_dim);
  if (dtype != KvDType::kQ8) return dim * 16 * (dtype == KvDType::kF32 ? 4 : 2);
  const size_t codes = (dim + 3) / 4 * 64;
  return (codes + (dim + kKvKeyGroup - 1) / kKvKeyGroup * 32 + 63) / 64 * 64;
}
constexpr size_t KvValueBytes(KvDType dtype, int head_dim) {
  const auto dim = static_cast<size_t>(head_dim);
  if (dtype != KvDType::kQ8) return dim * 16 * (dtype == KvDType::kF32 ? 4 : 2);
  const size_t codes = (dim + 15) / 16 * 256;
  return (codes + (dim + kKvValueGroup - 1) / kKvValueGroup * 32 + 63) / 64 * 64;
}

}  // namespace sluice
