// Nested codes over AVX-512 with VNNI. What each function means is stated in codes_scalar-inl.h.
#pragma once

#include "kernels/cpu/vec_avx512-inl.h"

SLUICE_BEGIN_ISA

constexpr int kNestedMaxTile = 12;
constexpr bool kDotsTakeHigh = true;
constexpr bool kNeedsInputSums = false;
template <int precision>
constexpr int kDotWidth = 8;

struct Codes {
  __m512i v;
};
SLUICE_INLINE Codes LoadCodes(const uint8_t* from) { return {_mm512_load_si512(from)}; }
SLUICE_INLINE Codes KeepLoaded(Codes codes) {
  __asm__("" : "+v"(codes.v));
  return codes;
}
SLUICE_INLINE void StoreCodes(uint8_t* to, Codes codes) { _mm512_store_si512(to, codes.v); }
template <int n>
SLUICE_INLINE Codes ShiftLeft(Codes a) {
  return {_mm512_slli_epi16(a.v, n)};
}
template <int n>
SLUICE_INLINE Codes ShiftRight(Codes a) {
  return {_mm512_srli_epi16(a.v, n)};
}
template <int mask>
SLUICE_INLINE Codes SelectBits(Codes a, Codes b) {
  const __m512i ones = _mm512_set1_epi8(static_cast<char>(mask));
  return {_mm512_ternarylogic_epi32(a.v, b.v, ones, 0xe4)};
}
template <int mask>
SLUICE_INLINE Codes KeepBits(Codes a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(mask)))};
}

template <int width>
struct Dots {
  __m512i v = _mm512_setzero_si512();
};
template <int width>
SLUICE_INLINE void AddDots(Codes codes, const int8_t* x, Dots<width>& sum) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  sum.v = _mm512_dpbusd_epi32(sum.v, codes.v, _mm512_set1_epi32(quad));
}
template <int width>
SLUICE_INLINE Dots<width> MergeDots(Dots<width> a, Dots<width> b) {
  a.v = _mm512_add_epi32(a.v, b.v);
  return a;
}
template <int width>
SLUICE_INLINE Dots<width> MergeHighDots(Dots<width> a, Dots<width> b) {
  a.v = _mm512_add_epi32(a.v, _mm512_srai_epi32(b.v, 4));
  return a;
}
template <int width>
SLUICE_INLINE Vec DotsToVec(const Dots<width>& sum, int32_t) {
  return {_mm512_cvtepi32_ps(sum.v)};
}

SLUICE_INLINE Dots<8> CentredDots(int32_t x_sum) { return {_mm512_set1_epi32(-128 * x_sum)}; }
SLUICE_INLINE Vec JoinDots(const Dots<8>& high, const Dots<8>& low) {
  return {_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high.v, 7), low.v))};
}

struct CodeTable {
  __m512i v;
};
SLUICE_INLINE CodeTable LoadTable(const uint8_t* from) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
}
SLUICE_INLINE Codes LookUp(CodeTable table, Codes codes) {
  return {_mm512_shuffle_epi8(table.v, codes.v)};
}

SLUICE_INLINE Vec LoadE8m0(const uint8_t* from) {
  const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  const __mmask16 tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
  return {
      _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, tiny, _mm512_set1_epi32(0x00200000), e))};
}
SLUICE_INLINE Vec LoadU8(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
SLUICE_INLINE Vec LoadI8(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
SLUICE_INLINE void StoreI8(int8_t* to, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.v)));
}

SLUICE_END_ISA
