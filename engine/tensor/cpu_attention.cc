// CpuBackend: rotation, cache writes and paged attention.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/tensor/cpu_backend.h"
#include "engine/tensor/cpu_backend_inl.h"

namespace sluice {
namespace {

constexpr int64_t kSmallFloats = 8 << 10;
constexpr int64_t kSmallScores = 64 << 10;  // multiply-adds of attention that one thread just does
// And those whose parts one thread merges: a part of 1024 tokens leaves as many floats as its rows
// have values.
constexpr int64_t kSmallMergeScores = int64_t{16 << 10} * cpu::kAttentionPartTokens;

// Contexts are cut until every thread has about this many pieces: enough that a thread that the
// system slows down leaves its share to the others.
constexpr int kPiecesPerThread = 8;

}  // namespace

void CpuBackend::RopeCacheToken(const RopeCacheArgs& args, int token) {
  const KvLayer& kv = args.kv;
  const int dim = kv.head_dim;
  const int q_width = args.heads * dim;
  const int kv_width = kv.kv_heads * dim;
  float* q = args.q + static_cast<ptrdiff_t>(token) * q_width;
  float* k = args.k + static_cast<ptrdiff_t>(token) * kv_width;
  float* v = args.v + static_cast<ptrdiff_t>(token) * kv_width;

  const auto norm = [&](float* x, const float* weight, int heads) {
    if (weight == nullptr) return;
    if (args.norm_full_width) {
      ops_->rms_norm(x, weight, heads * dim, args.norm_eps, x);
      return;
    }
    for (int h = 0; h < heads; ++h) {
      ops_->rms_norm(x + h * dim, weight, dim, args.norm_eps, x + h * dim);
    }
  };
  norm(q, args.q_norm, args.heads);
  norm(k, args.k_norm, kv.kv_heads);

  if (args.clip > 0) {
    const auto clip = [&](float* x, int n) {
      for (int i = 0; i < n; ++i) x[i] = std::clamp(x[i], -args.clip, args.clip);
    };
    clip(q, q_width);
    clip(k, kv_width);
    clip(v, kv_width);
  }

  const ptrdiff_t row = args.positions[token] * args.rope_stride;
  for (int h = 0; h < args.heads; ++h) {
    ops_->rope(q + h * dim, args.cos + row, args.sin + row, args.rotary_dim);
  }
  for (int h = 0; h < kv.kv_heads; ++h) {
    ops_->rope(k + h * dim, args.cos + row, args.sin + row, args.rotary_dim);
  }

  const auto block = static_cast<size_t>(args.slots[token] / cpu::kKvBlockTokens);
  ops_->kv_write(kv.dtype, k, v, kv.kv_heads, dim, args.slots[token] % cpu::kKvBlockTokens,
                 static_cast<std::byte*>(kv.k) + block * kv.k_block_bytes,
                 static_cast<std::byte*>(kv.v) + block * kv.v_block_bytes);
}

void CpuBackend::RopeCache(const RopeCacheArgs& args) {
  constexpr int kRows = 16;  // neighbours write one KV block: the same worker should have them
  const int64_t width = (args.heads + 2 * args.kv.kv_heads) * args.kv.head_dim;
  const bool small = args.tokens * width <= kSmallFloats;
  ForEach((args.tokens + kRows - 1) / kRows, small, [&](Worker&, int64_t piece) {
    const int begin = static_cast<int>(piece) * kRows;
    const int end = std::min(args.tokens, begin + kRows);
    for (int t = begin; t < end; ++t) RopeCacheToken(args, t);
  });
}

cpu::AttentionArgs CpuBackend::KernelArgs(const PagedAttentionArgs& args,
                                          const AttentionPiece& piece) const {
  const KvLayer& kv = args.kv;
  const AttentionGroup& group = args.groups[piece.group];
  const ptrdiff_t head_offset =
      static_cast<ptrdiff_t>(piece.kv_head) * (args.heads / kv.kv_heads) * kv.head_dim;
  return {.kv_dtype = kv.dtype,
          .k_cache = kv.k,
          .v_cache = kv.v,
          .k_block_bytes = kv.k_block_bytes,
          .v_block_bytes = kv.v_block_bytes,
          .blocks = group.blocks,
          .head_dim = kv.head_dim,
          .kv_head = piece.kv_head,
          .rows = group.rows,
          .q = args.q + head_offset,
          .out = args.out + head_offset,
          .q_offsets = group.offsets,
          .first_visible = group.first_visible,
          .context = group.context,
          .scale = args.scale,
          .softcap = 0,
          .sink_logit = 0,
          .has_sink = false,
          .partials = piece.partials,
          .parts = cpu::AttentionParts(group.context[group.rows - 1]),
          .part_begin = piece.begin,
          .part_end = piece.end};
}

bool CpuBackend::CutContexts(const PagedAttentionArgs& args) {
  const KvLayer& kv = args.kv;
  const size_t partial_floats = cpu::AttentionPartialFloats(kv.head_dim);
  size_t floats = 0;
  int64_t parts = 0;
  for (const AttentionGroup& group : args.groups) {
    const int group_parts = cpu::AttentionParts(group.context[group.rows - 1]);
    floats += partial_floats * static_cast<size_t>(group.rows) * static_cast<size_t>(group_parts) *
              static_cast<size_t>(kv.kv_heads);
    parts += (group_parts - group.first_visible[0] / cpu::kAttentionPartTokens) * kv.kv_heads;
  }
  if (floats * sizeof(float) > partials_.bytes()) return false;
  const int step = static_cast<int>(std::max<int64_t>(1, parts / (kPiecesPerThread * threads())));
  pieces_.clear();
  merges_.clear();
  float* partials = partials_.as<float>();
  for (size_t g = 0; g < args.groups.size(); ++g) {
    const AttentionGroup& group = args.groups[g];
    const int first = group.first_visible[0] / cpu::kAttentionPartTokens;
    const int end = cpu::AttentionParts(group.context[group.rows - 1]);
    for (int head = 0; head < kv.kv_heads; ++head) {
      merges_.push_back({static_cast<int>(g), head, first, end, partials});
      for (int begin = first; begin < end; begin += step) {
        pieces_.push_back(
            {static_cast<int>(g), head, begin, std::min(end, begin + step), partials});
      }
      partials += partial_floats * static_cast<size_t>(group.rows) * static_cast<size_t>(end);
    }
  }
  return true;
}

// Work is cut by sequence chunk and kv head. Where that leaves too few pieces and contexts are
// long, the contexts are cut as well; that does not change results (cpu::AttentionArgs).
void CpuBackend::Attention(const PagedAttentionArgs& args) {
  const KvLayer& kv = args.kv;
  SLUICE_CHECK(kv.kv_heads > 0 && args.heads % kv.kv_heads == 0);
  int64_t scores = 0;
  int longest = 0;
  for (const AttentionGroup& group : args.groups) {
    const int last = group.rows - 1;
    longest = std::max(longest, group.context[last] - group.first_visible[last]);
    scores += static_cast<int64_t>(group.rows) * (group.context[last] - group.first_visible[last]) *
              kv.head_dim * kv.kv_heads;
  }
  const auto items = static_cast<int64_t>(args.groups.size()) * kv.kv_heads;
  if (threads() > 1 && items < int64_t{kPiecesPerThread} * threads() &&
      longest > cpu::kAttentionPartTokens && CutContexts(args)) {
    ForEach(static_cast<int64_t>(pieces_.size()), false, [&](Worker&, int64_t i) {
      ops_->attention(KernelArgs(args, pieces_[static_cast<size_t>(i)]));
    });
    ForEach(static_cast<int64_t>(merges_.size()), scores <= kSmallMergeScores,
            [&](Worker&, int64_t i) {
              ops_->merge_attention(KernelArgs(args, merges_[static_cast<size_t>(i)]));
            });
    return;
  }
  // Later groups of a chunk see more context: they go first, so that no worker ends with the
  // longest.
  ForEach(items, scores <= kSmallScores, [&](Worker&, int64_t item) {
    const int64_t reversed = items - 1 - item;
    ops_->attention(KernelArgs(args, {.group = static_cast<int>(reversed / kv.kv_heads),
                                      .kv_head = static_cast<int>(reversed % kv.kv_heads),
                                      .begin = 0,
                                      .end = 0,
                                      .partials = nullptr}));
  });
}

}  // namespace sluice
