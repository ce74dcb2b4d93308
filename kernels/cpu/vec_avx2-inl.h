// The vector wrapper over AVX2, FMA and F16C: 16 F32 lanes in two registers. What each function
// means is stated in vec_scalar-inl.h.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"

SLUICE_BEGIN_ISA

constexpr int kMatmulAccumulators = 6;
constexpr int kMatmulMaxTile = 6;
constexpr int kAttentionAccumulators = 4;
constexpr bool kHasBf16Dot = false;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct Vec {
  __m256 lo;
  __m256 hi;
};

SLUICE_INLINE Vec Load(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
SLUICE_INLINE __m256 WidenBf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
SLUICE_INLINE Vec Load(const Bf16* from) {
  const __m128i* p = reinterpret_cast<const __m128i*>(from);
  return {WidenBf16(_mm_loadu_si128(p)), WidenBf16(_mm_loadu_si128(p + 1))};
}
SLUICE_INLINE Vec Load(const F16* from) {
  const __m128i* p = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p + 1))};
}
template <class T>
SLUICE_INLINE Vec LoadN(const T* from, int n) {
  alignas(32) T padded[16] = {};
  __builtin_memcpy(padded, from, static_cast<size_t>(n) * sizeof(T));
  return Load(padded);
}
SLUICE_INLINE Vec LoadEven(const Bf16* from) {
  const __m256i* p = reinterpret_cast<const __m256i*>(from);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(p + 1), 16))};
}
SLUICE_INLINE Vec LoadOdd(const Bf16* from) {
  const __m256i* p = reinterpret_cast<const __m256i*>(from);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p + 1), mask))};
}

SLUICE_INLINE void Store(float* to, Vec v) {
  _mm256_storeu_ps(to, v.lo);
  _mm256_storeu_ps(to + 8, v.hi);
}
SLUICE_INLINE __m256i RoundBf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i top = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
SLUICE_INLINE void Store(Bf16* to, Vec v) {
  // packus interleaves 128-bit halves: the permutation restores the order.
  const __m256i packed =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(RoundBf16(v.lo), RoundBf16(v.hi)), 0b11011000);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}
SLUICE_INLINE void Store(F16* to, Vec v) {
  __m128i* p = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(p, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(p + 1, _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
template <class T>
SLUICE_INLINE void StoreN(T* to, Vec v, int n) {
  alignas(32) T padded[16];
  Store(padded, v);
  __builtin_memcpy(to, padded, static_cast<size_t>(n) * sizeof(T));
}

SLUICE_INLINE Vec Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SLUICE_INLINE Vec Add(Vec a, Vec b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
SLUICE_INLINE Vec Sub(Vec a, Vec b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
SLUICE_INLINE Vec Mul(Vec a, Vec b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
SLUICE_INLINE Vec Div(Vec a, Vec b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
SLUICE_INLINE Vec Min(Vec a, Vec b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
SLUICE_INLINE Vec Max(Vec a, Vec b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
SLUICE_INLINE Vec Fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SLUICE_INLINE Vec KeepLanes(Vec v, int begin, int end, float fill) {
  const __m256i first = _mm256_set1_epi32(begin - 1);
  const __m256i last = _mm256_set1_epi32(end);
  const __m256i lo = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i hi = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
  const __m256 other = _mm256_set1_ps(fill);
  const __m256i keep_lo =
      _mm256_and_si256(_mm256_cmpgt_epi32(lo, first), _mm256_cmpgt_epi32(last, lo));
  const __m256i keep_hi =
      _mm256_and_si256(_mm256_cmpgt_epi32(hi, first), _mm256_cmpgt_epi32(last, hi));
  return {_mm256_blendv_ps(other, v.lo, _mm256_castsi256_ps(keep_lo)),
          _mm256_blendv_ps(other, v.hi, _mm256_castsi256_ps(keep_hi))};
}
SLUICE_INLINE Vec ZeroAtOrBelow(Vec v, Vec x, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.lo, bound, _CMP_LE_OQ), v.lo),
          _mm256_andnot_ps(_mm256_cmp_ps(x.hi, bound, _CMP_LE_OQ), v.hi)};
}
SLUICE_INLINE float SumLanes(Vec v) {
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
SLUICE_INLINE float MaxLanes(Vec v) {
  const __m256 eight = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
SLUICE_INLINE Vec RoundToInt(Vec v) {
  return {_mm256_round_ps(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
SLUICE_INLINE __m256 Pow2(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
SLUICE_INLINE Vec ScaleByPow2(Vec v, Vec n) { return Mul(v, {Pow2(n.lo), Pow2(n.hi)}); }

SLUICE_END_ISA
