#include "tests/support/cuda_emulation.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/fiber.h"

namespace sluice::cuda_emulation {
namespace {

constexpr int kWarp = 32;
constexpr size_t kGuardBytes = 64;
constexpr size_t kSharedBytes = 48 << 10;
constexpr uint8_t kGuardPattern = 0xa5;

std::string Where(const Place& at) { return std::string(at.file) + ":" + std::to_string(at.line); }
bool Same(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

enum class State { kRunnable, kAtBarrier, kAtExchange, kDone };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  Dim3 index;
  State state = State::kDone;
  Place at;           // of the wait
  uint32_t mask = 0;  // of an exchange: who takes part, the value passed, and from whom
  uint32_t value = 0;
  int source = 0;
  uint32_t received = 0;
};

struct Shared {
  Place at;
  size_t bytes;
  size_t start;  // in the arena
};

// Draws numbers and permutations (splitmix64).
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  size_t Below(size_t n) {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return static_cast<size_t>((x ^ (x >> 31)) % n);
  }

 private:
  uint64_t state_;
};

class Machine {
 public:
  void SetSeed(uint64_t seed) {
    seed_ = seed;
    dice_ = Dice(seed);
  }

  void Launch(void (*body)(const void*), const void* args, Dim3 grid, unsigned threads) {
    if (threads == 0 || threads % kWarp != 0 || threads > 1024) {
      throw EmulationError("a launch of " + std::to_string(threads) + " threads per block");
    }
    body_ = body;
    args_ = args;
    grid_ = grid;
    size_ = {threads, 1, 1};
    const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
    std::vector<size_t> order(blocks);
    for (size_t i = 0; i < blocks; ++i) order[i] = seed_ == 1 ? blocks - 1 - i : i;
    if (seed_ > 1) {
      for (size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[dice_.Below(i)]);
    }
    for (const size_t i : order) {
      block_ = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
      RunBlock(threads);
    }
  }

  Thread& current() { return *current_; }
  const Dim3& block() const { return block_; }
  const Dim3& size() const { return size_; }
  const Dim3& grid() const { return grid_; }

  void BlockBarrier(Place at) {
    current_->state = State::kAtBarrier;
    current_->at = at;
    current_->fiber->Leave();
  }

  uint32_t Exchange(uint32_t mask, uint32_t value, int source, Place at) {
    Thread& thread = *current_;
    const uint32_t self = 1u << (thread.index.x % kWarp);
    if ((mask & self) == 0) Fail("a shuffle whose mask leaves its caller out", at);
    if (source < 0 || source >= kWarp || (mask >> source & 1) == 0) {
      Fail("a shuffle that reads a lane outside of its mask", at);
    }
    thread.state = State::kAtExchange;
    thread.at = at;
    thread.mask = mask;
    thread.value = value;
    thread.source = source;
    thread.fiber->Leave();
    return thread.received;
  }

  void* SharedObject(size_t bytes, size_t alignment, Place at) {
    for (const Shared& object : shared_) {
      if (Same(object.at, at)) return arena_.data() + object.start;
    }
    size_t start = shared_end_ + kGuardBytes;
    const auto address = reinterpret_cast<uintptr_t>(arena_.data()) + start;
    start += (alignment - address % alignment) % alignment;
    shared_bytes_ += bytes;
    if (shared_bytes_ > kSharedBytes) Fail("more than 48 KiB of shared memory", at);
    std::memset(arena_.data() + start, 0xff, bytes);
    shared_.push_back({at, bytes, start});
    shared_end_ = start + bytes;
    return arena_.data() + start;
  }

  [[noreturn]] void Fail(const char* what, Place at) {
    const Dim3& i = current_->index;
    failure_ = std::string(what) + " (" + Where(at) + ", block " + std::to_string(block_.x) + " " +
               std::to_string(block_.y) + " " + std::to_string(block_.z) + ", thread " +
               std::to_string(i.x) + ")";
    for (;;) current_->fiber->Leave();
  }

 private:
  static void ThreadMain(void* self) {
    auto* machine = static_cast<Machine*>(self);
    for (;;) {
      machine->body_(machine->args_);
      machine->current_->state = State::kDone;
      machine->current_->fiber->Leave();
    }
  }

  void RunBlock(unsigned threads) {
    arena_.assign(arena_.size(), kGuardPattern);
    shared_.clear();
    shared_end_ = shared_bytes_ = 0;
    while (threads_.size() < threads) {
      threads_.emplace_back();
      threads_.back().index.x = static_cast<unsigned>(threads_.size() - 1);
      threads_.back().index.y = threads_.back().index.z = 0;
    }
    runnable_.clear();
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = threads_[i];
      if (thread.fiber == nullptr) thread.fiber = std::make_unique<Fiber>(ThreadMain, this);
      thread.state = State::kRunnable;
      // Taken from the back.
      runnable_.push_back(seed_ == 1 ? i : threads - 1 - i);
    }
    live_ = threads;
    at_barrier_ = 0;
    std::fill(std::begin(exchanging_), std::end(exchanging_), 0u);
    while (live_ > 0) {
      if (runnable_.empty()) Stuck(threads);
      Run(Next(), threads);
    }
    CheckGuards();
  }

  unsigned Next() {
    size_t pick = runnable_.size() - 1;
    if (seed_ > 1) {
      pick = dice_.Below(runnable_.size());
      if (seed_ % 2 == 1) {
        // Stay with the warp that ran last while it can go on.
        for (size_t i = 0; i < runnable_.size(); ++i) {
          if (runnable_[i] / kWarp == last_ / kWarp) pick = i;
        }
      }
    }
    std::swap(runnable_[pick], runnable_.back());
    const unsigned next = runnable_.back();
    runnable_.pop_back();
    return last_ = next;
  }

  void Run(unsigned index, unsigned threads) {
    current_ = &threads_[index];
    current_->fiber->Enter();
    if (!failure_.empty()) Abandon(std::exchange(failure_, {}));
    switch (current_->state) {
      case State::kDone:
        --live_;
        break;
      case State::kAtBarrier:
        if (++at_barrier_ == threads) ReleaseBarrier(threads);
        break;
      case State::kAtExchange:
        exchanging_[index / kWarp] |= 1u << index % kWarp;
        TryExchange(index / kWarp);
        break;
      case State::kRunnable:
        break;
    }
  }

  void ReleaseBarrier(unsigned threads) {
    for (unsigned i = 0; i < threads; ++i) {
      if (!Same(threads_[i].at, threads_[0].at)) {
        Abandon("two barriers waited at together: " + Where(threads_[0].at) + " and " +
                Where(threads_[i].at));
      }
      threads_[i].state = State::kRunnable;
      runnable_.push_back(seed_ == 1 ? i : threads - 1 - i);
    }
    at_barrier_ = 0;
  }

  // Completes the exchange that the current thread joined, if it was the last.
  void TryExchange(unsigned warp) {
    const uint32_t mask = current_->mask;
    if ((exchanging_[warp] & mask) != mask) return;
    Thread* lanes = &threads_[warp * kWarp];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      if (lanes[lane].mask != mask || !Same(lanes[lane].at, current_->at)) return;
    }
    exchanging_[warp] &= ~mask;
    for (unsigned i = 0; i < kWarp; ++i) {
      const unsigned lane = seed_ == 1 ? i : kWarp - 1 - i;
      if ((mask >> lane & 1) == 0) continue;
      lanes[lane].received = lanes[lanes[lane].source].value;
      lanes[lane].state = State::kRunnable;
      runnable_.push_back(warp * kWarp + lane);
    }
  }

  // Nobody can go on.
  [[noreturn]] void Stuck(unsigned threads) {
    unsigned done = 0, shuffles = 0, barriers = 0;
    std::string shuffle, barrier;
    for (unsigned i = 0; i < threads; ++i) {
      const Thread& thread = threads_[i];
      done += thread.state == State::kDone;
      if (thread.state == State::kAtExchange && shuffles++ == 0) shuffle = Where(thread.at);
      if (thread.state == State::kAtBarrier && barriers++ == 0) barrier = Where(thread.at);
    }
    std::string what;
    if (shuffles > 0) {
      what = "a shuffle that not all lanes of its mask reach (" + shuffle + ", " +
             std::to_string(shuffles) + " threads wait";
    } else {
      what = "a barrier that not all threads reach (" + barrier;
    }
    if (barriers > 0) what += ", " + std::to_string(barriers) + " at the barrier " + barrier;
    Abandon(what + ", " + std::to_string(done) + " have ended)");
  }

  void CheckGuards() {
    size_t at = 0;
    for (size_t i = 0; i <= shared_.size(); ++i) {
      const size_t end = i < shared_.size() ? shared_[i].start
                                            : std::min(arena_.size(), shared_end_ + kGuardBytes);
      for (; at < end; ++at) {
        if (arena_[at] == kGuardPattern) continue;
        const Shared& near = i > 0 ? shared_[i - 1] : shared_[0];
        Abandon("a write outside of a shared object, near the one of " + Where(near.at));
      }
      if (i < shared_.size()) at = shared_[i].start + shared_[i].bytes;
    }
  }

  // Fibers that stopped midway cannot be used again.
  [[noreturn]] void Abandon(const std::string& what) {
    threads_.clear();
    current_ = nullptr;
    throw EmulationError(what);
  }

  uint64_t seed_ = 0;
  Dice dice_{0};
  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
  Dim3 block_, size_, grid_;
  std::vector<Thread> threads_;
  Thread* current_ = nullptr;
  std::vector<unsigned> runnable_;
  unsigned last_ = 0;
  unsigned live_ = 0;
  unsigned at_barrier_ = 0;
  uint32_t exchanging_[1024 / kWarp] = {};  // lanes that wait for an exchange, by warp
  std::string failure_;
  std::vector<uint8_t> arena_ = std::vector<uint8_t>(kSharedBytes + 64 * 2 * kGuardBytes);
  std::vector<Shared> shared_;
  size_t shared_end_ = 0;
  size_t shared_bytes_ = 0;
};

Machine& TheMachine() {
  static Machine machine;
  return machine;
}

}  // namespace

void SetSeed(uint64_t seed) { TheMachine().SetSeed(seed); }
void Launch(void (*body)(const void*), const void* args, Dim3 grid, unsigned threads) {
  TheMachine().Launch(body, args, grid, threads);
}
const Dim3& ThreadIndex() { return TheMachine().current().index; }
const Dim3& BlockIndex() { return TheMachine().block(); }
const Dim3& BlockSize() { return TheMachine().size(); }
const Dim3& GridSize() { return TheMachine().grid(); }
void BlockBarrier(Place at) { TheMachine().BlockBarrier(at); }
uint32_t Exchange(uint32_t mask, uint32_t value, int source, Place at) {
  return TheMachine().Exchange(mask, value, source, at);
}
void* SharedObject(size_t bytes, size_t alignment, Place at) {
  return TheMachine().SharedObject(bytes, alignment, at);
}
void Fail(const char* what, Place at) { TheMachine().Fail(what, at); }

}  // namespace sluice::cuda_emulation
