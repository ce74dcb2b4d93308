// Nested codes over AArch64 Advanced SIMD with the dot product (Armv8.2 FEAT_DotProd). What each
// function means is stated in codes_scalar-inl.h.
//
// SDOT multiplies signed bytes. Codes of up to 6 bits are the same signed and unsigned; codes of 8
// bits are taken minus 128, which their sum of inputs makes good.
#pragma once

#include "kernels/cpu/vec_neon-inl.h"

SLUICE_BEGIN_ISA

constexpr int kNestedMaxTile = 4;
constexpr bool kDotsTakeHigh = false;
constexpr bool kNeedsInputSums = true;
template <int precision>
constexpr int kDotWidth = precision <= 6 ? 6 : 8;

struct Codes {
  uint8x16_t q[4];
};
SLUICE_INLINE Codes LoadCodes(const uint8_t* from) {
  return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
}
SLUICE_INLINE Codes KeepLoaded(Codes codes) { return codes; }
SLUICE_INLINE void StoreCodes(uint8_t* to, Codes codes) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) vst1q_u8(to + 16 * i, codes.q[i]);
}
template <int n>
SLUICE_INLINE Codes ShiftLeft(Codes a) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vshlq_n_u8(a.q[i], n);
  return a;
}
template <int n>
SLUICE_INLINE Codes ShiftRight(Codes a) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vshrq_n_u8(a.q[i], n);
  return a;
}
template <int mask>
SLUICE_INLINE Codes SelectBits(Codes a, Codes b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vbslq_u8(vdupq_n_u8(mask), a.q[i], b.q[i]);
  return a;
}
template <int mask>
SLUICE_INLINE Codes KeepBits(Codes a) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vandq_u8(a.q[i], vdupq_n_u8(mask));
  return a;
}

template <int width>
struct Dots {
  int32x4_t q[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
};
template <int width>
SLUICE_INLINE void AddDots(Codes codes, const int8_t* x, Dots<width>& sum) {
  int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(quad));
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    uint8x16_t bytes = codes.q[i];
    if constexpr (width == 8) bytes = veorq_u8(bytes, vdupq_n_u8(0x80));
    sum.q[i] = vdotq_s32(sum.q[i], vreinterpretq_s8_u8(bytes), inputs);
  }
}
template <int width>
SLUICE_INLINE Dots<width> MergeDots(Dots<width> a, Dots<width> b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vaddq_s32(a.q[i], b.q[i]);
  return a;
}
template <int width>
SLUICE_INLINE Vec DotsToVec(const Dots<width>& sum, int32_t x_sum) {
  Vec v;
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    int32x4_t dots = sum.q[i];
    if constexpr (width == 8) dots = vaddq_s32(dots, vdupq_n_s32(128 * x_sum));
    v.q[i] = vcvtq_f32_s32(dots);
  }
  return v;
}

// AddDots takes codes minus 128 as it is.
SLUICE_INLINE Dots<8> CentredDots(int32_t) { return {}; }
SLUICE_INLINE Vec JoinDots(const Dots<8>& high, const Dots<8>& low) {
  Vec v;
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    v.q[i] = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high.q[i], 7), low.q[i]));
  }
  return v;
}

struct CodeTable {
  uint8x16_t v;
};
SLUICE_INLINE CodeTable LoadTable(const uint8_t* from) { return {vld1q_u8(from)}; }
SLUICE_INLINE Codes LookUp(CodeTable table, Codes codes) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) codes.q[i] = vqtbl1q_u8(table.v, codes.q[i]);
  return codes;
}

SLUICE_INLINE float32x4_t PowersOf(uint32x4_t e) {
  const uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
  const uint32x4_t tiny = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
  return vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), tiny, normal));
}
SLUICE_INLINE Vec LoadE8m0(const uint8_t* from) {
  const uint8x16_t bytes = vld1q_u8(from);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes));
  const uint16x8_t high = vmovl_u8(vget_high_u8(bytes));
  return {{PowersOf(vmovl_u16(vget_low_u16(low))), PowersOf(vmovl_u16(vget_high_u16(low))),
           PowersOf(vmovl_u16(vget_low_u16(high))), PowersOf(vmovl_u16(vget_high_u16(high)))}};
}
SLUICE_INLINE Vec LoadU8(const uint8_t* from) {
  const uint8x16_t bytes = vld1q_u8(from);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes));
  const uint16x8_t high = vmovl_u8(vget_high_u8(bytes));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
           vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}
SLUICE_INLINE Vec LoadI8(const uint8_t* from) {
  const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(from));
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes));
  const int16x8_t high = vmovl_s8(vget_high_s8(bytes));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
           vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
SLUICE_INLINE void StoreI8(int8_t* to, Vec v) {
  const int16x8_t low =
      vcombine_s16(vmovn_s32(vcvtq_s32_f32(v.q[0])), vmovn_s32(vcvtq_s32_f32(v.q[1])));
  const int16x8_t high =
      vcombine_s16(vmovn_s32(vcvtq_s32_f32(v.q[2])), vmovn_s32(vcvtq_s32_f32(v.q[3])));
  vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

SLUICE_END_ISA
