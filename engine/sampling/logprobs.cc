#include "engine/sampling/logprobs.h"

#include <cmath>

#include "engine/base/check.h"

namespace sluice {

bool ComputeLogprobs(std::span<const float> row, int32_t token, int top_count,
                     LogprobScratch* scratch, float* logprob, std::vector<TokenLogprob>* top) {
  SLUICE_CHECK(token >= 0 && static_cast<size_t>(token) < row.size());
  top->clear();
  const RowScan scan = ScanRow(row);
  if (!scan.finite) return false;
  const double total = ExpWeights(row, scan.max, 1.0f, &scratch->weights, &scratch->piece_sums);
  const double normaliser = static_cast<double>(scan.max) + std::log(total);
  *logprob = static_cast<float>(static_cast<double>(row[static_cast<size_t>(token)]) - normaliser);
  if (top_count <= 0) return true;
  SelectTop(row, top_count, &scratch->ranked);
  top->reserve(scratch->ranked.size());
  for (const RankedToken& r : scratch->ranked) {
    top->push_back({r.token, static_cast<float>(static_cast<double>(r.value) - normaliser)});
  }
  return true;
}

}  // namespace sluice
