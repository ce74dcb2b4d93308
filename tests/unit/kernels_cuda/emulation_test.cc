// The emulation itself: kernels that are right run as on a GPU, and each kind of mistake is found.
#include <set>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/cuda_emulation.h"

namespace sluice::cuda_emulation {
namespace {

using Catch::Matchers::Contains;

template <class Body>
void LaunchBody(Dim3 grid, unsigned threads, const Body& body) {
  Launch([](const void* at) { (*static_cast<const Body*>(at))(); }, &body, grid, threads);
}

// A tree over shared memory; `barriers` false leaves them out.
std::vector<int> SumsOfBlocks(uint64_t seed, bool barriers) {
  SetSeed(seed);
  std::vector<int> sums(5, -1);
  LaunchBody({5, 1, 1}, 128, [&] {
    struct Parts {
      int of[128];
    };
    Parts& parts = *static_cast<Parts*>(SharedObject(sizeof(Parts), 4, Place::Here()));
    const auto i = threadIdx.x;
    parts.of[i] = static_cast<int>(i * i + blockIdx.x);
    for (unsigned half = 64; half > 0; half /= 2) {
      if (barriers) __syncthreads();
      if (i < half) parts.of[i] += parts.of[i + half];
    }
    if (i == 0) sums[blockIdx.x] = parts.of[0];
  });
  SetSeed(0);
  return sums;
}

TEST_CASE("Barriers make a block's shared memory agree in every order", "[cuda][emulation]") {
  std::vector<int> expected;
  for (int block = 0; block < 5; ++block) expected.push_back(690880 + 128 * block);
  for (uint64_t seed = 0; seed < 10; ++seed) CHECK(SumsOfBlocks(seed, true) == expected);
}

TEST_CASE("A missing barrier shows as results that differ between orders", "[cuda][emulation]") {
  std::set<std::vector<int>> seen;
  for (uint64_t seed = 0; seed < 6; ++seed) seen.insert(SumsOfBlocks(seed, false));
  CHECK(seen.size() > 1);
}

TEST_CASE("Blocks and threads are each run once, with their own indices", "[cuda][emulation]") {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    SetSeed(seed);
    std::vector<int> runs(3 * 2 * 4 * 64, 0);
    LaunchBody({3, 2, 4}, 64, [&] {
      const auto block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      ++runs[block * blockDim.x + threadIdx.x];
    });
    CHECK(runs == std::vector<int>(runs.size(), 1));
  }
  SetSeed(0);
}

TEST_CASE("Shuffles pass values between the lanes of a mask", "[cuda][emulation]") {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    SetSeed(seed);
    std::vector<unsigned> butterfly(64), chosen(64), half(64, 0);
    LaunchBody({1, 1, 1}, 64, [&] {
      const unsigned i = threadIdx.x;
      butterfly[i] = __shfl_xor_sync(0xffffffffu, 100 + i, 5);
      chosen[i] = __shfl_sync(0xffffffffu, 100 + i, 7);
      if (i % 32 < 16) half[i] = __shfl_xor_sync(0xffffu, 100 + i, 8);
      __syncwarp();
    });
    for (unsigned i = 0; i < 64; ++i) {
      CHECK(butterfly[i] == 100 + (i ^ 5));
      CHECK(chosen[i] == 100 + i / 32 * 32 + 7);
      CHECK(half[i] == (i % 32 < 16 ? 100 + (i ^ 8) : 0));
    }
  }
  SetSeed(0);
}

TEST_CASE("A barrier that some threads do not reach is an error", "[cuda][emulation]") {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    SetSeed(seed);
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 64,
                                 [] {
                                   if (threadIdx.x != 40) __syncthreads();
                                 }),
                      Contains("a barrier that not all threads reach") &&
                          Contains("emulation_test.cc") && Contains("1 have ended"));
    // Outside of the macro, so that the two are on two lines.
    const auto apart = [] {
      if (threadIdx.x < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    };
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 64, apart),
                      Contains("two barriers waited at together"));
  }
  SetSeed(0);
}

TEST_CASE("A shuffle that some lanes do not reach is an error", "[cuda][emulation]") {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    SetSeed(seed);
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32,
                                 [] {
                                   if (threadIdx.x < 20) __shfl_xor_sync(0xffffffffu, 1, 1);
                                 }),
                      Contains("a shuffle that not all lanes of its mask reach") &&
                          Contains("20 threads wait") && Contains("12 have ended"));
    // The others wait, but elsewhere.
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32,
                                 [] {
                                   if (threadIdx.x < 20) __shfl_xor_sync(0xffffffffu, 1, 1);
                                   __syncthreads();
                                 }),
                      Contains("a shuffle that not all lanes of its mask reach") &&
                          Contains("12 at the barrier"));
    const auto apart = [] {
      if (threadIdx.x < 16) {
        __shfl_xor_sync(0xffffffffu, 1, 1);
      } else {
        __shfl_xor_sync(0xffffffffu, 2, 1);
      }
    };
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32, apart), Contains("a shuffle that not all lanes"));
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32, [] { __shfl_xor_sync(0xffffu, 1, 1); }),
                      Contains("leaves its caller out"));
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32,
                                 [] {
                                   if (threadIdx.x < 16) __shfl_xor_sync(0xffffu, 1, 16);
                                 }),
                      Contains("a lane outside of its mask"));
  }
  SetSeed(0);
}

TEST_CASE("Shared memory is full of NaNs, guarded and limited", "[cuda][emulation]") {
  LaunchBody({2, 1, 1}, 32, [] {
    auto* values = static_cast<float*>(SharedObject(64 * 4, 4, Place::Here()));
    if (std::isnan(values[threadIdx.x]) == false) Fail("not NaN", Place::Here());
    __syncthreads();
    values[threadIdx.x] = 1;
  });
  for (const int past : {-1, 64}) {
    CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32,
                                 [&] {
                                   auto* values =
                                       static_cast<float*>(SharedObject(64 * 4, 4, Place::Here()));
                                   if (threadIdx.x == 3) values[past] = 1;
                                 }),
                      Contains("a write outside of a shared object"));
  }
  CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 32, [] { SharedObject(49 << 10, 4, Place::Here()); }),
                    Contains("48 KiB"));
}

TEST_CASE("A vector load off its alignment is an error, and the next launch runs",
          "[cuda][emulation]") {
  alignas(16) const unsigned char bytes[48] = {};
  CHECK_THROWS_WITH(
      LaunchBody({1, 1, 1}, 64, [&] { (void)LoadAs<uint4>(bytes + 8 * (threadIdx.x == 33)); }),
      Contains("off its alignment") && Contains("thread 33"));
  int runs = 0;
  LaunchBody({1, 1, 1}, 64, [&] { ++runs; });
  CHECK(runs == 64);
  CHECK_THROWS_WITH(LaunchBody({1, 1, 1}, 48, [] {}), Contains("48 threads"));
}

TEST_CASE("Byte permutation follows prmt", "[cuda][emulation]") {
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x6420) == 0x66442200u);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7531) == 0x77553311u);
  CHECK(__byte_perm(0x00007f80u, 0, 0x9898) == 0x00ff00ffu);
}

}  // namespace
}  // namespace sluice::cuda_emulation
