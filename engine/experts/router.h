// From each token's chosen experts to each expert's tokens.
//
// The plan sorts the (token, slot) assignments by expert, tokens ascending within an expert, so
// that one expert's weights are read once for all its tokens. It also says where each assignment's
// output row lands, so that a token can sum its outputs in slot order whatever order the experts
// ran in: the sum never depends on the other tokens of the step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sluice {

class RoutingPlan {
 public:
  // Sized for the largest step; Build allocates nothing.
  RoutingPlan(int max_tokens, int experts_per_token, int num_experts);

  struct Group {
    int expert = 0;
    int begin = 0;  // first assignment: rows()[begin, begin + count)
    int count = 0;
  };

  // ids: [tokens, experts_per_token] at ids_stride, each in [0, num_experts), distinct within a
  // token, or -1 for none; a token's first is never -1, and the others' place is then its. index:
  // [tokens, experts_per_token] at index_stride, receives for each (token, slot) its place in the
  // sorted order.
  void Build(const int32_t* ids, int ids_stride, int tokens, int32_t* index, int index_stride);

  // Touched experts, ascending.
  std::span<const Group> groups() const { return groups_; }
  // The token of each assignment in sorted order.
  const int32_t* rows() const { return rows_.data(); }

 private:
  int experts_per_token_;
  std::vector<int32_t> next_;  // [num_experts], counts, then the next free place
  std::vector<int32_t> rows_;
  std::vector<Group> groups_;
};

}  // namespace sluice
