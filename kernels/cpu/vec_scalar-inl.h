// The vector wrapper in portable C++: 16 F32 lanes as an array, for CPUs without anything better
// and as the readable definition of what every wrapper does.
//
// A wrapper provides, in the namespace of its ISA:
//   Vec              16 F32 lanes
//   Bf16, F16        16-bit elements in memory
//   Load, LoadN      16 or the first n elements (float, Bf16 or F16) to F32; LoadN zeroes the rest
//                    and reads nothing past n
//   Store, StoreN    the inverse, rounding to nearest even
//   LoadEven/LoadOdd the 16 even or odd elements of 32 Bf16
//   Set, Add, Sub, Mul, Div, Min, Max, Fma(a, b, c) = a * b + c (one rounding where the CPU has it)
//                    Min and Max return b when a is NaN
//   KeepLanes        lanes outside [begin, end) become `fill`
//   ZeroAtOrBelow    lanes of v where x <= limit become 0
//   SumLanes, MaxLanes  over lanes in the fixed order (i, i+8), (i, i+4), (i, i+2), (i, i+1)
//   RoundToInt       to the nearest integer, ties to even; ScaleByPow2(x, n) = x * 2^n, n integral
//                    in [-126, 127]
// and the constants that shape register tiles:
//   kMatmulAccumulators     Vecs that the matmul keeps as accumulators
//   kMatmulMaxTile          most tokens that it keeps at once
//   kAttentionAccumulators  the same for attention
//   kHasBf16Dot             DotPairs exists
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"

SLUICE_BEGIN_ISA

constexpr int kMatmulAccumulators = 4;
constexpr int kMatmulMaxTile = 4;
constexpr int kAttentionAccumulators = 4;
constexpr bool kHasBf16Dot = false;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct Vec {
  float lane[16];
};

SLUICE_INLINE uint32_t BitsOf(float x) { return __builtin_bit_cast(uint32_t, x); }
SLUICE_INLINE float FloatOf(uint32_t bits) { return __builtin_bit_cast(float, bits); }

SLUICE_INLINE float ToFloat(float x) { return x; }
SLUICE_INLINE float ToFloat(Bf16 x) { return FloatOf(static_cast<uint32_t>(x.bits) << 16); }
SLUICE_INLINE float ToFloat(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) {
    return FloatOf(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | (rest > 0x7c00u ? 0x400000u : 0u));
  }
  // 2^112 moves the exponent from F16's bias to F32's, and normalises subnormals on the way.
  return FloatOf(sign | BitsOf(FloatOf(rest << 13) * 0x1p112f));
}
SLUICE_INLINE void FromFloat(float x, float* out) { *out = x; }
SLUICE_INLINE void FromFloat(float x, Bf16* out) {
  const uint32_t bits = BitsOf(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u
                                        : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
SLUICE_INLINE void FromFloat(float x, F16* out) {
  const uint32_t sign = (BitsOf(x) >> 16) & 0x8000u;
  const uint32_t magnitude = BitsOf(x) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    half = BitsOf(FloatOf(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

template <class T>
SLUICE_INLINE T ReadElement(const T* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(T));
  return value;
}

template <class T>
SLUICE_INLINE Vec Load(const T* from) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = ToFloat(ReadElement(from + i));
  return v;
}
template <class T>
SLUICE_INLINE Vec LoadN(const T* from, int n) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = i < n ? ToFloat(ReadElement(from + i)) : 0.0f;
  return v;
}
template <class T>
SLUICE_INLINE void StoreN(T* to, Vec v, int n) {
  for (int i = 0; i < n; ++i) {
    T element;
    FromFloat(v.lane[i], &element);
    __builtin_memcpy(to + i, &element, sizeof(T));
  }
}
template <class T>
SLUICE_INLINE void Store(T* to, Vec v) {
  StoreN(to, v, 16);
}
SLUICE_INLINE Vec LoadEven(const Bf16* from) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = ToFloat(ReadElement(from + 2 * i));
  return v;
}
SLUICE_INLINE Vec LoadOdd(const Bf16* from) { return LoadEven(from + 1); }

SLUICE_INLINE Vec Set(float x) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = x;
  return v;
}
SLUICE_INLINE Vec Add(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
  return a;
}
SLUICE_INLINE Vec Sub(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
  return a;
}
SLUICE_INLINE Vec Mul(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
  return a;
}
SLUICE_INLINE Vec Div(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) a.lane[i] /= b.lane[i];
  return a;
}
SLUICE_INLINE Vec Min(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
SLUICE_INLINE Vec Max(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
SLUICE_INLINE Vec Fma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < 16; ++i) c.lane[i] += a.lane[i] * b.lane[i];
  return c;
}
SLUICE_INLINE Vec KeepLanes(Vec v, int begin, int end, float fill) {
  for (int i = 0; i < 16; ++i) v.lane[i] = i >= begin && i < end ? v.lane[i] : fill;
  return v;
}
SLUICE_INLINE Vec ZeroAtOrBelow(Vec v, Vec x, float limit) {
  for (int i = 0; i < 16; ++i) v.lane[i] = x.lane[i] <= limit ? 0.0f : v.lane[i];
  return v;
}
SLUICE_INLINE float SumLanes(Vec v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v.lane[i] += v.lane[i + half];
  }
  return v.lane[0];
}
SLUICE_INLINE float MaxLanes(Vec v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
    }
  }
  return v.lane[0];
}
SLUICE_INLINE Vec RoundToInt(Vec v) {
  // Adding 1.5 * 2^23 leaves no fraction bits. REQUIRES: |lane| < 2^22.
  for (int i = 0; i < 16; ++i) v.lane[i] = (v.lane[i] + 12582912.0f) - 12582912.0f;
  return v;
}
SLUICE_INLINE Vec ScaleByPow2(Vec v, Vec n) {
  for (int i = 0; i < 16; ++i) {
    v.lane[i] *= FloatOf(static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23);
  }
  return v;
}

SLUICE_END_ISA
