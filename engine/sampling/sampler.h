// Chooses the next token of one sequence from a row of logits.
//
// The order of operations, the one that Hugging Face transformers and vLLM use:
//   1. logit_bias is added; while fewer than min_tokens are generated, the ids that would end the
//      sequence are masked;
//   2. repetition_penalty on every token of prompt or output (a positive logit is divided by it, a
//      negative one multiplied); then frequency_penalty * count and presence_penalty are subtracted
//      from tokens of the output;
//   3. temperature 0 takes the largest logit (ties: the lowest id) and stops here;
//      otherwise logits are multiplied by 1 / temperature;
//   4. top_k keeps exactly the k largest (ties: lower ids first);
//   5. top_p keeps the fewest most likely tokens, renormalised after 4, whose probabilities reach
//      top_p: a token stays when the sum before it is below top_p;
//   6. min_p keeps tokens with at least min_p times the largest probability;
//   7. typical_p (Meister et al., "Locally Typical Sampling", 2022), renormalised after 6, keeps
//   the
//      fewest tokens whose surprise is closest to the entropy and whose probabilities reach
//      typical_p (ties: lower ids first);
//   8. one draw: the survivors' probabilities are laid end to end in order of id, and the number
//      UniformDraw(seed, index of the generated token) points into them.
// Hence a token depends on the logits, the parameters, the sequence's own tokens and its index, and
// on nothing else.
//
// Cost for a vocabulary of V: one or two passes over the row, and selection (never a sort of V) for
// 4, 5 and 7; with top_k or min_p, exponentials of the survivors only. No allocation once the
// scratch has grown to V.
//
// Threads: Sample is const; different sequences may be sampled at once, each call with a scratch of
// its own. Accept is a write.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/sampling/params.h"
#include "engine/sampling/row_math.h"
#include "engine/sampling/token_counts.h"

namespace sluice {

// InvalidArgument, naming the field, when a parameter is outside the range that params.h gives, is
// not a finite number, or names a token outside [0, vocab).
Result<> ValidateSampling(const SamplingParams& params, int vocab);

struct SamplerScratch {
  struct Candidate {
    float key = 0;     // what a filter ranks by, ascending
    float weight = 0;  // exp((logit - max) / temperature), of the logit after step 2
    int32_t token = 0;
  };
  std::vector<float> adjusted;
  std::vector<float> weights;
  std::vector<double> piece_sums;
  std::vector<RankedToken> ranked;
  std::vector<float> kept_logits;
  std::vector<Candidate> candidates;  // in order of id
  std::vector<Candidate> ordered;     // the same, permuted by a selection
};

class Sampler {
 public:
  // `prompt` is read here only. `ending_ids` are masked for the first `min_tokens` tokens; ids in
  // [0, vocab). REQUIRES: ValidateSampling(params) passed.
  Sampler(SamplingParams params, std::span<const int32_t> prompt, int min_tokens,
          std::vector<int32_t> ending_ids);

  // The token number `index` (0 is the first generated). kInternal when the row holds a NaN or an
  // infinity, or when every token is masked: the sequence cannot go on.
  Result<int32_t> Sample(std::span<const float> logits, int index, SamplerScratch* scratch) const;

  // Counts a generated token for the penalties of the tokens after it.
  void Accept(int32_t token);

  const SamplingParams& params() const { return params_; }

 private:
  bool Adjusts(int index) const;
  void Adjust(std::span<const float> logits, int index, std::vector<float>* out) const;
  int32_t Draw(std::span<const float> row, float max, int index, SamplerScratch* scratch) const;
  double CollectCandidates(std::span<const float> row, float max, float inverse_temperature,
                           SamplerScratch* scratch) const;

  SamplingParams params_;
  int min_tokens_;
  std::vector<int32_t> ending_ids_;
  bool penalised_;
  TokenCounts counts_;  // empty unless penalised_
};

}  // namespace sluice
