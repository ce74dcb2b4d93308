#include "engine/convert/allocation.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

using Profiles = std::vector<std::vector<ExpertProfile>>;

Profiles RandomProfiles(const std::vector<int>& experts, size_t steps, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0.05, 1.0);
  Profiles profiles;
  for (const int count : experts) {
    auto& layer = profiles.emplace_back();
    for (int e = 0; e < count; ++e) {
      ExpertProfile profile = {.frequency = uniform(random),
                               .mean_weight = uniform(random),
                               .output_error = {},
                               .peak = static_cast<float>(uniform(random))};
      double error = 4 * uniform(random);
      for (size_t s = 0; s < steps; ++s) {
        profile.output_error.push_back(error);
        error *= uniform(random);
      }
      layer.push_back(profile);
    }
  }
  return profiles;
}

double CostOf(const ExpertProfile& p, const AllocationOptions& o, size_t step) {
  return std::pow(p.frequency, o.alpha) * std::pow(p.mean_weight, o.beta) *
         std::pow(p.output_error[step], o.gamma);
}

// The least cost over every assignment of `experts` with at most `budget` bits.
double BruteForce(const std::vector<ExpertProfile>& experts, const AllocationOptions& options,
                  double budget) {
  const size_t steps = options.ladder.size();
  size_t assignments = 1;
  for (size_t i = 0; i < experts.size(); ++i) assignments *= steps;
  double best = std::numeric_limits<double>::infinity();
  for (size_t a = 0; a < assignments; ++a) {
    double cost = 0, bits = 0;
    size_t rest = a;
    for (const ExpertProfile& expert : experts) {
      const size_t step = rest % steps;
      rest /= steps;
      bits += options.ladder[step];
      cost += CostOf(expert, options, step);
    }
    if (bits <= budget + 1e-9) best = std::min(best, cost);
  }
  return best;
}

double Total(const Profiles& profiles, const Allocation& allocation,
             const AllocationOptions& options) {
  double cost = 0;
  for (size_t l = 0; l < profiles.size(); ++l) {
    for (size_t e = 0; e < profiles[l].size(); ++e) {
      size_t step = 0;
      while (options.ladder[step] != allocation.bits[l][e]) ++step;
      cost += CostOf(profiles[l][e], options, step);
    }
  }
  return cost;
}

TEST_CASE("An allocation is as good as the best of all assignments", "[allocation]") {
  for (unsigned seed = 1; seed <= 12; ++seed) {
    AllocationOptions options;
    options.protect_super_experts = false;
    if (seed % 3 == 1) options.ladder = {2, 4, 8};
    if (seed % 2 == 0) options.beta = options.gamma = 2;
    const Profiles profiles = RandomProfiles({4, 0, 3}, options.ladder.size(), seed);
    for (const double average : {2.0, 2.3, 3.1, 4.5, 8.0}) {
      options.average_bits = average;
      INFO("seed " << seed << ", average " << average);
      options.across_layers = false;
      const auto each = AllocateBits(profiles, options);
      REQUIRE(each);
      CHECK(each->cost == Approx(BruteForce(profiles[0], options, average * 4) +
                                 BruteForce(profiles[2], options, average * 3)));
      CHECK(each->cost == Approx(Total(profiles, *each, options)));
      CHECK(each->average_bits <= average + 1e-9);
      CHECK(each->bits[1].empty());

      options.across_layers = true;
      const auto together = AllocateBits(profiles, options);
      REQUIRE(together);
      std::vector<ExpertProfile> all = profiles[0];
      all.insert(all.end(), profiles[2].begin(), profiles[2].end());
      CHECK(together->cost == Approx(BruteForce(all, options, average * 7)));
      CHECK(together->cost == Approx(Total(profiles, *together, options)));
      CHECK(together->average_bits <= average + 1e-9);
      CHECK(together->cost <= each->cost + 1e-12);
    }
  }
}

TEST_CASE("More use, weight or error never gets an expert fewer bits", "[allocation]") {
  AllocationOptions options;
  options.protect_super_experts = false;
  Profiles profiles = {{}};
  for (int e = 0; e < 16; ++e) {
    profiles[0].push_back({.frequency = 0.1 * (1 + e),
                           .mean_weight = 0.5,
                           .output_error = {0.3, 0.15, 0.07, 0.018, 0.004},
                           .peak = 1});
  }
  const auto allocation = AllocateBits(profiles, options);
  REQUIRE(allocation);
  for (int e = 1; e < 16; ++e) CHECK(allocation->bits[0][e] >= allocation->bits[0][e - 1]);
  CHECK(allocation->bits[0][15] > allocation->bits[0][0]);
  CHECK(allocation->average_bits == Approx(3.0));
}

TEST_CASE("Equal experts are served in order, the same every time", "[allocation]") {
  AllocationOptions options;
  options.protect_super_experts = false;
  options.average_bits = 2.5;
  const ExpertProfile same = {
      .frequency = 0.5, .mean_weight = 0.5, .output_error = {8, 4, 2, 1, 0.5}, .peak = 1};
  const Profiles profiles = {std::vector<ExpertProfile>(4, same)};
  const auto allocation = AllocateBits(profiles, options);
  REQUIRE(allocation);
  CHECK(allocation->bits[0] == std::vector<int>{3, 3, 2, 2});
}

TEST_CASE("Super experts are those far above the rest, and get the most bits", "[allocation]") {
  Profiles profiles = RandomProfiles({64, 64, 64, 64}, 5, 3);
  CHECK(FindSuperExperts(profiles).size() <= 2);
  profiles[1][7].peak = 500;
  profiles[3][0].peak = 80;
  profiles[2][9].peak = 40;  // above the percentile, below a tenth of the largest
  const auto found = FindSuperExperts(profiles);
  REQUIRE(found.size() == 2);
  CHECK((found[0].layer == 1 && found[0].index == 7));
  CHECK((found[1].layer == 3 && found[1].index == 0));

  for (const bool across : {false, true}) {
    AllocationOptions options;
    options.across_layers = across;
    profiles[1][7].frequency = 0;  // nothing else speaks for it
    const auto allocation = AllocateBits(profiles, options);
    REQUIRE(allocation);
    CHECK(allocation->bits[1][7] == 8);
    CHECK(allocation->bits[3][0] == 8);
    CHECK(allocation->average_bits <= 3.0);
    options.average_bits = 2.0;
    const auto least = AllocateBits(profiles, options);
    REQUIRE(least);
    CHECK(least->average_bits == Approx(2.0 + 12.0 / 256));
  }
}

TEST_CASE("Settings that make no sense are refused with the reason", "[allocation]") {
  const Profiles profiles = RandomProfiles({3}, 5, 1);
  AllocationOptions options;
  options.average_bits = 1.5;
  CHECK(AllocateBits(profiles, options).error().message.find("outside the ladder") !=
        std::string::npos);
  options.average_bits = 3;
  options.ladder = {4, 2};
  CHECK_FALSE(AllocateBits(profiles, options));
  options.ladder = {2, 3, 4};
  CHECK(AllocateBits(profiles, options).error().message.find("expert 0 in layer 0") !=
        std::string::npos);
  options.ladder = {2, 3, 4, 6, 8};
  Profiles broken = profiles;
  broken[0][2].output_error[1] = std::nan("");
  CHECK(AllocateBits(broken, options).error().message.find("expert 2") != std::string::npos);
  CHECK(AllocateBits({}, options)->average_bits == 0);
}

}  // namespace
}  // namespace sluice
