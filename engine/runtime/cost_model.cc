#include "engine/runtime/cost_model.h"

#include <algorithm>
#include <cmath>

namespace sluice {
namespace {

// Of m hits in n draws with probability p each.
double BinomialProbability(int n, int m, double p) {
  if (p >= 1) return m == n ? 1 : 0;
  if (p <= 0) return m == 0 ? 1 : 0;
  return std::exp(std::lgamma(n + 1.0) - std::lgamma(m + 1.0) - std::lgamma(n - m + 1.0) +
                  m * std::log(p) + (n - m) * std::log1p(-p));
}

}  // namespace

StepCost CostModel::Cost(const StepLoad& load) const {
  StepCost cost;
  cost.expert_bytes = load.unique_experts * static_cast<double>(footprint_.expert_bytes);
  cost.bytes = static_cast<double>(footprint_.dense_bytes_per_token) + cost.expert_bytes +
               load.kv_tokens * static_cast<double>(footprint_.kv_bytes_per_block) / kKvBlockTokens;
  const auto logit_row_macs = static_cast<double>(footprint_.logit_row_macs);
  cost.macs =
      load.tokens * (static_cast<double>(footprint_.dense_macs_per_token) +
                     static_cast<double>(footprint_.expert_macs_per_token) - logit_row_macs) +
      load.logit_rows * logit_row_macs;
  cost.attention_macs =
      attention_macs_ * load.context * (load.tokens * (layers_ - 1.0) + load.logit_rows);
  return cost;
}

double CostModel::MemorySeconds(const StepCost& cost) const {
  return cost.bytes / roofline_.read_bytes_per_second;
}

double CostModel::ArithmeticSeconds(const StepCost& cost) const {
  return cost.macs / roofline_.macs_per_second +
         cost.attention_macs / roofline_.attention_macs_per_second;
}

double CostModel::ComputeSeconds(const StepLoad& load, const StepCost& cost, int threads) const {
  const double memory = cost.bytes / roofline_.typical_read_bytes_per_second;
  const double arithmetic = ArithmeticSeconds(cost) / kArithmeticEfficiency;
  const double matrices =
      std::pow(std::pow(memory, kOverlap) + std::pow(arithmetic, kOverlap), 1 / kOverlap);
  return matrices + layers_ * kForksPerLayer * roofline_.fork_seconds +
         load.tokens * layers_ * values_ * kSecondsPerValue / threads +
         load.logit_rows * vocab_ * kSecondsPerLogit + kSecondsPerStep;
}

double CostModel::StallSeconds(const StepLoad& load, const StepReads& reads, const StepCost& cost,
                               double compute, double read) const {
  const double one = read / reads.experts;
  const double own = compute * cost.expert_bytes / cost.bytes / layers_;
  const double late = reads.experts * (1 - reads.covered) / load.unique_experts;
  // The layer's experts, each late with this probability.
  const int experts = std::max(1, static_cast<int>(std::lround(load.unique_experts / layers_)));
  double stall = 0;
  for (int m = 1; m <= experts; ++m) {
    const double wait =
        m * one + reads.latency_seconds - own * (1 - static_cast<double>(m) / experts);
    stall += BinomialProbability(experts, m, late) * std::max(0.0, wait);
  }
  return std::max(layers_ * stall, read - compute);
}

StepSeconds CostModel::Seconds(const StepLoad& load, const StepReads& reads, int threads) const {
  const StepCost cost = Cost(load);
  StepSeconds seconds;
  const double undisturbed = ComputeSeconds(load, cost, threads);
  seconds.compute = undisturbed;
  if (!(reads.experts > 0)) return seconds;
  seconds.read = reads.experts * static_cast<double>(footprint_.expert_bytes) /
                 (reads.bytes_per_second * kDiskEfficiency);
  seconds.stall = StallSeconds(load, reads, cost, undisturbed, seconds.read);
  const double busy = std::min(1.0, seconds.read / seconds.total());
  seconds.compute = undisturbed * (1 + kDiskSlowsCompute * busy);
  seconds.stall = StallSeconds(load, reads, cost, seconds.compute, seconds.read);
  return seconds;
}

}  // namespace sluice
