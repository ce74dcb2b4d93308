// A fork-join pool of compute workers (SEAM). One caller at a time; the caller works as worker 0.
//
// Run() costs well under two microseconds while the pool is hot: workers spin for a short while
// after a region before they sleep on a futex, so an idle daemon uses no CPU. Workers are pinned to
// the cores that the process may use when `pin` is set. Results never depend on the number of
// workers: regions hand out ranges, never share sums.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace sluice::cpu {

class ThreadPool {
 public:
  // threads >= 1, the calling thread included.
  explicit ThreadPool(int threads, bool pin = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Pins the calling thread to worker 0's core, the first that the process may use; `pin` leaves
  // the caller's own thread alone.
  static void PinCaller();

  // Calls f(worker) once on every worker, worker in [0, threads()), and returns when all are done.
  // REQUIRES: not called from inside a region. f must not throw.
  template <class F>
  void Run(F&& f) {
    using Fn = std::remove_reference_t<F>;
    RunImpl([](void* context, int worker) { (*static_cast<Fn*>(context))(worker); },
            const_cast<void*>(static_cast<const void*>(&f)));
  }

  // The same, but a worker that the system has not run by the time worker 0 returns is left out.
  // REQUIRES: f hands out work so that those who come do all of it.
  template <class F>
  void RunWhoComes(F&& f) {
    using Fn = std::remove_reference_t<F>;
    RunImpl([](void* context, int worker) { (*static_cast<Fn*>(context))(worker); },
            const_cast<void*>(static_cast<const void*>(&f)), /*wait_for_all=*/false);
  }

  // Calls f(begin, end) over [0, n) in pieces of at most `grain`, handed out dynamically in
  // ascending order. Runs inline when one piece suffices or there is one worker.
  template <class F>
  void ParallelFor(int64_t n, int64_t grain, F&& f) {
    using Fn = std::remove_reference_t<F>;
    ParallelForImpl(
        n, grain,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<Fn*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  struct Impl;
  void RunImpl(void (*call)(void*, int), void* context, bool wait_for_all = true);
  void ParallelForImpl(int64_t n, int64_t grain, void (*call)(void*, int64_t, int64_t),
                       void* context);

  int threads_;
  std::unique_ptr<Impl> impl_;
};

// Cores that this process may use: affinity mask and cgroup CPU quota, at least 1.
int UsableCores();

}  // namespace sluice::cpu
