// Shared by the translation units of CpuBackend only.
#pragma once

#include <atomic>

#include "engine/tensor/cpu_backend.h"

namespace sluice {

template <class F>
void CpuBackend::ForEach(int64_t count, bool small, F&& f) {
  if (small || count <= 1 || pool_.threads() == 1) {
    for (int64_t i = 0; i < count; ++i) f(workers_[0], i);
    return;
  }
  // Pieces stand for workers: a worker that the system has not run in time is not waited for, and
  // its piece finds nothing left.
  alignas(64) std::atomic<int64_t> next{0};
  pool_.ParallelFor(pool_.threads(), 1, [&](int64_t worker, int64_t) {
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      f(workers_[worker], i);
    }
  });
}

}  // namespace sluice
