// Nested codes in portable C++, and the readable definition of what every wrapper of codes does.
//
// A wrapper provides, in the namespace of its ISA and beside Vec:
//   Codes                  64 bytes: 16 rows (a 32-bit lane each) of four consecutive codes
//   LoadCodes, StoreCodes  from and to memory aligned to 64 bytes
//   ShiftLeft<n>, ShiftRight<n>  every byte by n < 8 bits; the bits that come in from outside the
//                          byte are undefined
//   SelectBits<mask>(a, b) in every byte: bits of a where mask has ones, of b elsewhere
//   KeepBits<mask>(a)      the bits of a where mask has ones, zeros elsewhere
//   kDotWidth<p>           the narrowest dot product that is exact for codes of p bits; dots of the
//                          same width share their code
//   Dots<width>            16 integer sums, one per row
//   AddDots(codes, x, sum) adds codes[row][i] * x[i], i in [0, 4); at most 8 times to one sum
//   DotsToVec(sum, x_sum)  the sums as F32; x_sum is the sum of all x added (used where
//                          kNeedsInputSums)
//   LoadU8, LoadI8         16 bytes as F32
//   StoreI8                16 integral values in [-128, 127] as bytes
// and the constants
//   kNestedMaxTile         most tokens that a register tile holds
//   kNeedsInputSums        DotsToVec reads x_sum
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/vec_scalar-inl.h"

SLUICE_BEGIN_ISA

constexpr int kNestedMaxTile = 4;
constexpr bool kNeedsInputSums = false;
template <int precision>
constexpr int kDotWidth = 8;

struct Codes {
  uint32_t row[16];
};
SLUICE_INLINE Codes LoadCodes(const uint8_t* from) {
  Codes codes;
  __builtin_memcpy(&codes, from, sizeof codes);
  return codes;
}
SLUICE_INLINE void StoreCodes(uint8_t* to, Codes codes) {
  __builtin_memcpy(to, &codes, sizeof codes);
}
template <int n>
SLUICE_INLINE Codes ShiftLeft(Codes v) {
  for (int i = 0; i < 16; ++i) v.row[i] <<= n;
  return v;
}
template <int n>
SLUICE_INLINE Codes ShiftRight(Codes v) {
  for (int i = 0; i < 16; ++i) v.row[i] >>= n;
  return v;
}
template <int mask>
SLUICE_INLINE Codes SelectBits(Codes a, Codes b) {
  constexpr uint32_t kBytes = 0x01010101u * mask;
  for (int i = 0; i < 16; ++i) a.row[i] = (a.row[i] & kBytes) | (b.row[i] & ~kBytes);
  return a;
}
template <int mask>
SLUICE_INLINE Codes KeepBits(Codes a) {
  constexpr uint32_t kBytes = 0x01010101u * mask;
  for (int i = 0; i < 16; ++i) a.row[i] &= kBytes;
  return a;
}

template <int width>
struct Dots {
  int32_t row[16] = {};
};
template <int width>
SLUICE_INLINE void AddDots(Codes codes, const int8_t* x, Dots<width>& sum) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t w = codes.row[i];
    sum.row[i] += static_cast<int>(w & 0xff) * x[0] + static_cast<int>(w >> 8 & 0xff) * x[1] +
                  static_cast<int>(w >> 16 & 0xff) * x[2] + static_cast<int>(w >> 24) * x[3];
  }
}
template <int width>
SLUICE_INLINE Vec DotsToVec(const Dots<width>& sum, int32_t) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = static_cast<float>(sum.row[i]);
  return v;
}

SLUICE_INLINE Vec LoadU8(const uint8_t* from) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = static_cast<float>(from[i]);
  return v;
}
SLUICE_INLINE Vec LoadI8(const uint8_t* from) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = static_cast<float>(static_cast<int8_t>(from[i]));
  return v;
}
SLUICE_INLINE void StoreI8(int8_t* to, Vec v) {
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(static_cast<int>(v.lane[i]));
}

SLUICE_END_ISA
