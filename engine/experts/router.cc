#include "engine/experts/router.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice {

RoutingPlan::RoutingPlan(int max_tokens, int experts_per_token, int num_experts)
    : experts_per_token_(experts_per_token),
      next_(num_experts),
      rows_(static_cast<size_t>(max_tokens) * experts_per_token) {
  groups_.reserve(num_experts);
}

void RoutingPlan::Build(const int32_t* ids, int ids_stride, int tokens, int32_t* index,
                        int index_stride) {
  SLUICE_CHECK(static_cast<size_t>(tokens) * experts_per_token_ <= rows_.size());
  std::fill(next_.begin(), next_.end(), 0);
  for (int t = 0; t < tokens; ++t) {
    for (int s = 0; s < experts_per_token_; ++s) {
      const int32_t id = ids[t * ids_stride + s];
      if (id >= 0) ++next_[id];
    }
  }
  groups_.clear();
  int begin = 0;
  for (size_t expert = 0; expert < next_.size(); ++expert) {
    const int count = next_[expert];
    next_[expert] = begin;
    if (count == 0) continue;
    groups_.push_back({static_cast<int>(expert), begin, count});
    begin += count;
  }
  for (int t = 0; t < tokens; ++t) {
    for (int s = 0; s < experts_per_token_; ++s) {
      const int32_t id = ids[t * ids_stride + s];
      if (id < 0) {
        index[t * index_stride + s] = index[t * index_stride];
        continue;
      }
      const int place = next_[id]++;
      rows_[place] = t;
      index[t * index_stride + s] = place;
    }
  }
}

}  // namespace sluice
