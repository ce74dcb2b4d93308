// What the kernel benches share: memory on huge pages, the rooflines, and best-of-rounds timing.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice::cpu {

inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Memory on huge pages where the kernel grants them, filled so that every page exists.
class Arena {
 public:
  explicit Arena(size_t bytes) : bytes_((bytes + kHuge - 1) / kHuge * kHuge) {
    data_ = static_cast<uint8_t*>(std::aligned_alloc(kHuge, bytes_));
    if (data_ == nullptr) std::abort();
    madvise(data_, bytes_, MADV_HUGEPAGE);
    // Bf16 0x3c3c, F16 0x3c3c and F32 0x3c3c3c3c are all small normal numbers.
    std::memset(data_, 0x3c, bytes_);
    // No two pages alike, in low bytes only: a hypervisor may merge equal pages, and equal pages in
    // a cache are no memory to measure.
    for (size_t page = 0; page < bytes_ / 4096; ++page) {
      for (int i = 0; i < 3; ++i) data_[page * 4096 + 2 * i] = static_cast<uint8_t>(page >> 8 * i);
    }
  }
  ~Arena() { std::free(data_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kHuge = 2 << 20;
  size_t bytes_;
  uint8_t* data_;
};

struct Bench {
  const Ops* ops;
  int threads;
  int rounds;
  ThreadPool pool;
  std::vector<DType> dtypes = {DType::kBF16, DType::kF16, DType::kF32};
  std::vector<KvDType> kv_dtypes = {KvDType::kBF16, KvDType::kF16, KvDType::kF32, KvDType::kQ8};

  // Seconds of several things, taken in turn: of each the one at `quantile` of the rounds.
  std::vector<double> Quantile(double quantile, const std::vector<std::function<void()>>& things,
                               int rounds_of) {
    std::vector<std::vector<double>> seconds(things.size());
    for (int round = 0; round < rounds_of; ++round) {
      for (size_t i = 0; i < things.size(); ++i) {
        const double start = Now();
        things[i]();
        seconds[i].push_back(Now() - start);
      }
    }
    std::vector<double> result;
    for (std::vector<double>& s : seconds) {
      std::sort(s.begin(), s.end());
      result.push_back(s[static_cast<size_t>(quantile * static_cast<double>(s.size() - 1))]);
    }
    return result;
  }
  std::vector<double> Best(const std::vector<std::function<void()>>& things, int rounds_of) {
    return Quantile(0, things, rounds_of);
  }
  std::vector<double> Median(const std::vector<std::function<void()>>& things, int rounds_of) {
    return Quantile(0.5, things, rounds_of);
  }

  void ReadAll(const uint8_t* data, size_t bytes) {
    const size_t share = bytes / threads / 4096 * 4096;
    pool.Run([&](int worker) {
      checksum[worker * 8] += ops->read_stream(data + worker * share, share);
    });
  }

  double PeakMacsPerSecond(DType dtype) {
    std::vector<int64_t> macs(threads * 8);
    float sink = 0;
    const std::vector<double> best = Best({[&] {
                                            pool.Run([&](int worker) {
                                              float mine = 0;
                                              macs[worker * 8] =
                                                  ops->peak_macs(dtype, 100000, &mine);
                                              if (worker == 0) sink += mine;
                                            });
                                          }},
                                          rounds);
    double total = 0;
    for (int i = 0; i < threads; ++i) total += static_cast<double>(macs[i * 8]);
    return total / best[0];
  }

  uint64_t checksum[8 * 64] = {};
};

// The bit-nested matrices: streaming and warm. In bench_nested.cc.
void BenchNestedStream(Bench& b);
void BenchNestedMatmul(Bench& b);

}  // namespace sluice::cpu
