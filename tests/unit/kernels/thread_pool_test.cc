#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <vector>

#include "tests/support/catch.h"

namespace sluice::cpu {
namespace {

TEST_CASE("Run calls every worker exactly once", "[kernels][threads]") {
  for (const int threads : {1, 2, 3, 8}) {
    INFO("threads " << threads);
    ThreadPool pool(threads);
    REQUIRE(pool.threads() == threads);
    std::vector<int> calls(threads, 0);
    for (int round = 0; round < 300; ++round) {
      pool.Run([&](int worker) { ++calls[worker]; });
    }
    CHECK(calls == std::vector<int>(threads, 300));
  }
}

TEST_CASE("ParallelFor covers the range exactly once", "[kernels][threads]") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads, /*pin=*/true);
    for (const int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        INFO("threads " << threads << " n " << n << " grain " << grain);
        std::vector<int> seen(n, 0);
        std::atomic<int> oversized{0};
        pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
          // Without a second worker the range comes in one piece.
          if (threads > 1 && end - begin > grain) ++oversized;
          for (int64_t i = begin; i < end; ++i) ++seen[i];
        });
        CHECK(oversized == 0);
        CHECK(seen == std::vector<int>(n, 1));
      }
    }
  }
}

TEST_CASE("What one region wrote the next one sees", "[kernels][threads]") {
  // Plain, unsynchronised memory on purpose: the thread sanitizer judges the pool's ordering.
  ThreadPool pool(4);
  const int64_t n = 257;
  std::vector<int64_t> a(n), b(n);
  for (int64_t i = 0; i < n; ++i) a[i] = i;
  for (int round = 0; round < 500; ++round) {
    pool.ParallelFor(n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) b[i] = a[(i + 1) % n];
    });
    pool.ParallelFor(n, 7, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) a[i] = b[i] + 1;
    });
  }
  int wrong = 0;
  for (int64_t i = 0; i < n; ++i) wrong += a[i] != (i + 500) % n + 500;
  CHECK(wrong == 0);
}

TEST_CASE("Pools with more threads than cores come and go", "[kernels][threads]") {
  std::atomic<int64_t> total{0};
  for (int round = 0; round < 20; ++round) {
    ThreadPool pool(16, round % 2 == 0);
    pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end) { total += end - begin; });
    pool.Run([&](int) { ++total; });
  }
  CHECK(total == 20 * 116);
}

TEST_CASE("A pool works for different callers in turn, and for sleeping workers",
          "[kernels][threads]") {
  ThreadPool pool(3);
  std::atomic<int> calls{0};
  for (int round = 0; round < 20; ++round) {
    // Long enough between regions that workers have gone to sleep at some of them, in whatever
    // state the next post finds them.
    volatile int64_t burn = 0;
    for (int i = 0; i < round * 20000; ++i) burn = burn + i;
    pool.Run([&](int) { ++calls; });
  }
  CHECK(calls == 60);
}

TEST_CASE("At least one core is usable", "[kernels][threads]") { CHECK(UsableCores() >= 1); }

}  // namespace
}  // namespace sluice::cpu
