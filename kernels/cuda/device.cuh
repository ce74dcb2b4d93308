// What kernels are written with: vector loads, shared memory, dot products, warp sums, conversions
// and the launch. Included by .cu files alone. Compiled by nvcc it is CUDA; compiled as C++ after
// tests/support/cuda_emulation.h it runs on the host, with the same results bit for bit: every
// float operation is written out (fmaf where it is fused; nvcc is given --fmad=false), and
// exponentials are ours.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/kv_format.h"
#include "kernels/cuda/ops.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#elif defined(SLUICE_CUDA_EMULATED)
#include "kernels/common/half.h"
#else
#error "kernels/cuda is compiled by nvcc, or after tests/support/cuda_emulation.h"
#endif

// SLUICE_SHARED(Type, name): an object of the block in shared memory, not initialized.
#if defined(__CUDACC__)
#define SLUICE_SHARED(Type, name) __shared__ Type name
#else
#define SLUICE_SHARED(Type, name)                                          \
  Type& name = *static_cast<Type*>(::sluice::cuda_emulation::SharedObject( \
      sizeof(Type), alignof(Type), ::sluice::cuda_emulation::Place::Here()))
#endif

namespace sluice::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarpLanes = 32;

#if defined(__CUDACC__)

// V is uint32_t, uint2 or uint4. What kernels only read, at V's alignment.
template <class V>
__device__ __forceinline__ V LoadConst(const void* from) {
  return __ldg(static_cast<const V*>(from));
}
__device__ __forceinline__ float HalfToFloat(unsigned bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ unsigned FloatToHalf(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
// c plus the dot product of four unsigned bytes with four signed ones, exact.
__device__ __forceinline__ int DotUnsignedSigned(unsigned a, unsigned b, int c) {
  int sum;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}
__device__ __forceinline__ float RoundToEven(float x) { return rintf(x); }

#else

template <class V>
V LoadConst(const void* from, cuda_emulation::Place at = cuda_emulation::Place::Here()) {
  return cuda_emulation::LoadAs<V>(from, at);
}
inline float HalfToFloat(unsigned bits) { return F16ToF32(static_cast<uint16_t>(bits)); }
inline unsigned FloatToHalf(float value) { return F32ToF16(value); }
inline int DotUnsignedSigned(unsigned a, unsigned b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<int>(a >> (8 * i) & 0xff) * static_cast<int8_t>(b >> (8 * i) & 0xff);
  }
  return c;
}
inline float RoundToEven(float x) { return std::nearbyintf(x); }

#endif

__device__ __forceinline__ int LaneOf() { return static_cast<int>(threadIdx.x) % kWarpLanes; }
__device__ __forceinline__ int WarpOf() { return static_cast<int>(threadIdx.x) / kWarpLanes; }

__device__ __forceinline__ float Bf16ToFloat(unsigned bits) { return __uint_as_float(bits << 16); }

// Butterflies: every lane ends with the same value, summed in one fixed order.
__device__ __forceinline__ float WarpSum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}
// A NaN in any lane is lost; callers that must keep it sum x * 0 as well.
__device__ __forceinline__ float WarpMax(float x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, x, mask);
    x = other > x ? other : x;
  }
  return x;
}

__device__ __forceinline__ float Clamped(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}

// e^x to about 1e-7 relative, exactly 0 where x <= -87; a NaN stays a NaN. The polynomial of
// kernels/cpu/math-inl.h.
__device__ __forceinline__ float ExpOrZero(float x) {
  if (x <= -87.0f) return 0.0f;
  const float clamped = x > 88.0f ? 88.0f : x;
  const float n = RoundToEven(clamped * 1.44269504f);
  float r = fmaf(n, -0.693145752f, clamped);
  r = fmaf(n, -1.42860677e-6f, r);
  float q = 0.00138145394f;
  q = fmaf(q, r, 0.00836874545f);
  q = fmaf(q, r, 0.041668389f);
  q = fmaf(q, r, 0.166665211f);
  q = fmaf(q, r, 0.49999994f);
  const float e = 1.0f + fmaf(q * r, r, r);
  if (!(n == n)) return x;
  return __uint_as_float(__float_as_uint(e) + (static_cast<unsigned>(static_cast<int>(n)) << 23));
}

// 2^x to about 2e-7 relative for x <= 0; below -126 it is 2^-126, a NaN stays a NaN.
__device__ __forceinline__ float Exp2OfNegative(float x) {
  if (!(x == x)) return x;
  const float clamped = x < -126.0f ? -126.0f : x;
  const float n = RoundToEven(clamped);
  const float r = clamped - n;
  float q = 0.00132647273f;
  q = fmaf(q, r, 0.00967151299f);
  q = fmaf(q, r, 0.0555073358f);
  q = fmaf(q, r, 0.240222424f);
  q = fmaf(q, r, 0.693147004f);
  const float e = fmaf(q, r, 1.0f);
  return __uint_as_float(__float_as_uint(e) + (static_cast<unsigned>(static_cast<int>(n)) << 23));
}

// x / (1 + e^-x). Far below zero e^-x is held at e^88: the quotient is nothing there.
__device__ __forceinline__ float Silu(float x) { return x / (1.0f + ExpOrZero(-x)); }

// Runs the kernel once for each of the blocks, `threads` threads each, after what the stream holds.
#if defined(__CUDACC__)
template <class Args>
Status Launch(void (*kernel)(Args), dim3 grid, int threads, Stream stream, const Args& args) {
  kernel<<<grid, threads, 0, stream>>>(args);
  return static_cast<Status>(cudaGetLastError());
}
#else
using dim3 = cuda_emulation::Dim3;
template <class Args>
Status Launch(void (*kernel)(Args), dim3 grid, int threads, Stream, const Args& args) {
  struct Call {
    void (*kernel)(Args);
    const Args* args;
  } call = {kernel, &args};
  cuda_emulation::Launch(
      [](const void* at) {
        const auto& made = *static_cast<const Call*>(at);
        made.kernel(*made.args);
      },
      &call, grid, static_cast<unsigned>(threads));
  return Status::kOk;
}
#endif

}  // namespace sluice::cuda
