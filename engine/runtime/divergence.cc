#include "engine/runtime/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace sluice {
namespace {

// log(sum(exp(x))) and the mean and arg max of a row.
struct RowSummary {
  double log_sum = 0;
  double mean = 0;
  size_t best = 0;
};

RowSummary Summarize(std::span<const float> row) {
  RowSummary summary;
  summary.best = static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
  const double peak = row[summary.best];
  double sum = 0;
  double total = 0;
  for (const float value : row) {
    sum += std::exp(value - peak);
    total += value;
  }
  summary.log_sum = peak + std::log(sum);
  summary.mean = total / static_cast<double>(row.size());
  return summary;
}

class Comparison {
 public:
  void AddRow(std::span<const float> reference, std::span<const float> model) {
    const RowSummary p = Summarize(reference);
    const RowSummary q = Summarize(model);
    double kl = 0;
    for (size_t i = 0; i < reference.size(); ++i) {
      const double log_p = reference[i] - p.log_sum;
      const double log_q = model[i] - q.log_sum;
      kl += std::exp(log_p) * (log_p - log_q);
      const double wanted = reference[i] - p.mean;
      const double error = (model[i] - q.mean) - wanted;
      square_ += wanted * wanted;
      error_square_ += error * error;
    }
    result_.kl_max = std::max(result_.kl_max, kl);
    kl_ += kl;
    agreed_ += p.best == q.best ? 1 : 0;
    ++result_.tokens;
  }

  Divergence Finish() {
    const auto count = static_cast<double>(result_.tokens);
    result_.kl_per_token = kl_ / count;
    result_.top1_agreement = static_cast<double>(agreed_) / count;
    result_.logit_error = square_ > 0 ? std::sqrt(error_square_ / square_) : 0;
    return result_;
  }

 private:
  Divergence result_;
  double kl_ = 0, square_ = 0, error_square_ = 0;
  int64_t agreed_ = 0;
};

}  // namespace

Result<Divergence> EvaluateDivergence(Model& reference, Model& model,
                                      std::span<const int32_t> tokens,
                                      const DivergenceOptions& options) {
  const int vocab = reference.config().vocab;
  if (model.config().vocab != vocab) {
    return InvalidArgument("the models have vocabularies of " +
                           std::to_string(model.config().vocab) + " and " + std::to_string(vocab) +
                           " tokens and cannot be compared");
  }
  if (tokens.size() < 2) return InvalidArgument("the text has fewer than two tokens");
  const int most = std::min(reference.options().max_context, model.options().max_context);
  const int context = options.context > 0 ? options.context : std::min(most, 2048);
  const int stride = options.stride > 0 ? options.stride : std::max(context / 2, 1);
  if (context < 2 || context > most) {
    return InvalidArgument("context must be from 2 to " + std::to_string(most) + " tokens, got " +
                           std::to_string(context));
  }
  if (stride >= context) return InvalidArgument("stride must be below context");

  int step = std::min(reference.options().max_logit_rows, model.options().max_logit_rows);
  if (options.step_tokens > 0) step = std::min(step, options.step_tokens);
  std::vector<int32_t> blocks(static_cast<size_t>((context + kKvBlockTokens - 1) / kKvBlockTokens));
  std::iota(blocks.begin(), blocks.end(), 0);
  Comparison comparison;
  const auto total = static_cast<int64_t>(tokens.size());
  ExpertCounts experts;
  int64_t scored = 1;  // the first token has no prediction
  for (int64_t begin = 0; scored < total; begin += stride) {
    const int64_t end = std::min<int64_t>(begin + context, total);
    // Row i of a window predicts token i + 1.
    for (int64_t at = begin; at < end; at += step) {
      const int64_t count = std::min<int64_t>(step, end - at);
      SequenceChunk chunk = {
          .tokens = tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(count)),
          .position = static_cast<int>(at - begin),
          .kv_blocks = blocks,
          .logits = LogitRows::kAll};
      const std::span<const float> wanted = reference.Forward({&chunk, 1});
      chunk.quality = options.quality;
      const std::span<const float> got = model.Forward({&chunk, 1});
      for (const ExpertCounts& counts : model.chunk_experts()) experts += counts;
      for (int64_t i = 0; i < count; ++i) {
        if (at + i + 1 < scored || at + i + 1 >= end) continue;
        const size_t row = static_cast<size_t>(i) * static_cast<size_t>(vocab);
        comparison.AddRow(wanted.subspan(row, vocab), got.subspan(row, vocab));
      }
    }
    scored = end;
    if (options.progress) options.progress(static_cast<double>(end) / static_cast<double>(total));
  }
  Divergence result = comparison.Finish();
  result.experts = experts;
  return result;
}

}  // namespace sluice
