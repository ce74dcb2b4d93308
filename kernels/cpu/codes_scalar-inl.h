// Nested codes in portable C++, and the readable definition of what every wrapper of codes does.
//
// A wrapper provides, in the namespace of its ISA and beside Vec:
//   Codes                  64 bytes: 16 rows (a 32-bit lane each) of four consecutive codes
//   LoadCodes, StoreCodes  from and to memory aligned to 64 bytes
//   KeepLoaded(codes)      codes; a compiler is kept from loading them again for every use
//   ShiftLeft<n>, ShiftRight<n>  every byte by n < 8 bits; the bits that come in from outside the
//                          byte are undefined
//   SelectBits<mask>(a, b) in every byte: bits of a where mask has ones, of b elsewhere
//   KeepBits<mask>(a)      the bits of a where mask has ones, zeros elsewhere
//   kDotWidth<p>           the narrowest dot product that is exact for codes of p bits; dots of the
//                          same width share their code
//   Dots<width>            16 integer sums, one per row
//   AddDots(codes, x, sum) adds codes[row][i] * x[i], i in [0, 4); at most 8 times to one sum and
//                          those merged with it
//   MergeDots(a, b)        a + b
//   MergeHighDots(a, b)    a + b / 16, b being of 16 times the codes (used where kDotsTakeHigh)
//   DotsToVec(sum, x_sum)  the sums as F32; x_sum is the sum of all x added (used where
//                          kNeedsInputSums)
//   CentredDots(x_sum)     what to start Dots<8> from so that every code counts as code - 128;
//   x_sum
//                          is the sum of all x that will be added
//   JoinDots(high, low)    128 * high + low as F32, in 32-bit integers before, of sums started by
//   {}
//                          or CentredDots
//   CodeTable, LoadTable   16 bytes to look codes up in
//   LookUp(table, codes)   table[code] for every byte, a code of up to 4 bits
//   LoadU8, LoadI8         16 bytes as F32
//   LoadE8m0               16 bytes e as 2^(e - 128)
//   StoreI8                16 integral values in [-128, 127] as bytes
// and the constants
//   kNestedMaxTile         most tokens that a register tile holds
//   kNeedsInputSums        DotsToVec reads x_sum
//   kDotsTakeHigh          AddDots takes codes of 4 bits times 16
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/vec_scalar-inl.h"

SLUICE_BEGIN_ISA

constexpr int kNestedMaxTile = 1;
constexpr bool kDotsTakeHigh = false;
constexpr bool kNeedsInputSums = false;
template <int precision>
constexpr int kDotWidth = 8;

// GCC's and Clang's portable vectors rather than arrays: arrays of this many elements, unrolled,
// take minutes to compile.
typedef uint32_t FourRows __attribute__((vector_size(16)));
typedef int32_t FourSums __attribute__((vector_size(16)));

struct Codes {
  FourRows q[4];
};
SLUICE_INLINE Codes LoadCodes(const uint8_t* from) {
  Codes codes;
  __builtin_memcpy(&codes, from, sizeof codes);
  return codes;
}
SLUICE_INLINE Codes KeepLoaded(Codes codes) { return codes; }
SLUICE_INLINE void StoreCodes(uint8_t* to, Codes codes) {
  __builtin_memcpy(to, &codes, sizeof codes);
}
template <int n>
SLUICE_INLINE Codes ShiftLeft(Codes a) {
  return {{a.q[0] << n, a.q[1] << n, a.q[2] << n, a.q[3] << n}};
}
template <int n>
SLUICE_INLINE Codes ShiftRight(Codes a) {
  return {{a.q[0] >> n, a.q[1] >> n, a.q[2] >> n, a.q[3] >> n}};
}
template <int mask>
SLUICE_INLINE Codes KeepBits(Codes a) {
  constexpr uint32_t kBytes = 0x01010101u * mask;
  return {{a.q[0] & kBytes, a.q[1] & kBytes, a.q[2] & kBytes, a.q[3] & kBytes}};
}
template <int mask>
SLUICE_INLINE Codes SelectBits(Codes a, Codes b) {
  a = KeepBits<mask>(a);
  b = KeepBits<255 - mask>(b);
  return {{a.q[0] | b.q[0], a.q[1] | b.q[1], a.q[2] | b.q[2], a.q[3] | b.q[3]}};
}

template <int width>
struct Dots {
  FourSums q[4] = {};
};
template <int width>
SLUICE_INLINE void AddDots(Codes codes, const int8_t* x, Dots<width>& sum) {
  for (int i = 0; i < 4; ++i) {
    const FourRows w = codes.q[i];
    sum.q[i] += (FourSums)(w & 0xffu) * x[0] + (FourSums)(w >> 8 & 0xffu) * x[1] +
                (FourSums)(w >> 16 & 0xffu) * x[2] + (FourSums)(w >> 24) * x[3];
  }
}
template <int width>
SLUICE_INLINE Dots<width> MergeDots(Dots<width> a, Dots<width> b) {
  for (int i = 0; i < 4; ++i) a.q[i] += b.q[i];
  return a;
}
template <int width>
SLUICE_INLINE Vec DotsToVec(const Dots<width>& sum, int32_t) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = static_cast<float>(sum.q[i / 4][i % 4]);
  return v;
}

SLUICE_INLINE Dots<8> CentredDots(int32_t x_sum) {
  Dots<8> sum;
  for (int i = 0; i < 4; ++i) sum.q[i] -= 128 * x_sum;
  return sum;
}
SLUICE_INLINE Vec JoinDots(const Dots<8>& high, const Dots<8>& low) {
  Dots<8> sum;
  for (int i = 0; i < 4; ++i) sum.q[i] = high.q[i] * 128 + low.q[i];
  return DotsToVec(sum, 0);
}

struct CodeTable {
  uint8_t value[16];
};
SLUICE_INLINE CodeTable LoadTable(const uint8_t* from) {
  CodeTable table;
  __builtin_memcpy(&table, from, sizeof table);
  return table;
}
SLUICE_INLINE Codes LookUp(const CodeTable& table, Codes codes) {
  uint8_t bytes[64];
  __builtin_memcpy(bytes, &codes, sizeof bytes);
  for (int i = 0; i < 64; ++i) bytes[i] = table.value[bytes[i]];
  __builtin_memcpy(&codes, bytes, sizeof bytes);
  return codes;
}

SLUICE_INLINE Vec LoadE8m0(const uint8_t* from) {
  Vec v;
  for (int i = 0; i < 16; ++i) {
    const uint32_t e = from[i];
    const uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    __builtin_memcpy(&v.lane[i], &bits, sizeof bits);
  }
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
