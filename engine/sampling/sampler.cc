#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "engine/base/check.h"
#include "engine/sampling/random.h"

namespace sluice {
namespace {

using Candidate = SamplerScratch::Candidate;

constexpr float kMasked = -std::numeric_limits<float>::infinity();

float ClampFinite(float x) {
  constexpr float kMax = std::numeric_limits<float>::max();
  return std::clamp(x, -kMax, kMax);
}

double TotalWeight(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += static_cast<double>(c.weight);
  return total;
}

bool Before(const Candidate& a, const Candidate& b) {
  return a.key < b.key || (a.key == b.key && a.token < b.token);
}

// The last member, in order of (key, token), of the shortest prefix whose weights reach `mass`: a
// member belongs to it when the sum before it is below `mass`. Selection by halves: expected time
// in proportion to the number of items, whose order it destroys. REQUIRES: items not empty, mass >
// 0.
Candidate LastWithinMass(std::span<Candidate> items, double mass) {
  constexpr size_t kSortAtMost = 64;
  const auto at = [&items](size_t i) { return items.begin() + static_cast<ptrdiff_t>(i); };
  size_t low = 0, high = items.size();
  double sum_before_low = 0;
  while (high - low > kSortAtMost) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(at(low), at(middle), at(high), Before);
    double sum = sum_before_low;
    for (size_t i = low; i < middle; ++i) sum += static_cast<double>(items[i].weight);
    if (sum >= mass) {
      high = middle;
    } else {
      low = middle;
      sum_before_low = sum;
    }
  }
  std::sort(at(low), at(high), Before);
  size_t last = low;
  double sum = sum_before_low + static_cast<double>(items[low].weight);
  while (last + 1 < high && sum < mass) sum += static_cast<double>(items[++last].weight);
  return items[last];
}

// Cuts the candidates to the shortest prefix by key whose weights reach `mass`; they stay in order
// of id.
void KeepMass(double mass, SamplerScratch* scratch) {
  scratch->ordered.assign(scratch->candidates.begin(), scratch->candidates.end());
  const Candidate last = LastWithinMass(scratch->ordered, mass);
  std::erase_if(scratch->candidates, [&last](const Candidate& c) { return Before(last, c); });
}

// Candidates, with their weights, from scratch->ranked, which is in order of id.
void WeighRanked(float max, float inverse_temperature, SamplerScratch* scratch) {
  scratch->kept_logits.clear();
  for (const RankedToken& r : scratch->ranked) scratch->kept_logits.push_back(r.value);
  ExpWeights(scratch->kept_logits, max, inverse_temperature, &scratch->weights,
             &scratch->piece_sums);
  for (size_t i = 0; i < scratch->ranked.size(); ++i) {
    const RankedToken& r = scratch->ranked[i];
    scratch->candidates.push_back({-r.value, scratch->weights[i], r.token});
  }
}

// A candidate's key is its negated logit, so its surprise needs no logarithm of its own.
void KeepTypical(double typical_p, float max, float inverse_temperature, SamplerScratch* scratch) {
  auto& candidates = scratch->candidates;
  std::erase_if(candidates, [](const Candidate& c) { return !(c.weight > 0); });
  const double total = TotalWeight(candidates);
  const double log_total = std::log(total);
  const auto surprise = [=](const Candidate& c) {
    return log_total - static_cast<double>((-c.key - max) * inverse_temperature);
  };
  double entropy = 0;
  for (const Candidate& c : candidates) {
    entropy += static_cast<double>(c.weight) / total * surprise(c);
  }
  for (Candidate& c : candidates) c.key = static_cast<float>(std::abs(surprise(c) - entropy));
  KeepMass(typical_p * total, scratch);
}

int32_t PickCandidate(std::span<const Candidate> candidates, double u) {
  const double target = u * TotalWeight(candidates);
  double sum = 0;
  int32_t chosen = candidates.front().token;
  for (const Candidate& c : candidates) {
    if (!(c.weight > 0)) continue;
    chosen = c.token;
    sum += static_cast<double>(c.weight);
    if (target < sum) break;
  }
  return chosen;
}

int32_t PickFromRow(const SamplerScratch& scratch, double total, double u) {
  const double target = u * total;
  const auto& pieces = scratch.piece_sums;
  size_t piece = 0, last_piece = 0;
  double sum = 0, sum_before = 0;
  for (; piece < pieces.size(); ++piece) {
    if (!(pieces[piece] > 0)) continue;
    last_piece = piece;
    sum_before = sum;
    sum += pieces[piece];
    if (target < sum) break;
  }
  const size_t begin = last_piece * kPieceElements;
  const size_t end = std::min(scratch.weights.size(), begin + kPieceElements);
  size_t chosen = begin;
  for (size_t i = begin; i < end; ++i) {
    if (!(scratch.weights[i] > 0)) continue;
    chosen = i;
    sum_before += static_cast<double>(scratch.weights[i]);
    if (target < sum_before) break;
  }
  return static_cast<int32_t>(chosen);
}

std::string OutOfRange(const char* field, const char* range) {
  return std::string(field) + " must be " + range;
}

}  // namespace

Result<> ValidateSampling(const SamplingParams& p, int vocab) {
  const auto within = [](float x, float low, float high) { return x >= low && x <= high; };
  constexpr float kMax = std::numeric_limits<float>::max();
  if (!within(p.temperature, 0, kMax)) {
    return InvalidArgument(OutOfRange("temperature", "a finite number, at least 0"));
  }
  if (!(within(p.top_p, 0, 1) && p.top_p > 0)) {
    return InvalidArgument(OutOfRange("top_p", "above 0 and at most 1"));
  }
  if (p.top_k < 0) return InvalidArgument(OutOfRange("top_k", "at least 0 (0 turns it off)"));
  if (!within(p.min_p, 0, 1)) return InvalidArgument(OutOfRange("min_p", "between 0 and 1"));
  if (!(within(p.typical_p, 0, 1) && p.typical_p > 0)) {
    return InvalidArgument(OutOfRange("typical_p", "above 0 and at most 1"));
  }
  if (!(within(p.repetition_penalty, 0, kMax) && p.repetition_penalty > 0)) {
    return InvalidArgument(OutOfRange("repetition_penalty", "a finite number above 0"));
  }
  if (!within(p.presence_penalty, -2, 2)) {
    return InvalidArgument(OutOfRange("presence_penalty", "between -2 and 2"));
  }
  if (!within(p.frequency_penalty, -2, 2)) {
    return InvalidArgument(OutOfRange("frequency_penalty", "between -2 and 2"));
  }
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= vocab) {
      return InvalidArgument("logit_bias names token " + std::to_string(token) +
                             ", but ids run from 0 to " + std::to_string(vocab - 1));
    }
    if (!within(bias, -kMax, kMax)) {
      return InvalidArgument("logit_bias of token " + std::to_string(token) +
                             " must be a finite number");
    }
  }
  return {};
}

Sampler::Sampler(SamplingParams params, std::span<const int32_t> prompt, int min_tokens,
                 std::vector<int32_t> ending_ids)
    : params_(std::move(params)),
      min_tokens_(min_tokens),
      ending_ids_(std::move(ending_ids)),
      penalised_(params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f ||
                 params_.frequency_penalty != 0.0f) {
  if (params_.repetition_penalty != 1.0f) {
    for (int32_t token : prompt) counts_.AddPrompt(token);
  }
}

void Sampler::Accept(int32_t token) {
  if (penalised_) counts_.AddOutput(token);
}

bool Sampler::Adjusts(int index) const {
  return !params_.logit_bias.empty() || (index < min_tokens_ && !ending_ids_.empty()) ||
         !counts_.entries().empty();
}

void Sampler::Adjust(std::span<const float> logits, int index, std::vector<float>* out) const {
  out->assign(logits.begin(), logits.end());
  const auto at = [out](int32_t token) -> float& {
    SLUICE_CHECK(token >= 0 && static_cast<size_t>(token) < out->size());
    return (*out)[static_cast<size_t>(token)];
  };
  for (const auto& [token, bias] : params_.logit_bias) at(token) = ClampFinite(at(token) + bias);
  for (const TokenCounts::Entry& seen : counts_.entries()) {
    float x = at(seen.token);
    x = x > 0 ? x / params_.repetition_penalty : x * params_.repetition_penalty;
    if (seen.output_count > 0) {
      x -= params_.frequency_penalty * static_cast<float>(seen.output_count);
      x -= params_.presence_penalty;
    }
    at(seen.token) = ClampFinite(x);
  }
  // Masked after the penalties so that clamping cannot lift a masked token; a mask commutes with
  // everything else in steps 1 and 2.
  if (index < min_tokens_) {
    for (int32_t token : ending_ids_) at(token) = kMasked;
  }
}

Result<int32_t> Sampler::Sample(std::span<const float> logits, int index,
                                SamplerScratch* scratch) const {
  RowScan scan = ScanRow(logits);
  if (!scan.finite) {
    return Internal("the model produced logits that are not finite numbers at generated token " +
                    std::to_string(index));
  }
  std::span<const float> row = logits;
  if (Adjusts(index)) {
    Adjust(logits, index, &scratch->adjusted);
    row = scratch->adjusted;
    scan = ScanRow(row);
    if (scan.max == kMasked) {
      return Internal("every token of the vocabulary is masked at generated token " +
                      std::to_string(index));
    }
  }
  if (params_.temperature == 0.0f) return FirstIndexOf(row, scan.max);
  return Draw(row, scan.max, index, scratch);
}

// Fills scratch->candidates, in order of id, with all that steps 4 and 5 could keep, and at least
// all that can survive. Returns the total weight before top_p.
double Sampler::CollectCandidates(std::span<const float> row, float max, float inverse_temperature,
                                  SamplerScratch* scratch) const {
  scratch->candidates.clear();
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < row.size()) {
    SelectTop(row, params_.top_k, &scratch->ranked);
    std::sort(scratch->ranked.begin(), scratch->ranked.end(),
              [](const RankedToken& a, const RankedToken& b) { return a.token < b.token; });
    WeighRanked(max, inverse_temperature, scratch);
    return TotalWeight(scratch->candidates);
  }
  if (params_.top_p == 1.0f && params_.min_p > 0.0f) {
    // Step 6 looks at weights; the margin is far above the rounding of exp and log.
    const double reach = (std::log(static_cast<double>(params_.min_p)) - 1e-3) /
                         static_cast<double>(inverse_temperature);
    const double floor =
        static_cast<double>(max) + reach - std::abs(static_cast<double>(max)) * 1e-6;
    SelectAtLeast(row, ClampFinite(static_cast<float>(floor)), &scratch->ranked);
    WeighRanked(max, inverse_temperature, scratch);
    return TotalWeight(scratch->candidates);
  }
  const double total =
      ExpWeights(row, max, inverse_temperature, &scratch->weights, &scratch->piece_sums);
  // Tokens lighter than this sum to less than 1 - top_p of the total, so the cut of step 5 lies
  // among the others. Without top_p it is 0, and only tokens without any weight fall out.
  const double share = (1.0 - static_cast<double>(params_.top_p)) / static_cast<double>(row.size());
  const double floor = std::max(total * share * (1.0 - 1e-6), 1.5e-38);
  SelectAtLeast(scratch->weights, static_cast<float>(floor), &scratch->ranked);
  for (const RankedToken& r : scratch->ranked) {
    scratch->candidates.push_back({-row[static_cast<size_t>(r.token)], r.value, r.token});
  }
  return total;
}

int32_t Sampler::Draw(std::span<const float> row, float max, int index,
                      SamplerScratch* scratch) const {
  const double u = UniformDraw(params_.seed, static_cast<uint64_t>(index));
  const float inverse_temperature = ClampFinite(1.0f / params_.temperature);
  const bool by_k = params_.top_k > 0 && static_cast<size_t>(params_.top_k) < row.size();
  if (!by_k && params_.top_p == 1.0f && params_.min_p == 0.0f && params_.typical_p == 1.0f) {
    const double total =
        ExpWeights(row, max, inverse_temperature, &scratch->weights, &scratch->piece_sums);
    return PickFromRow(*scratch, total, u);
  }
  const double total = CollectCandidates(row, max, inverse_temperature, scratch);
  if (params_.top_p < 1.0f) KeepMass(static_cast<double>(params_.top_p) * total, scratch);
  // The largest weight is exp(0) = 1, and every step before keeps it.
  std::erase_if(scratch->candidates,
                [this](const Candidate& c) { return c.weight < params_.min_p; });
  if (params_.typical_p < 1.0f) {
    KeepTypical(static_cast<double>(params_.typical_p), max, inverse_temperature, scratch);
  }
  return PickCandidate(scratch->candidates, u);
}

}  // namespace sluice
