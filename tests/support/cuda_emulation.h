// Runs CUDA kernels on the host, one block after the other, every thread of a block a fiber.
//
// A `.cu` file of kernels/cuda is compiled as C++ with this header included before all else
// (-include): it gives the qualifiers, built-in variables and intrinsics that the kernels use, and
// what kernels/cuda/device.cuh would otherwise take from CUDA. Fibers run until they wait: at a
// block's barrier, a warp's barrier or a shuffle. Who runs next is drawn from a seed, so a result
// that depends on the order in which threads or blocks advance differs between seeds.
//
// Found and thrown as EmulationError by the launch, with the source line of the wait:
//   - a barrier that not all threads of the block reach, or two barriers waited at together
//   - a shuffle or warp barrier that not all lanes of its mask reach, a mask without the caller,
//     a value taken from a lane outside of the mask
//   - writes past shared objects (guard bytes round each), more than 48 KiB of them
//   - vector accesses off their alignment
// Shared memory holds 0xff bytes (NaNs) at the start of a block. Guard bytes round global memory
// are the tests' (kernel_fixture.h); AddressSanitizer finds reads outside of it. Missing barriers
// show as results that differ between seeds, and only if the drawn orders differ there: accesses
// themselves are not watched.
//
// Not here: more than 1024 threads, clusters, asynchronous copies, atomics, float16 arithmetic,
// tensor cores.
//
// Threads: one launch at a time in the whole process.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#define SLUICE_CUDA_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace sluice::cuda_emulation {

// A line of source; as a default argument, the caller's.
struct Place {
  const char* file;
  int line;
  static constexpr Place Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

class EmulationError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// The order in which blocks, warps and threads advance from now on. 0: ascending; 1: descending;
// others: drawn, odd ones a warp's lanes together, even ones thread by thread.
void SetSeed(uint64_t seed);

// Calls body(args) once for each thread of each block. REQUIRES: threads a multiple of 32, at most
// 1024. Throws EmulationError.
void Launch(void (*body)(const void*), const void* args, Dim3 grid, unsigned threads);

// The rest is for kernels and must be called by a running one.
const Dim3& ThreadIndex();
const Dim3& BlockIndex();
const Dim3& BlockSize();
const Dim3& GridSize();

void BlockBarrier(Place at);
// Exchanges 32 bits among the lanes of mask: returns what lane `source` passed.
uint32_t Exchange(uint32_t mask, uint32_t value, int source, Place at);
// The block's object for a declaration at `at`: the same address for all threads.
void* SharedObject(size_t bytes, size_t alignment, Place at);
// Ends the launch. `what` is a literal: nothing on a stopped fiber's stack is destroyed.
[[noreturn]] void Fail(const char* what, Place at);

inline int LaneIndex() { return static_cast<int>(ThreadIndex().x % 32); }

template <class V>
V LoadAs(const void* from, Place at = Place::Here()) {
  if (reinterpret_cast<uintptr_t>(from) % alignof(V) != 0) Fail("a load off its alignment", at);
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class V>
void StoreAs(void* to, const V& value, Place at = Place::Here()) {
  if (reinterpret_cast<uintptr_t>(to) % alignof(V) != 0) Fail("a store off its alignment", at);
  std::memcpy(to, &value, sizeof value);
}

template <class T>
T ExchangeAs(uint32_t mask, T value, int source, Place at) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = Exchange(mask, bits, source, at);
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace sluice::cuda_emulation

#define threadIdx (::sluice::cuda_emulation::ThreadIndex())
#define blockIdx (::sluice::cuda_emulation::BlockIndex())
#define blockDim (::sluice::cuda_emulation::BlockSize())
#define gridDim (::sluice::cuda_emulation::GridSize())

inline void __syncthreads(
    sluice::cuda_emulation::Place at = sluice::cuda_emulation::Place::Here()) {
  sluice::cuda_emulation::BlockBarrier(at);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       sluice::cuda_emulation::Place at = sluice::cuda_emulation::Place::Here()) {
  sluice::cuda_emulation::Exchange(mask, 0, sluice::cuda_emulation::LaneIndex(), at);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask,
                  sluice::cuda_emulation::Place at = sluice::cuda_emulation::Place::Here()) {
  return sluice::cuda_emulation::ExchangeAs(mask, value,
                                            sluice::cuda_emulation::LaneIndex() ^ lane_mask, at);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source,
              sluice::cuda_emulation::Place at = sluice::cuda_emulation::Place::Here()) {
  return sluice::cuda_emulation::ExchangeAs(mask, value, source & 31, at);
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> (4 * i);
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (selector & 7))) & 0xff;
    // prmt's mode of a set high bit: the byte's sign, eight times.
    if ((selector & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
