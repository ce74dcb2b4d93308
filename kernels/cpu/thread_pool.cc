#include "kernels/cpu/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace sluice::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How long a worker without work, or a caller without news, spins before it sleeps. The gaps
// between the regions of one model step are shorter than this.
constexpr auto kSpin = std::chrono::microseconds(80);
// Spinning reads the clock once per this many pauses.
constexpr int kPausesPerCheck = 64;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void FutexWait(std::atomic<uint32_t>* word, uint32_t expected) {
  static_assert(sizeof(*word) == sizeof(uint32_t));
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, expected, nullptr,
          nullptr, 0);
}
void FutexWake(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

// Spins until done() or the budget is spent; returns done(). With `yield` it lets other threads
// have the core in between: right when the pool has more threads than cores, where the one waited
// for may need this core; wrong otherwise, since a thread that yields is not preferred when its
// news comes, as one that sleeps is.
template <class Done>
bool SpinUntil(bool yield, Done done) {
  for (int i = 0; i < kPausesPerCheck; ++i) {
    if (done()) return true;
    Pause();
  }
  const auto start = Clock::now();
  while (true) {
    for (int i = 0; i < kPausesPerCheck; ++i) {
      if (done()) return true;
      Pause();
    }
    if (Clock::now() - start > kSpin) return done();
    if (yield) sched_yield();
  }
}

// A worker's mailbox. The low bits say who owns the region; the rest counts regions, so that a
// sleeper cannot mistake a new region for the one it has seen.
constexpr uint32_t kIdle = 0;     // the worker's: nothing to do
constexpr uint32_t kPending = 1;  // posted by the caller, not begun
constexpr uint32_t kRunning = 2;  // taken by the worker
constexpr uint32_t kStateMask = 3;
constexpr uint32_t kRegionStep = 4;

struct alignas(64) Mailbox {
  std::atomic<uint32_t> state{kIdle};
  std::atomic<uint32_t> worker_sleeps{0};
  std::atomic<uint32_t> caller_sleeps{0};
};

std::vector<int> AllowedCores() {
  std::vector<int> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

void PinTo(pthread_t thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  // A refusal costs speed, not correctness.
  pthread_setaffinity_np(thread, sizeof set, &set);
}

}  // namespace

struct ThreadPool::Impl {
  Impl(int workers, bool crowded) : crowded(crowded), boxes(workers) {}

  const bool crowded;  // more threads than cores

  // Posted before the mailboxes, read by workers after they take a region.
  void (*call)(void*, int) = nullptr;
  void* context = nullptr;
  std::atomic<bool> stop{false};
  std::vector<Mailbox> boxes;  // of workers 1, 2, ...
  std::vector<std::thread> threads;

  void Work(int worker);
  void Post();
  // Waits for all workers; with `cancel`, one that has not begun is let off instead.
  void Join(bool cancel);
};

void ThreadPool::Impl::Work(int worker) {
  Mailbox& box = boxes[worker - 1];
  while (true) {
    uint32_t state = 0;
    const auto pending = [&] {
      state = box.state.load(std::memory_order_acquire);
      return (state & kStateMask) == kPending;
    };
    if (!SpinUntil(crowded, pending)) {
      // Sequentially consistent against Post(): either it sees that we sleep, or we see its state.
      box.worker_sleeps.store(1, std::memory_order_seq_cst);
      state = box.state.load(std::memory_order_seq_cst);
      while ((state & kStateMask) != kPending) {
        FutexWait(&box.state, state);
        state = box.state.load(std::memory_order_seq_cst);
      }
      box.worker_sleeps.store(0, std::memory_order_relaxed);
    }
    const uint32_t region = state - kPending;
    if (!box.state.compare_exchange_strong(state, region + kRunning, std::memory_order_acq_rel)) {
      continue;  // cancelled in between
    }
    if (stop.load(std::memory_order_relaxed)) return;
    call(context, worker);
    box.state.store(region + kIdle, std::memory_order_seq_cst);
    if (box.caller_sleeps.load(std::memory_order_seq_cst) != 0) FutexWake(&box.state);
  }
}

void ThreadPool::Impl::Post() {
  for (Mailbox& box : boxes) {
    const uint32_t last = box.state.load(std::memory_order_relaxed);
    box.state.store(last + kRegionStep + kPending, std::memory_order_seq_cst);
    if (box.worker_sleeps.load(std::memory_order_seq_cst) != 0) FutexWake(&box.state);
  }
}

void ThreadPool::Impl::Join(bool cancel) {
  for (Mailbox& box : boxes) {
    uint32_t state = box.state.load(std::memory_order_acquire);
    if (cancel && (state & kStateMask) == kPending &&
        box.state.compare_exchange_strong(state, state - kPending, std::memory_order_acq_rel)) {
      continue;
    }
    const auto idle = [&] {
      state = box.state.load(std::memory_order_acquire);
      return (state & kStateMask) == kIdle;
    };
    if (SpinUntil(crowded, idle)) continue;
    box.caller_sleeps.store(1, std::memory_order_seq_cst);
    state = box.state.load(std::memory_order_seq_cst);
    while ((state & kStateMask) != kIdle) {
      FutexWait(&box.state, state);
      state = box.state.load(std::memory_order_seq_cst);
    }
    box.caller_sleeps.store(0, std::memory_order_relaxed);
  }
}

ThreadPool::ThreadPool(int threads, bool pin)
    : threads_(threads < 1 ? 1 : threads),
      impl_(std::make_unique<Impl>(threads_ - 1, threads_ > UsableCores())) {
  const std::vector<int> cores = pin ? AllowedCores() : std::vector<int>();
  for (int worker = 1; worker < threads_; ++worker) {
    impl_->threads.emplace_back([this, worker] { impl_->Work(worker); });
    if (!cores.empty()) {
      PinTo(impl_->threads.back().native_handle(), cores[worker % cores.size()]);
    }
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_relaxed);
  impl_->Post();
  for (std::thread& thread : impl_->threads) thread.join();
}

void ThreadPool::PinCaller() {
  const std::vector<int> cores = AllowedCores();
  if (!cores.empty()) PinTo(pthread_self(), cores[0]);
}

void ThreadPool::RunImpl(void (*call)(void*, int), void* context, bool wait_for_all) {
  if (threads_ > 1) {
    impl_->call = call;
    impl_->context = context;
    impl_->Post();
  }
  call(context, 0);
  impl_->Join(/*cancel=*/!wait_for_all);
}

void ThreadPool::ParallelForImpl(int64_t n, int64_t grain, void (*call)(void*, int64_t, int64_t),
                                 void* context) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  if (threads_ == 1 || n <= grain) return call(context, 0, n);
  struct Region {
    std::atomic<int64_t> next{0};
    int64_t n;
    int64_t grain;
    void (*call)(void*, int64_t, int64_t);
    void* context;
  };
  alignas(64) Region region{{}, n, grain, call, context};
  const auto work = [](void* pointer, int) {
    Region& r = *static_cast<Region*>(pointer);
    while (true) {
      const int64_t begin = r.next.fetch_add(r.grain, std::memory_order_relaxed);
      if (begin >= r.n) return;
      r.call(r.context, begin, begin + r.grain < r.n ? begin + r.grain : r.n);
    }
  };
  impl_->call = work;
  impl_->context = &region;
  impl_->Post();
  work(&region, 0);
  // A worker that the system has not yet run has nothing left to do: the caller takes the post back
  // rather than wait for it.
  impl_->Join(/*cancel=*/true);
}

}  // namespace sluice::cpu
