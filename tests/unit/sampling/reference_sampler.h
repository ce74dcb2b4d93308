// The sampler as its header describes it, written the plain way: doubles, full sorts, no sharing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "engine/sampling/params.h"
#include "engine/sampling/random.h"

namespace sluice {

struct ReferenceContext {
  std::vector<int32_t> prompt, output;
  std::vector<int32_t> ending_ids;
  int min_tokens = 0;
};

struct ReferenceToken {
  int32_t id = 0;
  double logit = 0;
  double weight = 0;
};

inline std::vector<double> ReferenceAdjusted(const std::vector<float>& logits,
                                             const SamplingParams& p,
                                             const ReferenceContext& context) {
  std::vector<float> x = logits;
  for (const auto& [id, bias] : p.logit_bias) x[static_cast<size_t>(id)] += bias;
  std::map<int32_t, int> counts;
  for (int32_t id : context.output) ++counts[id];
  std::set<int32_t> seen(context.output.begin(), context.output.end());
  if (p.repetition_penalty != 1.0f) seen.insert(context.prompt.begin(), context.prompt.end());
  for (int32_t id : seen) {
    float& v = x[static_cast<size_t>(id)];
    v = v > 0 ? v / p.repetition_penalty : v * p.repetition_penalty;
    if (counts.count(id) > 0) {
      v -= p.frequency_penalty * static_cast<float>(counts[id]);
      v -= p.presence_penalty;
    }
  }
  if (static_cast<int>(context.output.size()) < context.min_tokens) {
    for (int32_t id : context.ending_ids) {
      x[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
    }
  }
  return {x.begin(), x.end()};
}

inline double ReferenceTotal(const std::vector<ReferenceToken>& tokens) {
  double total = 0;
  for (const auto& t : tokens) total += t.weight;
  return total;
}

// Keeps the shortest prefix of `tokens` (already sorted) whose weights reach `mass`.
inline void ReferenceCut(std::vector<ReferenceToken>* tokens, double mass) {
  double sum = 0;
  size_t keep = 0;
  while (keep < tokens->size() && (keep == 0 || sum < mass)) sum += (*tokens)[keep++].weight;
  tokens->resize(keep);
}

// The survivors of steps 1 to 7, in order of id.
inline std::vector<ReferenceToken> ReferenceSurvivors(const std::vector<float>& logits,
                                                      const SamplingParams& p,
                                                      const ReferenceContext& context) {
  const std::vector<double> x = ReferenceAdjusted(logits, p, context);
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<ReferenceToken> tokens;
  for (size_t i = 0; i < x.size(); ++i) {
    const double weight = std::exp((x[i] - max) / static_cast<double>(p.temperature));
    tokens.push_back({static_cast<int32_t>(i), x[i], weight});
  }
  const auto by_logit = [](const ReferenceToken& a, const ReferenceToken& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  std::sort(tokens.begin(), tokens.end(), by_logit);
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < tokens.size()) {
    tokens.resize(static_cast<size_t>(p.top_k));
  }
  if (p.top_p < 1) {
    ReferenceCut(&tokens, static_cast<double>(p.top_p) * ReferenceTotal(tokens));
  }
  std::erase_if(tokens, [&](const ReferenceToken& t) {
    return t.weight < static_cast<double>(p.min_p) || !(t.weight > 0);
  });
  if (p.typical_p < 1) {
    const double total = ReferenceTotal(tokens);
    double entropy = 0;
    for (const auto& t : tokens) entropy -= t.weight / total * std::log(t.weight / total);
    const auto distance = [&](const ReferenceToken& t) {
      return std::abs(-std::log(t.weight / total) - entropy);
    };
    std::sort(tokens.begin(), tokens.end(), [&](const auto& a, const auto& b) {
      return distance(a) < distance(b) || (distance(a) == distance(b) && a.id < b.id);
    });
    ReferenceCut(&tokens, static_cast<double>(p.typical_p) * total);
  }
  std::sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return tokens;
}

inline int32_t ReferenceSample(const std::vector<float>& logits, const SamplingParams& p,
                               const ReferenceContext& context) {
  if (p.temperature == 0) {
    const auto x = ReferenceAdjusted(logits, p, context);
    return static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
  }
  const auto tokens = ReferenceSurvivors(logits, p, context);
  const double target = UniformDraw(p.seed, context.output.size()) * ReferenceTotal(tokens);
  double sum = 0;
  for (const auto& t : tokens) {
    sum += t.weight;
    if (target < sum) return t.id;
  }
  return tokens.back().id;
}

}  // namespace sluice
