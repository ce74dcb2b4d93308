// What attention needs to know about a step, worked out once for all layers: where each token sits
// in its sequence and in the cache, and which query rows go together.
//
// Tokens of a chunk are cut into runs. A run's rows are its tokens times the query heads that share
// a kv head, so that one pass over K and V serves all of them. Layers with the same sliding window
// share their rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/model/model.h"
#include "engine/tensor/backend.h"

namespace sluice {

class AttentionBatch {
 public:
  // Sized for the largest step; Build allocates nothing.
  AttentionBatch(const ModelConfig& config, int max_batch_tokens, int max_sequences);

  // The spans in `chunks` must live as long as the batch is used.
  void Build(std::span<const SequenceChunk> chunks);

  int tokens() const { return tokens_; }
  const int32_t* positions() const { return positions_.data(); }
  const int32_t* slots() const { return slots_.data(); }
  std::span<const AttentionGroup> groups(int layer) const {
    return windows_[layer_window_[layer]].groups;
  }

 private:
  struct Window {
    int size;                            // 0: full attention
    std::vector<int32_t> first_visible;  // [rows]
    std::vector<AttentionGroup> groups;
  };

  int head_group_;  // query heads per kv head
  int head_dim_;
  ptrdiff_t q_stride_;  // floats from one token's queries to the next's
  int tokens_ = 0;
  std::vector<int32_t> positions_;
  std::vector<int32_t> slots_;
  std::vector<int32_t> context_;    // [rows]
  std::vector<ptrdiff_t> offsets_;  // [rows]
  std::vector<Window> windows_;     // distinct ones
  std::vector<int> layer_window_;   // [layers] index into windows_
};

}  // namespace sluice
