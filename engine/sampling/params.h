// How the next token of one sequence is chosen (SEAM). Plain data; validated by the server before
// submission.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace sluice {

struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy (ties: the lowest id)
  float top_p = 1.0f;               // (0, 1]
  int top_k = 0;                    // 0: off
  float min_p = 0.0f;               // [0, 1]: drop tokens below min_p * max probability
  float typical_p = 1.0f;           // (0, 1]; 1: off
  float repetition_penalty = 1.0f;  // > 0; over prompt and output tokens
  float presence_penalty = 0.0f;    // [-2, 2]; over output tokens
  float frequency_penalty = 0.0f;   // [-2, 2]; over output tokens
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;  // always set; the server draws one when the client gives none
};

}  // namespace sluice
