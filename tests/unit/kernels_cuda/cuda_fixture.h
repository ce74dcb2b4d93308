// What the tests of kernels/cuda share. The same tests run under the host emulation and, built with
// SLUICE_CUDA_NATIVE, on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/kernel_fixture.h"
#if !defined(SLUICE_CUDA_NATIVE)
#include "tests/support/cuda_emulation.h"
#endif

namespace sluice::cuda {

// An array in device memory between guard bytes, which its destructor checks.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (!values.empty()) {
      REQUIRE(Copy(data(), values.data(), values.size() * sizeof(T)) == Status::kOk);
    }
  }
  // Holds 0xff bytes: NaNs.
  explicit DeviceArray(size_t n) : n_(n) {
    const std::vector<uint8_t> guard(2 * kGuard + n * sizeof(T), kPattern);
    REQUIRE(Allocate(guard.size(), &memory_) == Status::kOk);
    REQUIRE(Copy(memory_, guard.data(), guard.size()) == Status::kOk);
    const std::vector<uint8_t> nans(n * sizeof(T), 0xff);
    if (n > 0) REQUIRE(Copy(data(), nans.data(), nans.size()) == Status::kOk);
  }
  ~DeviceArray() {
    std::vector<uint8_t> all(2 * kGuard + n_ * sizeof(T));
    CHECK(Copy(all.data(), memory_, all.size()) == Status::kOk);
    size_t broken = 0;
    for (size_t i = 0; i < kGuard; ++i) {
      broken += (all[i] != kPattern) + (all[all.size() - 1 - i] != kPattern);
    }
    CHECK(broken == 0);
    Free(memory_);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return reinterpret_cast<T*>(static_cast<std::byte*>(memory_) + kGuard); }
  size_t size() const { return n_; }
  std::vector<T> Values() const {
    std::vector<T> values(n_);
    REQUIRE(Synchronize(nullptr) == Status::kOk);
    if (n_ > 0) REQUIRE(Copy(values.data(), data(), n_ * sizeof(T)) == Status::kOk);
    return values;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kPattern = 0xa5;
  size_t n_;
  void* memory_ = nullptr;
};

template <class T>
bool SameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// What `run` returns, the same bytes in whichever order blocks, warps and threads advance.
template <class Run>
auto InEveryOrder(Run run) {
#if defined(SLUICE_CUDA_NATIVE)
  return run();
#else
  cuda_emulation::SetSeed(0);
  auto first = run();
  for (const uint64_t seed : {1, 2, 3}) {
    cuda_emulation::SetSeed(seed);
    CHECK(SameBytes(run(), first));
  }
  cuda_emulation::SetSeed(0);
  return first;
#endif
}

// Largest |a - b| / (|b| + floor); infinite for what is not a number.
inline double WorstRelative(const std::vector<float>& a, const std::vector<float>& b,
                            double floor) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double error = std::fabs(static_cast<double>(a[i]) - b[i]) /
                         (std::fabs(static_cast<double>(b[i])) + floor);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  }
  return worst;
}

}  // namespace sluice::cuda
