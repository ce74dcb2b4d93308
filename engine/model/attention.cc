#include "engine/model/attention.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice {
namespace {

constexpr int kRunRows = 64;  // query rows that share a pass over K and V

}  // namespace

AttentionBatch::AttentionBatch(const ModelConfig& config, int max_batch_tokens, int max_sequences)
    : head_group_(config.heads / config.kv_heads),
      head_dim_(config.head_dim),
      q_stride_(static_cast<ptrdiff_t>(config.heads) * config.head_dim),
      positions_(max_batch_tokens),
      slots_(max_batch_tokens),
      context_(static_cast<size_t>(max_batch_tokens) * head_group_),
      offsets_(static_cast<size_t>(max_batch_tokens) * head_group_) {
  const int run_tokens = std::max(1, kRunRows / head_group_);
  for (const LayerConfig& layer : config.layers) {
    const auto same = [&](const Window& window) { return window.size == layer.sliding_window; };
    const auto found = std::find_if(windows_.begin(), windows_.end(), same);
    layer_window_.push_back(static_cast<int>(found - windows_.begin()));
    if (found != windows_.end()) continue;
    Window& window = windows_.emplace_back();
    window.size = layer.sliding_window;
    window.first_visible.resize(context_.size());
    window.groups.reserve(max_batch_tokens / run_tokens + max_sequences);
  }
}

void AttentionBatch::Build(std::span<const SequenceChunk> chunks) {
  const int run_tokens = std::max(1, kRunRows / head_group_);
  for (Window& window : windows_) window.groups.clear();
  int token = 0;
  for (const SequenceChunk& chunk : chunks) {
    const auto count = static_cast<int>(chunk.tokens.size());
    SLUICE_CHECK(count >= 1 && chunk.position >= 0 &&
                 token + count <= static_cast<int>(positions_.size()));
    SLUICE_CHECK(static_cast<int64_t>(chunk.kv_blocks.size()) * kKvBlockTokens >=
                     int64_t{chunk.position} + count,
                 "the block table must cover the chunk");
    for (int i = 0; i < count; ++i) {
      const int position = chunk.position + i;
      positions_[token + i] = position;
      slots_[token + i] =
          chunk.kv_blocks[position / kKvBlockTokens] * kKvBlockTokens + position % kKvBlockTokens;
      const size_t first_row = static_cast<size_t>(token + i) * head_group_;
      for (int head = 0; head < head_group_; ++head) {
        context_[first_row + head] = position + 1;
        offsets_[first_row + head] = static_cast<ptrdiff_t>(token + i) * q_stride_ +
                                     static_cast<ptrdiff_t>(head) * head_dim_;
        for (Window& window : windows_) {
          window.first_visible[first_row + head] =
              window.size > 0 ? std::max(0, position + 1 - window.size) : 0;
        }
      }
    }
    for (int begin = 0; begin < count; begin += run_tokens) {
      const int rows = std::min(run_tokens, count - begin) * head_group_;
      const size_t first_row = static_cast<size_t>(token + begin) * head_group_;
      for (Window& window : windows_) {
        window.groups.push_back({.blocks = chunk.kv_blocks.data(),
                                 .rows = rows,
                                 .offsets = offsets_.data() + first_row,
                                 .first_visible = window.first_visible.data() + first_row,
                                 .context = context_.data() + first_row});
      }
    }
    token += count;
  }
  tokens_ = token;
}

}  // namespace sluice
