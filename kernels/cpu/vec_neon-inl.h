// The vector wrapper over AArch64 Advanced SIMD: 16 F32 lanes in four registers. What each function
// means is stated in vec_scalar-inl.h.
#pragma once

#include <arm_neon.h>
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
  float32x4_t q[4];
};

SLUICE_INLINE float32x4_t WidenBf16(uint16x4_t x) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(x), 16));
}
SLUICE_INLINE float32x4_t WidenF16(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }

SLUICE_INLINE Vec Load(const float* from) {
  return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
SLUICE_INLINE Vec Load(const Bf16* from) {
  // Byte loads: the source may have any alignment.
  const uint8_t* p = reinterpret_cast<const uint8_t*>(from);
  const uint16x8_t a = vreinterpretq_u16_u8(vld1q_u8(p));
  const uint16x8_t b = vreinterpretq_u16_u8(vld1q_u8(p + 16));
  return {{WidenBf16(vget_low_u16(a)), WidenBf16(vget_high_u16(a)), WidenBf16(vget_low_u16(b)),
           WidenBf16(vget_high_u16(b))}};
}
SLUICE_INLINE Vec Load(const F16* from) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(from);
  const uint16x8_t a = vreinterpretq_u16_u8(vld1q_u8(p));
  const uint16x8_t b = vreinterpretq_u16_u8(vld1q_u8(p + 16));
  return {{WidenF16(vget_low_u16(a)), WidenF16(vget_high_u16(a)), WidenF16(vget_low_u16(b)),
           WidenF16(vget_high_u16(b))}};
}
template <class T>
SLUICE_INLINE Vec LoadN(const T* from, int n) {
  alignas(16) T padded[16] = {};
  __builtin_memcpy(padded, from, static_cast<size_t>(n) * sizeof(T));
  return Load(padded);
}
SLUICE_INLINE Vec LoadEven(const Bf16* from) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(from);
  Vec v;
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    v.q[i] = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(p + 16 * i)), 16));
  }
  return v;
}
SLUICE_INLINE Vec LoadOdd(const Bf16* from) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(from);
  const uint32x4_t mask = vdupq_n_u32(0xffff0000u);
  Vec v;
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    v.q[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(p + 16 * i)), mask));
  }
  return v;
}

SLUICE_INLINE uint16x4_t RoundBf16(float32x4_t v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t top = vshrq_n_u32(bits, 16);
  const uint32x4_t odd = vandq_u32(top, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
  const uint32x4_t quiet = vorrq_u32(top, vdupq_n_u32(0x40));
  return vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet));
}
SLUICE_INLINE uint16x4_t RoundF16(float32x4_t v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
SLUICE_INLINE void Store(float* to, Vec v) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, v.q[i]);
}
SLUICE_INLINE void Store(Bf16* to, Vec v) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    vst1_u8(reinterpret_cast<uint8_t*>(to + 4 * i), vreinterpret_u8_u16(RoundBf16(v.q[i])));
  }
}
SLUICE_INLINE void Store(F16* to, Vec v) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    vst1_u8(reinterpret_cast<uint8_t*>(to + 4 * i), vreinterpret_u8_u16(RoundF16(v.q[i])));
  }
}
template <class T>
SLUICE_INLINE void StoreN(T* to, Vec v, int n) {
  alignas(16) T padded[16];
  Store(padded, v);
  __builtin_memcpy(to, padded, static_cast<size_t>(n) * sizeof(T));
}

SLUICE_INLINE Vec Set(float x) {
  const float32x4_t q = vdupq_n_f32(x);
  return {{q, q, q, q}};
}
SLUICE_INLINE Vec Add(Vec a, Vec b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vaddq_f32(a.q[i], b.q[i]);
  return a;
}
SLUICE_INLINE Vec Sub(Vec a, Vec b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vsubq_f32(a.q[i], b.q[i]);
  return a;
}
SLUICE_INLINE Vec Mul(Vec a, Vec b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vmulq_f32(a.q[i], b.q[i]);
  return a;
}
SLUICE_INLINE Vec Div(Vec a, Vec b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vdivq_f32(a.q[i], b.q[i]);
  return a;
}
// A comparison with a NaN is false, which selects b as the contract asks.
SLUICE_INLINE Vec Min(Vec a, Vec b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]);
  return a;
}
SLUICE_INLINE Vec Max(Vec a, Vec b) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) a.q[i] = vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]);
  return a;
}
SLUICE_INLINE Vec Fma(Vec a, Vec b, Vec c) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) c.q[i] = vfmaq_f32(c.q[i], a.q[i], b.q[i]);
  return c;
}
SLUICE_INLINE Vec KeepLanes(Vec v, int begin, int end, float fill) {
  const int32_t kFirst[4] = {0, 1, 2, 3};
  const int32x4_t lanes = vld1q_s32(kFirst);
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    const int32x4_t lane = vaddq_s32(lanes, vdupq_n_s32(4 * i));
    const uint32x4_t keep =
        vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
    v.q[i] = vbslq_f32(keep, v.q[i], vdupq_n_f32(fill));
  }
  return v;
}
SLUICE_INLINE Vec ZeroAtOrBelow(Vec v, Vec x, float limit) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t zero = vcleq_f32(x.q[i], vdupq_n_f32(limit));
    v.q[i] = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v.q[i]), zero));
  }
  return v;
}
SLUICE_INLINE float SumLanes(Vec v) {
  const float32x4_t four = vaddq_f32(vaddq_f32(v.q[0], v.q[2]), vaddq_f32(v.q[1], v.q[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
SLUICE_INLINE float MaxLanes(Vec v) {
  const Vec swapped = {{v.q[2], v.q[3], v.q[2], v.q[3]}};
  const Vec eight = Max(v, swapped);
  const float32x4_t four = vbslq_f32(vcgtq_f32(eight.q[0], eight.q[1]), eight.q[0], eight.q[1]);
  const float a = vgetq_lane_f32(four, 0);
  const float b = vgetq_lane_f32(four, 1);
  const float c = vgetq_lane_f32(four, 2);
  const float d = vgetq_lane_f32(four, 3);
  const float ac = a > c ? a : c;
  const float bd = b > d ? b : d;
  return ac > bd ? ac : bd;
}
SLUICE_INLINE Vec RoundToInt(Vec v) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) v.q[i] = vrndnq_f32(v.q[i]);
  return v;
}
SLUICE_INLINE Vec ScaleByPow2(Vec v, Vec n) {
  SLUICE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(n.q[i]), vdupq_n_s32(127));
    v.q[i] = vmulq_f32(v.q[i], vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
  }
  return v;
}

SLUICE_END_ISA
