#include "engine/experts/quality.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace sluice {

const char* QualityName(Quality quality) {
  switch (quality) {
    case Quality::kExact:
      return "exact";
    case Quality::kBalanced:
      return "balanced";
    case Quality::kFast:
      return "fast";
  }
  return "exact";
}

std::optional<Quality> ParseQuality(std::string_view name) {
  for (const Quality quality : {Quality::kExact, Quality::kBalanced, Quality::kFast}) {
    if (name == QualityName(quality)) return quality;
  }
  return std::nullopt;
}

uint64_t QualityKey(const QualitySettings& settings) {
  if (settings.exact()) return 0;
  constexpr uint64_t kParts = 100001;
  const auto part = [](float share) {
    return static_cast<uint64_t>(std::lround(std::clamp(share, 0.0f, 1.0f) * (kParts - 1)));
  };
  uint64_t key = static_cast<uint64_t>(settings.experts_per_token);
  key = key * kParts + part(1 - settings.expert_mass);
  key = key * kParts + part(settings.prune_ratio);
  return 1 + key * 3 + static_cast<uint64_t>(settings.quality);
}

const QualityRules& DefaultQualityRules() {
  static constexpr QualityRules kRules = {
      .balanced = {.steps = {{{0, kAllBits}, {0.5f, 2}}}, .step_count = 2},
      .fast = {.steps = {{{0, 3}, {0.4f, 2}, {0.9f, kSkippable}}},
               .step_count = 3,
               .tail_share = 0.3f,
               .tail_bits = 2},
  };
  return kRules;
}

void GradeExperts(const QualitySettings& settings, const QualityRules& rules,
                  std::span<const float> weights, std::span<int8_t> bits) {
  SLUICE_CHECK(!weights.empty() && bits.size() == weights.size());
  const QualityRule& rule = rules.of(settings.quality);
  float sum = 0;
  for (const float weight : weights) sum += weight;
  float before = 0;  // of the sum
  int step = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    while (step + 1 < rule.step_count && before >= rule.steps[step + 1].from * sum) ++step;
    bits[i] = rule.steps[step].bits;
    const bool dropped =
        (settings.expert_mass < 1 && before >= settings.expert_mass * sum) ||
        weights[i] < settings.prune_ratio * weights[0] ||
        (settings.experts_per_token > 0 && static_cast<int>(i) >= settings.experts_per_token);
    if (dropped && i > 0) bits[i] = kDropped;
    if (i == 0 && bits[i] == kSkippable) bits[i] = kAllBits;
    before += weights[i];
  }
}

}  // namespace sluice
