#include <algorithm>
#include <array>
#include <cmath>

#include "engine/experts/policies/policies.h"
#include "engine/experts/policies/scan.h"

namespace sluice {
namespace {

constexpr float kLeastRate = 1e-5F;
constexpr float kMostRate = 1 - 1e-5F;

// Counts that fade by tokens.
class Fading {
 public:
  explicit Fading(float half_life_tokens) : keep_(std::exp2(-1 / half_life_tokens)) {}

  // What is left of old counts after a step of `tokens`.
  float Left(int tokens) const { return std::pow(keep_, static_cast<float>(tokens)); }
  // What one of the step's tokens counts at its end, on average.
  float Share(int tokens) const {
    return (1 - Left(tokens)) / ((1 - keep_) * static_cast<float>(tokens));
  }

 private:
  float keep_;
};

// Learned from the trace itself: how likely a visit uses an expert, by how often it is used at all
// (its slow rate against the mean) and how many visits of its layer ago it was used last. The same
// for all layers. From that the value at each age: V(age) = p + (1 - p) G V(age + 1).
class UseTable {
 public:
  static constexpr int kRates = 12;
  static constexpr int kLongestAge = 512;

  UseTable() : value_(size_t{kRates} * (kLongestAge + 1), 0) {
    constexpr std::array<int, kAges> kFirst = {1,  2,  3,  4,  5,  6,   7,   9,   12,         16,
                                               22, 30, 41, 57, 80, 112, 160, 256, kLongestAge};
    for (int a = 0; a < kAges; ++a) {
      const int end = a + 1 < kAges ? kFirst[a + 1] : kLongestAge + 1;
      for (int age = kFirst[a]; age < end; ++age) bucket_[age] = static_cast<uint8_t>(a);
    }
  }

  // ratio: rate of use against the mean of all experts.
  static int RateOf(float ratio) {
    const float steps = std::floor(kRateSteps * std::log2(std::max(ratio, 1e-6F)));
    return std::clamp(static_cast<int>(steps) + kMeanRate, 0, kRates - 1);
  }

  void Learn(int rate, int age, bool used) {
    Cell& cell = cells_[rate][bucket_[age]];
    cell.visits += 1;
    cell.uses += used ? 1.0F : 0.0F;
  }
  void Fade(float left) {
    for (auto& row : cells_) {
      for (Cell& cell : row) {
        cell.visits *= left;
        cell.uses *= left;
      }
    }
  }
  // `discount` is G; mean_probability of a use by a visit holds for what was not seen yet.
  void Solve(float discount, float mean_probability) {
    for (int rate = 0; rate < kRates; ++rate) {
      const float ratio = std::exp2((static_cast<float>(rate - kMeanRate) + 0.5F) / kRateSteps);
      const float guess = std::clamp(mean_probability * ratio, 1e-4F, 0.9F);
      std::array<float, kAges> p;
      for (int a = 0; a < kAges; ++a) {
        const Cell& cell = cells_[rate][a];
        p[a] = (cell.uses + kGuessWeight * guess) / (cell.visits + kGuessWeight);
      }
      float* value = &value_[static_cast<size_t>(rate) * (kLongestAge + 1)];
      const float last = p[kAges - 1];
      value[kLongestAge] = last / (1 - (1 - last) * discount);
      for (int age = kLongestAge - 1; age > 0; --age) {
        const float now = p[bucket_[age]];
        value[age] = now + (1 - now) * discount * value[age + 1];
      }
    }
  }
  float value(int rate, int age) const {
    return value_[static_cast<size_t>(rate) * (kLongestAge + 1) + static_cast<size_t>(age)];
  }

 private:
  static constexpr int kAges = 19;
  static constexpr int kMeanRate = 7;        // the bucket that begins at the mean rate
  static constexpr float kRateSteps = 1.5F;  // buckets per factor of two
  static constexpr float kGuessWeight = 20;

  struct Cell {
    float visits = 0, uses = 0;
  };
  std::array<std::array<Cell, kAges>, kRates> cells_{};
  std::array<uint8_t, kLongestAge + 1> bucket_{};  // of an age
  std::vector<float> value_;                       // [rate, age]
};

class NextUsePolicy final : public CachePolicy {
 public:
  NextUsePolicy(ExpertSpace space, const ExpertPrior& prior, const NextUseOptions& options)
      : space_(space),
        options_(options),
        fast_(options.fast_half_life_tokens),
        slow_(options.slow_half_life_tokens),
        prior_(prior.frequency),
        tokens_(space.layers),
        fast_count_(space.size(), 0),
        slow_count_(space.size(), 0),
        value_(space.size(), 0),
        later_value_(space.size(), 0),
        rate_(space.size(), UseTable::RateOf(1)),
        last_visit_(space.size(), -UseTable::kLongestAge),
        visits_(space.layers, 0),
        discount_(space.layers + 1, 1),
        predicted_(space.layers, 0),
        capacity_(space.size()) {
    SLUICE_CHECK(prior_.empty() || static_cast<int>(prior_.size()) == space.size());
    SetHorizon(options_.most_horizon_steps);
    table_.Solve(cycle_discount_, mean_rate_);
    for (int l = 0; l < space_.layers; ++l) Estimate(l);
  }

  std::string_view name() const override { return "next-use"; }

  void SetCapacity(int experts) override { capacity_ = std::max(1, experts); }

  void OnLayer(int layer, int tokens, std::span<const ExpertUse> uses) override {
    SLUICE_CHECK(tokens > 0);
    if (layer <= layer_) StartStep(tokens);
    layer_ = layer;

    Learn(layer, tokens, uses);
    const int first = space_.place({layer, 0});
    const float fast_left = fast_.Left(tokens), slow_left = slow_.Left(tokens);
    for (int i = first; i < first + space_.experts_per_layer; ++i) {
      fast_count_[i] *= fast_left;
      slow_count_[i] *= slow_left;
    }
    const float fast_share = fast_.Share(tokens), slow_share = slow_.Share(tokens);
    int assignments = 0;
    for (const ExpertUse& use : uses) {
      const int place = space_.place({layer, use.expert});
      fast_count_[place] += fast_share * static_cast<float>(use.tokens);
      slow_count_[place] += slow_share * static_cast<float>(use.tokens);
      assignments += use.tokens;
    }
    Tokens& seen = tokens_[layer];
    const float n = static_cast<float>(tokens);
    seen.fast = seen.fast * fast_left + fast_share * n;
    seen.slow = seen.slow * slow_left + slow_share * n;
    mean_rate_ = std::clamp(
        static_cast<float>(assignments) / n / static_cast<float>(space_.experts_per_layer),
        kLeastRate, kMostRate);
    predicted_[layer] = 0;
    Estimate(layer);
  }

  void OnInsert(int) override { ++insertions_; }
  void OnEvict(int) override {}

  void OnPredicted(int layer, std::span<const float> probability) override {
    SLUICE_CHECK(static_cast<int>(probability.size()) == space_.experts_per_layer);
    const int first = space_.place({layer, 0});
    for (int e = 0; e < space_.experts_per_layer; ++e) {
      value_[first + e] = PredictedValue(probability[e], first + e);
    }
    predicted_[layer] = 1;
  }

  int Victim(int layer, int, std::span<const uint8_t> evictable) override {
    SLUICE_CHECK(static_cast<int>(evictable.size()) == space_.size());
    constexpr float kNone = std::numeric_limits<float>::max();
    const int experts = space_.experts_per_layer;
    float least = kNone, least_value = kNone;
    int from = -1;
    for (int l = 0; l < space_.layers; ++l) {
      const float value = MinEvictableKey<float>(value_, evictable, l * experts, (l + 1) * experts);
      if (value == kNone) continue;
      const float discounted = value * discount_[Distance(layer, l)];
      if (discounted < least) {
        least = discounted;
        least_value = value;
        from = l;
      }
    }
    if (from < 0) return -1;
    return FindEvictableKey<float>(value_, evictable, from * experts, (from + 1) * experts,
                                   least_value);
  }

  bool Prefers(int layer, int incoming, float probability, int victim) override {
    const float gain = PredictedValue(probability, incoming) *
                       discount_[Distance(layer, space_.id(incoming).layer)];
    const float loss = value_[victim] * discount_[Distance(layer, space_.id(victim).layer)];
    return gain > loss;
  }

 private:
  struct Tokens {
    float fast = 0, slow = 0;  // faded as the counts are
  };

  int Distance(int now, int layer) const {
    return layer > now ? layer - now : layer - now + space_.layers;
  }

  int Age(int layer, int place) const {
    return static_cast<int>(
        std::min<int64_t>(visits_[layer] + 1 - last_visit_[place], UseTable::kLongestAge));
  }

  // Before the visit is counted.
  void Learn(int layer, int tokens, std::span<const ExpertUse> uses) {
    const int first = space_.place({layer, 0});
    if (static_cast<float>(tokens) <= 2 * expected_tokens_ && uses_table_) {
      auto use = uses.begin();
      for (int e = 0; e < space_.experts_per_layer; ++e) {
        const bool used = use != uses.end() && use->expert == e;
        if (used) ++use;
        table_.Learn(rate_[first + e], Age(layer, first + e), used);
      }
    }
    ++visits_[layer];
    for (const ExpertUse& use : uses) last_visit_[first + use.expert] = visits_[layer];
  }

  void StartStep(int tokens) {
    const int expected = std::min(tokens, last_step_tokens_);
    last_step_tokens_ = tokens;
    // Insertions per step fade with a half-life of some ten steps.
    insertions_per_step_ += (static_cast<float>(insertions_) - insertions_per_step_) / 16;
    insertions_ = 0;
    const float horizon = static_cast<float>(capacity_) / std::max(insertions_per_step_, 1e-3F);
    table_.Fade(options_.table_keep);
    const bool steps_changed =
        expected < 0.8F * expected_tokens_ || expected > 1.25F * expected_tokens_;
    const float bounded =
        std::clamp(horizon, options_.least_horizon_steps, options_.most_horizon_steps);
    const bool horizon_changed = bounded < 0.8F * horizon_ || bounded > 1.25F * horizon_;
    if (steps_changed) {
      expected_tokens_ = static_cast<float>(expected);
      // Steps that use most experts are a scan, whatever was used last.
      uses_table_ = expected_tokens_ * mean_rate_ <= 1;
      if (uses_table_) {
        const float ratio = expected_tokens_ / table_tokens_;
        if (ratio < 0.5F || ratio > 2) {
          table_.Fade(0.02F);
          table_tokens_ = expected_tokens_;
        }
      }
    }
    if (horizon_changed) SetHorizon(bounded);
    table_.Solve(cycle_discount_, VisitProbability(mean_rate_));
    if (!steps_changed && !horizon_changed) return;
    for (int l = 0; l < space_.layers; ++l) {
      if (predicted_[l] == 0) Estimate(l);
    }
  }

  void SetHorizon(float steps) {
    horizon_ = steps;
    cycle_discount_ = std::exp(-1 / steps);
    for (int d = 0; d <= space_.layers; ++d) {
      discount_[d] = std::exp(-static_cast<float>(d) / (static_cast<float>(space_.layers) * steps));
    }
  }

  // Value at a visit with probability p like all later ones.
  float Value(float p) const { return p / (1 - (1 - p) * cycle_discount_); }
  float PredictedValue(float predicted, int place) const {
    return predicted + (1 - predicted) * cycle_discount_ * later_value_[place];
  }
  // Of a visit by a step as expected, for an expert with this rate of use per token.
  float VisitProbability(float rate) const {
    return expected_tokens_ == 1 ? rate : -std::expm1(expected_tokens_ * std::log1p(-rate));
  }

  // The layer's probabilities and values from its counts.
  void Estimate(int layer) {
    const Tokens& seen = tokens_[layer];
    const int first = layer * space_.experts_per_layer;
    const float slow_scale = 1 / (seen.slow + options_.prior_weight_tokens);
    const float fast_scale = 1 / (seen.fast + options_.fast_weight_tokens);
    for (int i = first; i < first + space_.experts_per_layer; ++i) {
      const float prior = prior_.empty() ? mean_rate_ : prior_[i];
      const float slow = (slow_count_[i] + options_.prior_weight_tokens * prior) * slow_scale;
      const float rate =
          std::clamp((fast_count_[i] + options_.fast_weight_tokens * slow) * fast_scale, kLeastRate,
                     kMostRate);
      rate_[i] = static_cast<uint8_t>(UseTable::RateOf(slow / mean_rate_));
      if (uses_table_) {
        const int age = Age(layer, i);
        value_[i] = table_.value(rate_[i], age);
        later_value_[i] = table_.value(rate_[i], std::min(age + 1, UseTable::kLongestAge));
      } else {
        value_[i] = later_value_[i] = Value(VisitProbability(rate));
      }
    }
  }

  ExpertSpace space_;
  NextUseOptions options_;
  Fading fast_, slow_;
  std::vector<float> prior_;         // [place] or empty
  std::vector<Tokens> tokens_;       // [layer]
  std::vector<float> fast_count_;    // [place]
  std::vector<float> slow_count_;    // [place]
  std::vector<float> value_;         // [place] at the coming visit of its layer
  std::vector<float> later_value_;   // [place] at the visit after that, if that does not use it
  std::vector<uint8_t> rate_;        // [place] bucket of the table
  std::vector<int64_t> last_visit_;  // [place] of its layer that used it
  std::vector<int64_t> visits_;      // [layer] so far
  std::vector<float> discount_;      // [distance in layers]
  std::vector<uint8_t> predicted_;   // [layer] value_ holds a prediction

  UseTable table_;
  bool uses_table_ = true;  // or the rates alone
  float table_tokens_ = 1;  // of the steps that it was learned from
  int capacity_;
  int layer_ = 0;              // visited last
  int last_step_tokens_ = 1;   // the step that runs
  float expected_tokens_ = 1;  // of the steps to come
  float mean_rate_ = 0.1F;     // uses per token of an expert, on average
  int insertions_ = 0;         // in this step
  float insertions_per_step_ = 0;
  float horizon_ = 1;  // H
  float cycle_discount_ = 1;
};

}  // namespace

std::unique_ptr<CachePolicy> MakeNextUsePolicy(ExpertSpace space, const ExpertPrior& prior,
                                               const NextUseOptions& options) {
  return std::make_unique<NextUsePolicy>(space, prior, options);
}

}  // namespace sluice
