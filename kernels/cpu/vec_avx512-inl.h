// The vector wrapper over AVX-512 (F, BW, VL, DQ): 16 F32 lanes in one register, and the BF16 dot
// product where the file is compiled with it. What each function means is stated in
// vec_scalar-inl.h.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"

SLUICE_BEGIN_ISA

constexpr int kMatmulAccumulators = 24;
constexpr int kMatmulMaxTile = 12;
constexpr int kAttentionAccumulators = 16;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct Vec {
  __m512 v;
};

SLUICE_INLINE __mmask16 FirstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
SLUICE_INLINE Vec WidenBf16(__m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}

SLUICE_INLINE Vec Load(const float* from) { return {_mm512_loadu_ps(from)}; }
SLUICE_INLINE Vec Load(const Bf16* from) {
  return WidenBf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
SLUICE_INLINE Vec Load(const F16* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
SLUICE_INLINE Vec LoadN(const float* from, int n) {
  return {_mm512_maskz_loadu_ps(FirstLanes(n), from)};
}
SLUICE_INLINE Vec LoadN(const Bf16* from, int n) {
  return WidenBf16(_mm256_maskz_loadu_epi16(FirstLanes(n), from));
}
SLUICE_INLINE Vec LoadN(const F16* from, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(FirstLanes(n), from))};
}
SLUICE_INLINE Vec LoadEven(const Bf16* from) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16))};
}
SLUICE_INLINE Vec LoadOdd(const Bf16* from) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from),
                                               _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}

SLUICE_INLINE __m256i RoundBf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i top = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40)));
}
SLUICE_INLINE __m256i RoundF16(Vec x) {
  return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SLUICE_INLINE void Store(float* to, Vec x) { _mm512_storeu_ps(to, x.v); }
SLUICE_INLINE void Store(Bf16* to, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), RoundBf16(x));
}
SLUICE_INLINE void Store(F16* to, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), RoundF16(x));
}
SLUICE_INLINE void StoreN(float* to, Vec x, int n) {
  _mm512_mask_storeu_ps(to, FirstLanes(n), x.v);
}
SLUICE_INLINE void StoreN(Bf16* to, Vec x, int n) {
  _mm256_mask_storeu_epi16(to, FirstLanes(n), RoundBf16(x));
}
SLUICE_INLINE void StoreN(F16* to, Vec x, int n) {
  _mm256_mask_storeu_epi16(to, FirstLanes(n), RoundF16(x));
}

SLUICE_INLINE Vec Set(float x) { return {_mm512_set1_ps(x)}; }
SLUICE_INLINE Vec Add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
SLUICE_INLINE Vec Sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
SLUICE_INLINE Vec Mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
SLUICE_INLINE Vec Div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
SLUICE_INLINE Vec Min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
SLUICE_INLINE Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
SLUICE_INLINE Vec Fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SLUICE_INLINE Vec KeepLanes(Vec x, int begin, int end, float fill) {
  const uint32_t keep = ((1u << end) - 1u) & ~((1u << begin) - 1u);
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(keep), x.v)};
}
SLUICE_INLINE Vec ZeroAtOrBelow(Vec v, Vec x, float limit) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_ps(keep, v.v)};
}
SLUICE_INLINE float SumLanes(Vec x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
SLUICE_INLINE float MaxLanes(Vec x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
SLUICE_INLINE Vec RoundToInt(Vec x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
SLUICE_INLINE Vec ScaleByPow2(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }

#if defined(__AVX512BF16__)
constexpr bool kHasBf16Dot = true;

// 16 pairs of Bf16: 16 panel rows at two consecutive k, or one activation pair in all lanes.
struct Bf16Pairs {
  __m512i v;
};
SLUICE_INLINE Bf16Pairs LoadPairs(const Bf16* from) { return {_mm512_loadu_si512(from)}; }
SLUICE_INLINE Bf16Pairs BroadcastPair(const Bf16* from) {
  int32_t pair;
  __builtin_memcpy(&pair, from, sizeof pair);
  return {_mm512_set1_epi32(pair)};
}
SLUICE_INLINE Vec DotPairs(Bf16Pairs a, Bf16Pairs b, Vec sum) {
#if defined(__clang__)
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  return {
      _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
#endif
}
// 32 values rounded to Bf16, in order. Subnormal numbers become 0, as in DotPairs.
SLUICE_INLINE Bf16Pairs RoundPairs(Vec first, Vec second) {
  return {__builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(second.v, first.v))};
}
SLUICE_INLINE void StorePairs(Bf16* to, Bf16Pairs x) { _mm512_storeu_si512(to, x.v); }
// Stores pair i of rows[0 .. count) to pairs i * count ... of `to`: a transposition. count <= 16;
// rows at and past it may hold anything. Unless `exact`, 16 pairs are written for every i, so that
// up to 15 pairs past the end are overwritten.
SLUICE_INLINE void StoreTransposed(Bf16* to, const Bf16Pairs (&rows)[16], int count, bool exact) {
  __m512i a[16], b[16];
  SLUICE_UNROLL(8)
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i].v, rows[2 * i + 1].v);
    a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i].v, rows[2 * i + 1].v);
  }
  // b[4 g + j], lane l: pair 4 l + j of rows 4 g .. 4 g + 3.
  SLUICE_UNROLL(4)
  for (int g = 0; g < 4; ++g) {
    b[4 * g] = _mm512_unpacklo_epi64(a[4 * g], a[4 * g + 2]);
    b[4 * g + 1] = _mm512_unpackhi_epi64(a[4 * g], a[4 * g + 2]);
    b[4 * g + 2] = _mm512_unpacklo_epi64(a[4 * g + 1], a[4 * g + 3]);
    b[4 * g + 3] = _mm512_unpackhi_epi64(a[4 * g + 1], a[4 * g + 3]);
  }
  // a[4 l + j]: pair 4 l + j of all rows.
  SLUICE_UNROLL(4)
  for (int j = 0; j < 4; ++j) {
    const __m512i low01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
    const __m512i low23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i high01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
    const __m512i high23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    a[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    a[8 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    a[4 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    a[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  if (exact) {
    const __mmask16 mask = FirstLanes(count);
    SLUICE_UNROLL(16)
    for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(to + 2 * i * count, mask, a[i]);
  } else {
    SLUICE_UNROLL(16)
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + 2 * i * count, a[i]);
  }
}
#else
constexpr bool kHasBf16Dot = false;
#endif

SLUICE_END_ISA
