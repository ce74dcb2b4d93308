#include "engine/sampling/row_math.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "engine/sampling/logprobs.h"
#include "engine/sampling/random.h"
#include "engine/sampling/token_counts.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomRow(size_t n, uint32_t seed, float spread, bool quantized = false) {
  std::mt19937 random(seed);
  std::vector<float> row(n);
  for (float& x : row) {
    x = spread * (static_cast<float>(random()) * 0x1.0p-32f - 0.5f);
    if (quantized) x = std::round(x * 2) / 2;
  }
  return row;
}

TEST_CASE("Philox gives the published known answers", "[sampling]") {
  using Words = std::array<uint32_t, 4>;
  CHECK(Philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr uint32_t kOnes = 0xffffffff;
  CHECK(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("Draws lie in [0, 1), differ by seed, index and stream, and are uniform", "[sampling]") {
  std::vector<int> bins(16, 0);
  double sum = 0;
  for (uint64_t i = 0; i < 16000; ++i) {
    const double u = UniformDraw(7, i);
    REQUIRE((u >= 0 && u < 1));
    ++bins[static_cast<size_t>(u * 16)];
    sum += u;
  }
  CHECK(std::abs(sum / 16000 - 0.5) < 0.01);
  double chi_square = 0;
  for (int n : bins) chi_square += (n - 1000.0) * (n - 1000.0) / 1000.0;
  CHECK(chi_square < 30.6);  // 15 degrees of freedom, 1%
  CHECK(UniformDraw(7, 1) != UniformDraw(8, 1));
  CHECK(UniformDraw(7, 1) != UniformDraw(7, 2));
  CHECK(UniformDraw(7, 1) != UniformDraw(7, 1, 1));
  CHECK(UniformDraw(7, 1ull << 40) != UniformDraw(7, 0));
  CHECK(UniformDraw(1ull << 40, 0) != UniformDraw(0, 0));
}

TEST_CASE("ScanRow finds the maximum and every value that is not finite", "[sampling]") {
  for (size_t n = 1; n <= 37; ++n) {
    std::vector<float> row = RandomRow(n, static_cast<uint32_t>(n), 10);
    CHECK(ScanRow(row).finite);
    CHECK(ScanRow(row).max == *std::max_element(row.begin(), row.end()));
    for (size_t at = 0; at < n; ++at) {
      std::vector<float> changed = row;
      changed[at] = 100;
      CHECK(ScanRow(changed).max == 100);
      CHECK(FirstIndexOf(changed, 100) == static_cast<int32_t>(at));
      for (float bad : {std::nanf(""), kInfinity, -kInfinity}) {
        changed[at] = bad;
        CHECK_FALSE(ScanRow(changed).finite);
      }
      changed[at] = std::numeric_limits<float>::max();
      CHECK(ScanRow(changed).finite);
    }
  }
  const std::vector<float> masked(9, -kInfinity);
  CHECK(ScanRow(masked).max == -kInfinity);
}

TEST_CASE("ExpWeights agrees with exp and its sums with its weights", "[sampling]") {
  std::vector<float> weights;
  std::vector<double> pieces;
  for (size_t n : {1u, 3u, 4u, 5u, 255u, 256u, 257u, 511u, 1030u}) {
    for (float scale : {0.5f, 1.0f, 3.7f}) {
      const std::vector<float> row = RandomRow(n, static_cast<uint32_t>(n), 30);
      const float max = ScanRow(row).max;
      const double total = ExpWeights(row, max, scale, &weights, &pieces);
      REQUIRE(weights.size() == n);
      double sum = 0;
      for (size_t i = 0; i < n; ++i) {
        const float x = (row[i] - max) * scale;
        const double expected = x < -87 ? 0 : std::exp(static_cast<double>(x));
        CHECK(std::abs(static_cast<double>(weights[i]) - expected) <= 3e-7 * expected);
        sum += static_cast<double>(weights[i]);
      }
      CHECK(std::abs(total - sum) <= 1e-12 * sum);
      CHECK(pieces.size() == (n + 255) / 256);
    }
  }
  const std::vector<float> extremes = {0.0f, -87.0f, -87.01f, -1e30f, -kInfinity, -0.0f};
  ExpWeights(extremes, 0, 1, &weights, &pieces);
  CHECK(weights[0] == 1.0f);
  CHECK(weights[1] > 1.6e-38f);
  CHECK(weights[2] == 0.0f);
  CHECK(weights[3] == 0.0f);
  CHECK(weights[4] == 0.0f);
  CHECK(weights[5] == 1.0f);
}

TEST_CASE("SelectTop gives what a full sort gives, ties by id", "[sampling]") {
  std::vector<RankedToken> out;
  for (size_t n : {1u, 2u, 7u, 64u, 300u, 1000u, 5003u}) {
    for (int count : {0, 1, 2, 5, 20, 64, 257, 999, 6000}) {
      for (bool quantized : {false, true}) {
        const auto row = RandomRow(n, static_cast<uint32_t>(n) + 1, 8, quantized);
        std::vector<RankedToken> sorted;
        for (size_t i = 0; i < n; ++i) sorted.push_back({row[i], static_cast<int32_t>(i)});
        std::sort(sorted.begin(), sorted.end());
        sorted.resize(std::min(n, static_cast<size_t>(count)));
        SelectTop(row, count, &out);
        REQUIRE(out.size() == sorted.size());
        for (size_t i = 0; i < out.size(); ++i) REQUIRE(out[i].token == sorted[i].token);
      }
    }
  }
  // Ascending and descending rows drive the bar the whole way, or not at all.
  std::vector<float> ramp(3000);
  for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<float>(i);
  SelectTop(ramp, 3, &out);
  CHECK(out[0].token == 2999);
  CHECK(out[2].token == 2997);
  std::reverse(ramp.begin(), ramp.end());
  SelectTop(ramp, 3, &out);
  CHECK(out[2].token == 2);
  std::fill(ramp.begin(), ramp.end(), -kInfinity);
  SelectTop(ramp, 3, &out);
  CHECK(out[2].token == 2);
}

TEST_CASE("SelectAtLeast keeps the order of ids", "[sampling]") {
  const auto row = RandomRow(203, 4, 10);
  std::vector<RankedToken> out;
  SelectAtLeast(row, 1.5f, &out);
  size_t next = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] < 1.5f) continue;
    REQUIRE(next < out.size());
    CHECK(out[next].token == static_cast<int32_t>(i));
    CHECK(out[next++].value == row[i]);
  }
  CHECK(next == out.size());
}

TEST_CASE("TokenCounts agrees with a map", "[sampling]") {
  std::mt19937 random(3);
  TokenCounts counts;
  std::map<int32_t, int32_t> expected;
  for (int i = 0; i < 5000; ++i) {
    const auto token = static_cast<int32_t>(random() % 1500) * 64;  // alike in their low bits
    if (i < 1000) {
      counts.AddPrompt(token);
      expected.try_emplace(token, 0);
    } else {
      counts.AddOutput(token);
      ++expected[token];
    }
  }
  REQUIRE(counts.entries().size() == expected.size());
  for (const auto& entry : counts.entries()) {
    REQUIRE(expected.at(entry.token) == entry.output_count);
  }
}

TEST_CASE("Log-probabilities agree with a plain log-softmax", "[sampling]") {
  LogprobScratch scratch;
  for (size_t n : {1u, 5u, 300u, 2000u}) {
    for (float spread : {1.0f, 20.0f, 300.0f}) {
      const auto row = RandomRow(n, static_cast<uint32_t>(n) + 9, spread);
      const double max = static_cast<double>(*std::max_element(row.begin(), row.end()));
      double sum = 0;
      for (float x : row) sum += std::exp(static_cast<double>(x) - max);
      const double normaliser = max + std::log(sum);
      const auto token = static_cast<int32_t>(n / 2);
      float logprob = 0;
      std::vector<TokenLogprob> top;
      REQUIRE(ComputeLogprobs(row, token, 4, &scratch, &logprob, &top));
      const double expected = static_cast<double>(row[n / 2]) - normaliser;
      CHECK(std::abs(static_cast<double>(logprob) - expected) <= 1e-6 * (1 + std::abs(expected)));
      REQUIRE(top.size() == std::min<size_t>(4, n));
      for (size_t i = 0; i < top.size(); ++i) {
        const double x = static_cast<double>(row[static_cast<size_t>(top[i].token)]);
        CHECK(std::abs(static_cast<double>(top[i].logprob) - (x - normaliser)) <=
              1e-6 * (1 + std::abs(x - normaliser)));
        if (i > 0) CHECK(top[i - 1].logprob >= top[i].logprob);
      }
      CHECK(row[static_cast<size_t>(top[0].token)] == static_cast<float>(max));
    }
  }
}

TEST_CASE("Log-probabilities: ties, the whole vocabulary, none, and rows that are not finite",
          "[sampling]") {
  LogprobScratch scratch;
  float logprob = 1;
  std::vector<TokenLogprob> top = {{1, 1}};
  const std::vector<float> even = {2, 2, 2, 2};
  REQUIRE(ComputeLogprobs(even, 3, 0, &scratch, &logprob, &top));
  CHECK(top.empty());
  CHECK(logprob == Approx(-std::log(4.0)));
  REQUIRE(ComputeLogprobs(even, 3, 99, &scratch, &logprob, &top));
  REQUIRE(top.size() == 4);
  for (size_t i = 0; i < 4; ++i) CHECK(top[i].token == static_cast<int32_t>(i));
  for (float bad : {std::nanf(""), kInfinity, -kInfinity}) {
    std::vector<float> row = even;
    row[2] = bad;
    CHECK_FALSE(ComputeLogprobs(row, 0, 1, &scratch, &logprob, &top));
  }
}

}  // namespace
}  // namespace sluice
