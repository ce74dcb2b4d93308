// Log-probabilities of the model itself: log-softmax of the raw logits, before penalties, bias,
// temperature and truncation. The normaliser is accumulated in float64 in a fixed order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/sampling/row_math.h"

namespace sluice {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// Reused between calls so that a step allocates nothing; one per thread.
struct LogprobScratch {
  std::vector<float> weights;
  std::vector<double> piece_sums;
  std::vector<RankedToken> ranked;
};

// The log-probability of `token`, and in `top` the `top_count` most likely tokens, best first
// (ties: the lower id). top_count <= 0 leaves `top` empty; more than the vocabulary gives all of
// it. False when the row holds a NaN or an infinity. REQUIRES: token in [0, row.size()).
[[nodiscard]] bool ComputeLogprobs(std::span<const float> row, int32_t token, int top_count,
                                   LogprobScratch* scratch, float* logprob,
                                   std::vector<TokenLogprob>* top);

}  // namespace sluice
