// Nested codes over AVX2. What each function means is stated in codes_scalar-inl.h.
//
// vpmaddubsw adds two products into 16 bits and saturates at 32767. Codes of up to 4 bits leave
// room for all 16 products of a row in a group of 32 (16 * 15 * 127 = 30480), those of up to 6 bits
// for two (16002); codes of 8 bits are taken as two nibbles.
#pragma once

#include "kernels/cpu/vec_avx2-inl.h"

SLUICE_BEGIN_ISA

constexpr int kNestedMaxTile = 4;
constexpr bool kDotsTakeHigh = false;
constexpr bool kNeedsInputSums = false;
template <int precision>
constexpr int kDotWidth = precision <= 4   ? 4
                          : precision <= 6 ? 6
                                           : 8;

struct Codes {
  __m256i lo;
  __m256i hi;
};
SLUICE_INLINE Codes LoadCodes(const uint8_t* from) {
  const __m256i* p = reinterpret_cast<const __m256i*>(from);
  return {_mm256_load_si256(p), _mm256_load_si256(p + 1)};
}
SLUICE_INLINE Codes KeepLoaded(Codes codes) { return codes; }
SLUICE_INLINE void StoreCodes(uint8_t* to, Codes codes) {
  __m256i* p = reinterpret_cast<__m256i*>(to);
  _mm256_store_si256(p, codes.lo);
  _mm256_store_si256(p + 1, codes.hi);
}
template <int n>
SLUICE_INLINE Codes ShiftLeft(Codes a) {
  return {_mm256_slli_epi16(a.lo, n), _mm256_slli_epi16(a.hi, n)};
}
template <int n>
SLUICE_INLINE Codes ShiftRight(Codes a) {
  return {_mm256_srli_epi16(a.lo, n), _mm256_srli_epi16(a.hi, n)};
}
template <int mask>
SLUICE_INLINE Codes KeepBits(Codes a) {
  const __m256i ones = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(a.lo, ones), _mm256_and_si256(a.hi, ones)};
}
template <int mask>
SLUICE_INLINE Codes SelectBits(Codes a, Codes b) {
  const __m256i ones = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_or_si256(_mm256_and_si256(ones, a.lo), _mm256_andnot_si256(ones, b.lo)),
          _mm256_or_si256(_mm256_and_si256(ones, a.hi), _mm256_andnot_si256(ones, b.hi))};
}

// Width 4: two 16-bit sums per row; else one of 32 bits.
template <int width>
struct Dots {
  __m256i lo = _mm256_setzero_si256();
  __m256i hi = _mm256_setzero_si256();
};
template <int width>
SLUICE_INLINE __m256i AddDotsHalf(__m256i codes, __m256i x, __m256i sum) {
  if constexpr (width == 4) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
  } else if constexpr (width == 6) {
    const __m256i pairs = _mm256_maddubs_epi16(codes, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  } else {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibble), x);
    const __m256i high =
        _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble), x);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
  }
}
template <int width>
SLUICE_INLINE void AddDots(Codes codes, const int8_t* x, Dots<width>& sum) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  const __m256i inputs = _mm256_set1_epi32(quad);
  sum.lo = AddDotsHalf<width>(codes.lo, inputs, sum.lo);
  sum.hi = AddDotsHalf<width>(codes.hi, inputs, sum.hi);
}
template <int width>
SLUICE_INLINE Dots<width> MergeDots(Dots<width> a, Dots<width> b) {
  if constexpr (width == 4) {
    a.lo = _mm256_add_epi16(a.lo, b.lo);
    a.hi = _mm256_add_epi16(a.hi, b.hi);
  } else {
    a.lo = _mm256_add_epi32(a.lo, b.lo);
    a.hi = _mm256_add_epi32(a.hi, b.hi);
  }
  return a;
}
template <int width>
SLUICE_INLINE Vec DotsToVec(const Dots<width>& sum, int32_t) {
  if constexpr (width == 4) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_cvtepi32_ps(_mm256_madd_epi16(sum.lo, ones)),
            _mm256_cvtepi32_ps(_mm256_madd_epi16(sum.hi, ones))};
  }
  return {_mm256_cvtepi32_ps(sum.lo), _mm256_cvtepi32_ps(sum.hi)};
}

SLUICE_INLINE Dots<8> CentredDots(int32_t x_sum) {
  const __m256i start = _mm256_set1_epi32(-128 * x_sum);
  return {start, start};
}
SLUICE_INLINE Vec JoinDots(const Dots<8>& high, const Dots<8>& low) {
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high.lo, 7), low.lo)),
          _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high.hi, 7), low.hi))};
}

struct CodeTable {
  __m256i v;
};
SLUICE_INLINE CodeTable LoadTable(const uint8_t* from) {
  return {_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
}
SLUICE_INLINE Codes LookUp(CodeTable table, Codes codes) {
  return {_mm256_shuffle_epi8(table.v, codes.lo), _mm256_shuffle_epi8(table.v, codes.hi)};
}

SLUICE_INLINE __m256 PowersOf(__m256i e) {
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  return _mm256_castsi256_ps(
      _mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}
SLUICE_INLINE Vec LoadE8m0(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {PowersOf(_mm256_cvtepu8_epi32(bytes)),
          PowersOf(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
SLUICE_INLINE Vec LoadU8(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
SLUICE_INLINE Vec LoadI8(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
SLUICE_INLINE void StoreI8(int8_t* to, Vec v) {
  // Packing works on 128-bit halves: the permutation restores the order.
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)), 0b11011000);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

SLUICE_END_ISA
