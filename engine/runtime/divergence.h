// How far one model's predictions are from another's on a text: what quantization costs.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/base/result.h"
#include "engine/model/model.h"

namespace sluice {

struct DivergenceOptions {
  int context = 0;      // tokens per window; 0: the smaller of both models' max_context and 2048
  int stride = 0;       // tokens between windows; 0: half of context. Only positions not yet scored
                        // count in a window
  int step_tokens = 0;  // that the model computes at once; 0: as many as fit
  QualitySettings quality = {};  // of the model; the reference is exact
  std::function<void(double fraction)> progress;
};

struct Divergence {
  double kl_per_token = 0;    // mean over positions of KL(reference || model), nats
  double kl_max = 0;          // the worst position
  double top1_agreement = 0;  // share of positions where both prefer the same token
  double logit_error = 0;     // ||model - reference|| / ||reference|| over all logits, each row
                              // centred on its mean (a constant added to a row changes nothing)
  int64_t tokens = 0;         // positions scored
  ExpertCounts experts;       // of the model, over all that it computed
};

// Both models read the same token ids, window by window; positions are scored as for perplexity
// (evaluation.h): every one but the first, once, with at least half a window of context where there
// is as much. Sums are in F64 in the order of the text.
// Errors: kInvalidArgument for vocabularies of different sizes, fewer than two tokens, a context
// that does not fit. REQUIRES: ids within the vocabulary; nobody else uses the models meanwhile.
Result<Divergence> EvaluateDivergence(Model& reference, Model& model,
                                      std::span<const int32_t> tokens,
                                      const DivergenceOptions& options);

}  // namespace sluice
