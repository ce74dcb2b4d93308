// Shared by the translation units of CpuBackend only.
#pragma once

#include <atomic>
#include <type_traits>

#include "engine/tensor/cpu_backend.h"

namespace sluice {

// Every worker walks a share of its own, the same one whenever count is the same: what it used last
// time is in its cache, and it knows what comes next. Who is done takes from the others' shares, so
// a worker that is slow or never runs holds up nobody.
template <class F>
void CpuBackend::ForEach(int64_t count, bool small, F&& f) {
  const auto call = [&](Worker& worker, int64_t i, int64_t end) {
    if constexpr (std::is_invocable_v<F, Worker&, int64_t>) {
      f(worker, i);
    } else {
      f(worker, i, i + 1 < end ? i + 1 : -1);
    }
  };
  const int workers = pool_.threads();
  if (small || count <= 1 || workers == 1) {
    for (int64_t i = 0; i < count; ++i) call(workers_[0], i, count);
    return;
  }
  for (int w = 0; w < workers; ++w) {
    shares_[w].next.store(count * w / workers, std::memory_order_relaxed);
    shares_[w].end = count * (w + 1) / workers;
  }
  pool_.RunWhoComes([&](int worker) {
    for (int other = 0; other < workers; ++other) {
      Share& share = shares_[(worker + other) % workers];
      for (;;) {
        const int64_t i = share.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= share.end) break;
        call(workers_[worker], i, share.end);
      }
    }
  });
}

}  // namespace sluice
