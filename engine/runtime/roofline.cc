#include "engine/runtime/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/base/check.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// peak(rounds, sink): as Ops::peak_macs.
template <class Peak>
double MeasureMacs(cpu::ThreadPool& pool, Peak&& peak) {
  constexpr int kSinkFloats = 1024;  // apart, so that workers share no cache line
  std::vector<float> sink(static_cast<size_t>(pool.threads()) * kSinkFloats);
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    std::atomic<int64_t> macs{0};
    const auto start = Clock::now();
    pool.Run([&](int worker) {
      macs.fetch_add(peak(int64_t{2'000'000}, sink.data() + worker * kSinkFloats),
                     std::memory_order_relaxed);
    });
    best = std::max(best, macs.load() / Seconds(Clock::now() - start));
  }
  return best;
}

// The median: a fork that a busy machine delays says nothing of the others.
double MeasureFork(cpu::ThreadPool& pool) {
  std::vector<double> seconds(501);
  for (double& s : seconds) {
    const auto start = Clock::now();
    pool.Run([](int) {});
    s = Seconds(Clock::now() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + 250, seconds.end());
  return seconds[250];
}

}  // namespace

Roofline MeasureMemory(const cpu::Ops& ops, cpu::ThreadPool& pool, uint64_t memory_bytes) {
  constexpr size_t kPiece = size_t{4} << 20;
  const int threads = pool.threads();
  size_t bytes_per_thread = size_t{256} << 20;
  if (memory_bytes > 0) {
    bytes_per_thread =
        std::clamp<size_t>(memory_bytes / threads / kPiece * kPiece, 2 * kPiece, bytes_per_thread);
  }
  const size_t total = bytes_per_thread * threads;
  std::unique_ptr<std::byte, decltype(&std::free)> buffer(
      static_cast<std::byte*>(std::aligned_alloc(4096, total)), &std::free);
  SLUICE_CHECK(buffer != nullptr, "no memory for the bandwidth measurement");
  pool.Run([&](int worker) {
    std::fill_n(buffer.get() + worker * bytes_per_thread, bytes_per_thread, std::byte{1});
  });

  Roofline roofline;
  std::atomic<uint64_t> checksum{0};
  std::vector<double> rates(12);
  for (double& rate : rates) {
    const auto start = Clock::now();
    pool.ParallelFor(static_cast<int64_t>(total / kPiece), 1, [&](int64_t begin, int64_t end) {
      uint64_t sum = 0;
      for (int64_t i = begin; i < end; ++i)
        sum += ops.read_stream(buffer.get() + i * kPiece, kPiece);
      checksum.fetch_add(sum, std::memory_order_relaxed);
    });
    rate = static_cast<double>(total) / Seconds(Clock::now() - start);
  }
  std::sort(rates.begin(), rates.end());
  roofline.read_bytes_per_second = rates.back();
  roofline.typical_read_bytes_per_second = rates[rates.size() / 2];
  roofline.fork_seconds = MeasureFork(pool);
  return roofline;
}

void MeasureArithmetic(const cpu::Ops& ops, cpu::ThreadPool& pool, const Model& model,
                       Roofline* roofline) {
  const auto floats = [&](DType dtype) {
    return MeasureMacs(
        pool, [&](int64_t rounds, float* sink) { return ops.peak_macs(dtype, rounds, sink); });
  };
  roofline->f32_macs_per_second = floats(DType::kF32);
  roofline->macs_per_second = model.nested_weights() ? MeasureMacs(pool, ops.nested_peak_macs)
                                                     : floats(model.weight_dtype());
  roofline->attention_macs_per_second = model.options().kv_dtype == KvDType::kQ8
                                            ? MeasureMacs(pool, ops.nested_peak_macs)
                                            : roofline->f32_macs_per_second;
}

}  // namespace sluice
