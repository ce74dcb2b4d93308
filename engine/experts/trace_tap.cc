#include "engine/experts/trace_tap.h"

#include "engine/base/check.h"

namespace sluice {

void TraceTap::OnLayer(int layer, const RoutedTokens& routed, std::span<const ExpertUse> /*uses*/) {
  SLUICE_CHECK(routed.weights != nullptr);
  const auto k = static_cast<size_t>(routed.experts_per_token);
  weights_.clear();
  for (int t = 0; t < routed.tokens; ++t) {
    const float* row = routed.weights + static_cast<ptrdiff_t>(t) * routed.weights_stride;
    weights_.insert(weights_.end(), row, row + k);
  }
  writer_->OnLayer(layer, routed, weights_.data());
}

}  // namespace sluice
