#include "engine/convert/allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/nested.h"

namespace sluice {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// A minimum over what fits in a budget: cost[b] is the least cost that `b` bits above the lowest
// choice of everybody can buy, choice[i][b] what item i takes of them.
struct Curve {
  std::vector<double> cost;
  std::vector<std::vector<uint16_t>> choice;

  // The shares of all items when together they have `budget`.
  std::vector<int> Shares(size_t budget) const {
    std::vector<int> shares(choice.size());
    for (size_t i = choice.size(); i-- > 0;) {
      shares[i] = choice[i][budget];
      budget -= static_cast<size_t>(shares[i]);
    }
    return shares;
  }
};

// Adds an item to a curve: option o takes extra[o] bits (ascending) and costs cost[o].
void AddItem(std::span<const int> extra, std::span<const double> cost, Curve* curve) {
  const size_t size = curve->cost.size();
  std::vector<double> next(size, kNever);
  std::vector<uint16_t>& choice = curve->choice.emplace_back(size, uint16_t{0});
  for (size_t b = 0; b < size; ++b) {
    for (size_t o = 0; o < extra.size() && static_cast<size_t>(extra[o]) <= b; ++o) {
      const double total = curve->cost[b - static_cast<size_t>(extra[o])] + cost[o];
      if (total < next[b]) {
        next[b] = total;
        choice[b] = static_cast<uint16_t>(extra[o]);
      }
    }
  }
  curve->cost = std::move(next);
}

Curve EmptyCurve(size_t budget) { return {std::vector<double>(budget + 1, 0.0), {}}; }

double Power(double x, double exponent) { return exponent == 0 ? 1.0 : std::pow(x, exponent); }

Result<> Validate(std::span<const std::vector<ExpertProfile>> profiles,
                  const AllocationOptions& options) {
  const std::vector<int>& ladder = options.ladder;
  if (ladder.empty() || ladder.front() < 1 ||
      std::adjacent_find(ladder.begin(), ladder.end(), std::greater_equal<>()) != ladder.end()) {
    return InvalidArgument("the precision ladder must be ascending and not empty");
  }
  if (!(options.average_bits >= ladder.front() && options.average_bits <= ladder.back())) {
    return InvalidArgument("an average of " + std::to_string(options.average_bits) +
                           " bits is outside the ladder, " + std::to_string(ladder.front()) +
                           " to " + std::to_string(ladder.back()));
  }
  for (size_t l = 0; l < profiles.size(); ++l) {
    for (size_t e = 0; e < profiles[l].size(); ++e) {
      const ExpertProfile& p = profiles[l][e];
      const bool finite = std::isfinite(p.frequency) && std::isfinite(p.mean_weight) &&
                          p.frequency >= 0 && p.mean_weight >= 0 &&
                          std::all_of(p.output_error.begin(), p.output_error.end(),
                                      [](double x) { return std::isfinite(x) && x >= 0; });
      if (p.output_error.size() != ladder.size() || !finite) {
        return InvalidArgument("the profile of expert " + std::to_string(e) + " in layer " +
                               std::to_string(l) +
                               " needs one finite output error for each step of the ladder");
      }
    }
  }
  return {};
}

}  // namespace

std::vector<int> PrecisionLadder() {
  std::vector<int> ladder;
  for (int planes = 1; planes <= NestedPlanes(8); ++planes) {
    ladder.push_back(NestedPrecision(8, planes));
  }
  return ladder;
}

std::vector<ExpertId> FindSuperExperts(std::span<const std::vector<ExpertProfile>> profiles) {
  std::vector<float> peaks;
  for (const auto& layer : profiles) {
    for (const ExpertProfile& profile : layer) peaks.push_back(profile.peak);
  }
  if (peaks.empty()) return {};
  std::sort(peaks.begin(), peaks.end());
  // Linear between order statistics, as numpy's percentile.
  const double place = 0.995 * static_cast<double>(peaks.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, peaks.size() - 1);
  const double percentile =
      peaks[below] + (place - static_cast<double>(below)) * (double{peaks[above]} - peaks[below]);
  const double limit = std::max(percentile, peaks.back() / 10.0);
  std::vector<ExpertId> found;
  for (size_t l = 0; l < profiles.size(); ++l) {
    for (size_t e = 0; e < profiles[l].size(); ++e) {
      if (profiles[l][e].peak > limit) {
        found.push_back({static_cast<int>(l), static_cast<int>(e)});
      }
    }
  }
  return found;
}

Result<Allocation> AllocateBits(std::span<const std::vector<ExpertProfile>> profiles,
                                const AllocationOptions& options) {
  if (auto ok = Validate(profiles, options); !ok) return ok.error();
  const std::vector<int>& ladder = options.ladder;
  const int lowest = ladder.front();
  Allocation allocation;
  allocation.bits.resize(profiles.size());
  if (options.protect_super_experts) allocation.super_experts = FindSuperExperts(profiles);

  std::vector<int> extra;
  for (const int bits : ladder) extra.push_back(bits - lowest);
  const auto budget_of = [&](size_t experts) {
    // The margin keeps an average such as 3.1 from losing a bit to binary fractions.
    return static_cast<size_t>((options.average_bits - lowest) * static_cast<double>(experts) +
                               1e-6);
  };

  // Each layer's curve, over every budget that it could get.
  std::vector<Curve> curves(profiles.size());
  std::vector<size_t> forced(profiles.size(), 0);
  size_t experts = 0, all_forced = 0;
  for (size_t l = 0; l < profiles.size(); ++l) {
    const size_t count = profiles[l].size();
    experts += count;
    std::vector<bool> is_super(count, false);
    for (const ExpertId id : allocation.super_experts) {
      if (id.layer == static_cast<int>(l)) is_super[static_cast<size_t>(id.index)] = true;
    }
    forced[l] = static_cast<size_t>(std::count(is_super.begin(), is_super.end(), true)) *
                static_cast<size_t>(extra.back());
    all_forced += forced[l];
    const size_t most = options.across_layers ? count * static_cast<size_t>(extra.back())
                                              : std::max(budget_of(count), forced[l]);
    curves[l] = EmptyCurve(most);
    for (size_t e = 0; e < count; ++e) {
      const ExpertProfile& p = profiles[l][e];
      const double importance =
          Power(p.frequency, options.alpha) * Power(p.mean_weight, options.beta);
      std::vector<double> cost;
      for (const double error : p.output_error) {
        cost.push_back(importance * Power(error, options.gamma));
      }
      const size_t first = is_super[e] ? ladder.size() - 1 : 0;
      AddItem(std::span(extra).subspan(first), std::span(cost).subspan(first), &curves[l]);
    }
  }

  std::vector<size_t> layer_budget(profiles.size());
  if (options.across_layers) {
    Curve total = EmptyCurve(std::max(budget_of(experts), all_forced));
    for (size_t l = 0; l < curves.size(); ++l) {
      std::vector<int> shares;
      for (size_t b = 0; b < curves[l].cost.size(); ++b) shares.push_back(static_cast<int>(b));
      AddItem(shares, curves[l].cost, &total);
    }
    const std::vector<int> shares = total.Shares(total.cost.size() - 1);
    for (size_t l = 0; l < shares.size(); ++l) layer_budget[l] = static_cast<size_t>(shares[l]);
  } else {
    for (size_t l = 0; l < curves.size(); ++l) layer_budget[l] = curves[l].cost.size() - 1;
  }

  double spent = 0;
  for (size_t l = 0; l < profiles.size(); ++l) {
    allocation.cost += curves[l].cost[layer_budget[l]];
    for (const int share : curves[l].Shares(layer_budget[l])) {
      allocation.bits[l].push_back(lowest + share);
      spent += lowest + share;
    }
  }
  allocation.average_bits = experts > 0 ? spent / static_cast<double>(experts) : 0;
  return allocation;
}

}  // namespace sluice
