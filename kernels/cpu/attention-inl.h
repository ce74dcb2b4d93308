// Attention of query rows over a paged K/V cache (layout in ops.h), one kv head, one thread.
//
// A row walks its context in spans of kSpanBlocks blocks that start at absolute positions. Per
// span: scores (lanes are keys, each lane sums over head_dim upwards), then one step of the online
// softmax (Milakov and Gimelshein 2018), then the weighted sum of V (lanes are head_dim, each sums
// over tokens upwards). Nothing in that order depends on other rows, so a row's result is the same
// in any company. Up to kGroupRows rows go over a span together and share its loads.
//
// Masked slots may hold anything: their scores are replaced before use, and their V is never
// touched. Scratch is on the stack (about 45 KB).
//
// Bound: for one or few rows the bytes of K and V (V is prefetched while K is read, and the next
// span's K while V is read); for many rows 2 * head_dim multiply-accumulates per row and key.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"

SLUICE_BEGIN_ISA

constexpr int kGroupRows = 16;
constexpr int kSpanBlocks = 8;
constexpr int kSpanTokens = kSpanBlocks * kKvBlockTokens;
constexpr int kMaxHeadDim = 256;
// Prefetch hint. A span does not fit L1, and L1 tracks too few misses to stream from memory (on Zen
// 4 the hint is worth half as much bandwidth again).
constexpr int kIntoL2 = 2;

struct RowState {
  float top;  // running maximum of the scores
  float rescale;
  int begin;  // visible tokens of the current span, relative to its start
  int end;
  Vec total;  // running sum of exponentials, by token mod 16
};

struct AttentionScratch {
  alignas(64) float q[kGroupRows][kMaxHeadDim];  // scaled queries
  alignas(64) float out[kGroupRows][kMaxHeadDim];
  alignas(64) float p[kGroupRows][kSpanTokens];  // scores, then their exponentials
  RowState rows[kGroupRows];
};

template <class T>
struct Span {
  const T* k[kSpanBlocks];
  const T* v[kSpanBlocks];
  const T* next_k[kSpanBlocks];
  int blocks;
  int head_dim;
};

// Scores of R rows for B blocks from `block` on.
template <class T, int R, int B>
void Scores(const Span<T>& span, int block, AttentionScratch& s, int row) {
  Vec sum[R][B];
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) sum[r][b] = Set(0.0f);
  }
  const float* q = s.q[row];
  for (int d = 0; d < span.head_dim; ++d) {
    Vec k[B];
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) {
      __builtin_prefetch(span.v[block + b] + d * kKvBlockTokens, 0, kIntoL2);
      k[b] = Load(span.k[block + b] + d * kKvBlockTokens);
    }
    SLUICE_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      const Vec x = Set(q[r * kMaxHeadDim + d]);
      SLUICE_UNROLL(8)
      for (int b = 0; b < B; ++b) sum[r][b] = Fma(k[b], x, sum[r][b]);
    }
  }
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) Store(s.p[row + r] + (block + b) * kKvBlockTokens, sum[r][b]);
  }
}

template <class T, int R>
void SpanScores(const Span<T>& span, AttentionScratch& s, int row) {
  constexpr int B = kAttentionAccumulators / R < 1   ? 1
                    : kAttentionAccumulators / R > 4 ? 4
                                                     : kAttentionAccumulators / R;
  int block = 0;
  for (; block + B <= span.blocks; block += B) Scores<T, R, B>(span, block, s, row);
  if constexpr (B > 1) {
    for (; block < span.blocks; ++block) Scores<T, R, 1>(span, block, s, row);
  }
}

// Turns the row's scores into exponentials against the new maximum; hidden tokens become 0.
SLUICE_INLINE void SoftmaxStep(const AttentionArgs& args, int blocks, float* p, RowState& row) {
  const float kMinusInfinity = -__builtin_inff();
  Vec top = Set(kMinusInfinity);
  for (int b = 0; b < blocks; ++b) {
    const int begin = row.begin - b * kKvBlockTokens;
    const int end = row.end - b * kKvBlockTokens;
    Vec score = Load(p + b * kKvBlockTokens);
    if (args.softcap != 0.0f) {
      score = Mul(Set(args.softcap), Tanh(Div(score, Set(args.softcap))));
    }
    score = KeepLanes(score,
                      begin < 0    ? 0
                      : begin > 16 ? 16
                                   : begin,
                      end < 0    ? 0
                      : end > 16 ? 16
                                 : end,
                      kMinusInfinity);
    top = Max(score, top);
    Store(p + b * kKvBlockTokens, score);
  }
  const float span_top = MaxLanes(top);
  const float new_top = span_top > row.top ? span_top : row.top;
  const Vec shift = Set(new_top);
  Vec rescale = ExpOrZero(Sub(Set(row.top), shift));
  row.rescale = MaxLanes(rescale);
  row.top = new_top;
  row.total = Mul(row.total, rescale);
  for (int b = 0; b < blocks; ++b) {
    const Vec e = ExpOrZero(Sub(Load(p + b * kKvBlockTokens), shift));
    row.total = Add(row.total, e);
    Store(p + b * kKvBlockTokens, e);
  }
}

// out[row + r][d ...] += p V over tokens [begin, end) of the span, for R rows and D Vecs of
// head_dim. kLanes is 16; or 8 for the last half Vec of a head_dim that is an odd multiple of 8; or
// 0 for what is left of any other.
template <class T, int R, int D, int kLanes>
void WeightedValues(const Span<T>& span, AttentionScratch& s, int row, int d, int begin, int end,
                    bool prefetch) {
  Vec sum[R][D];
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SLUICE_UNROLL(16)
    for (int i = 0; i < D; ++i) sum[r][i] = Load(s.out[row + r] + d + 16 * i);
  }
  const float* p = s.p[row];
  for (int token = begin; token < end;) {
    const int block = token / kKvBlockTokens;
    const int block_end = (block + 1) * kKvBlockTokens < end ? (block + 1) * kKvBlockTokens : end;
    ptrdiff_t offset = static_cast<ptrdiff_t>(token % kKvBlockTokens) * span.head_dim + d;
    for (; token < block_end; ++token, offset += span.head_dim) {
      Vec v[D];
      SLUICE_UNROLL(16)
      for (int i = 0; i < D; ++i) {
        const T* from = span.v[block] + offset + 16 * i;
        if (prefetch) __builtin_prefetch(span.next_k[block] + offset + 16 * i, 0, kIntoL2);
        if constexpr (kLanes == 16) {
          v[i] = Load(from);
        } else {
          v[i] = LoadN(from, kLanes == 8 ? 8 : span.head_dim - d);
        }
      }
      SLUICE_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        const Vec weight = Set(p[r * kSpanTokens + token]);
        SLUICE_UNROLL(16)
        for (int i = 0; i < D; ++i) sum[r][i] = Fma(v[i], weight, sum[r][i]);
      }
    }
  }
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SLUICE_UNROLL(16)
    for (int i = 0; i < D; ++i) Store(s.out[row + r] + d + 16 * i, sum[r][i]);
  }
}

template <class T, int R>
void TokenRange(const Span<T>& span, AttentionScratch& s, int row, int begin, int end,
                bool prefetch) {
  constexpr int D = kAttentionAccumulators / R < 1 ? 1 : kAttentionAccumulators / R;
  constexpr int kVecs = D > 8 ? 8 : D;
  if (begin >= end) return;
  int d = 0;
  for (; d + 16 * kVecs <= span.head_dim; d += 16 * kVecs) {
    WeightedValues<T, R, kVecs, 16>(span, s, row, d, begin, end, prefetch);
  }
  if constexpr (kVecs > 4) {
    for (; d + 64 <= span.head_dim; d += 64) {
      WeightedValues<T, R, 4, 16>(span, s, row, d, begin, end, prefetch);
    }
  }
  if constexpr (kVecs > 2) {
    for (; d + 32 <= span.head_dim; d += 32) {
      WeightedValues<T, R, 2, 16>(span, s, row, d, begin, end, prefetch);
    }
  }
  if constexpr (kVecs > 1) {
    for (; d + 16 <= span.head_dim; d += 16) {
      WeightedValues<T, R, 1, 16>(span, s, row, d, begin, end, prefetch);
    }
  }
  if (d + 8 == span.head_dim) {
    WeightedValues<T, R, 1, 8>(span, s, row, d, begin, end, prefetch);
  } else if (d < span.head_dim) {
    WeightedValues<T, R, 1, 0>(span, s, row, d, begin, end, prefetch);
  }
}

// The tokens that all R rows see go together; those at either end that only some see, row by row.
template <class T, int R>
void SpanValues(const Span<T>& span, AttentionScratch& s, int row, bool prefetch) {
  int begin = s.rows[row].begin;
  int end = s.rows[row].end;
  for (int r = 1; r < R; ++r) {
    const RowState& other = s.rows[row + r];
    begin = other.begin > begin ? other.begin : begin;
    end = other.end < end ? other.end : end;
  }
  if (begin >= end) {
    for (int r = 0; r < R; ++r) {
      TokenRange<T, 1>(span, s, row + r, s.rows[row + r].begin, s.rows[row + r].end, prefetch);
    }
    return;
  }
  for (int r = 0; r < R; ++r) {
    TokenRange<T, 1>(span, s, row + r, s.rows[row + r].begin, begin, false);
  }
  TokenRange<T, R>(span, s, row, begin, end, prefetch);
  for (int r = 0; r < R; ++r) {
    TokenRange<T, 1>(span, s, row + r, end, s.rows[row + r].end, false);
  }
}

template <class T, int R>
SLUICE_INLINE int RowsOf(const Span<T>& span, AttentionScratch& s, int row, int rows, bool values) {
  for (; row + R <= rows; row += R) {
    if (values) {
      SpanValues<T, R>(span, s, row, row == 0);
    } else {
      SpanScores<T, R>(span, s, row);
    }
  }
  return row;
}
template <class T>
void AllRows(const Span<T>& span, AttentionScratch& s, int rows, bool values) {
  int row = 0;
  if constexpr (kAttentionAccumulators >= 16) row = RowsOf<T, 8>(span, s, row, rows, values);
  row = RowsOf<T, 4>(span, s, row, rows, values);
  row = RowsOf<T, 2>(span, s, row, rows, values);
  RowsOf<T, 1>(span, s, row, rows, values);
}

SLUICE_INLINE void RescaleRow(float* out, int head_dim, float scale) {
  for (int d = 0; d < head_dim; d += 16) Store(out + d, Mul(Load(out + d), Set(scale)));
}

// Rows [first, first + rows), rows <= kGroupRows.
template <class T>
void AttentionGroup(const AttentionArgs& args, int first, int rows) {
  AttentionScratch s;
  const int head_dim = args.head_dim;
  const size_t head_offset =
      static_cast<size_t>(args.kv_head) * static_cast<size_t>(head_dim) * kKvBlockTokens;
  const T* k_cache = static_cast<const T*>(args.k_cache) + head_offset;
  const T* v_cache = static_cast<const T*>(args.v_cache) + head_offset;
  int begin = args.first_visible[first];
  int end = args.context[first];
  for (int r = 0; r < rows; ++r) {
    begin = args.first_visible[first + r] < begin ? args.first_visible[first + r] : begin;
    end = args.context[first + r] > end ? args.context[first + r] : end;
    const float* q = args.q + args.q_offsets[first + r];
    for (int d = 0; d < head_dim; d += 16) {
      const int n = head_dim - d < 16 ? head_dim - d : 16;
      Store(s.q[r] + d, Mul(LoadN(q + d, n), Set(args.scale)));
      Store(s.out[r] + d, Set(0.0f));
    }
    s.rows[r].top = -__builtin_inff();
    s.rows[r].total = Set(0.0f);
  }

  const int first_live = begin / kKvBlockTokens;
  const int last_block = (end - 1) / kKvBlockTokens;
  for (int start = begin / kSpanTokens * kSpanTokens; start < end; start += kSpanTokens) {
    Span<T> span;
    span.head_dim = head_dim;
    const int first_block = start / kKvBlockTokens;
    const int left = last_block + 1 - first_block;
    span.blocks = left < kSpanBlocks ? left : kSpanBlocks;
    for (int b = 0; b < span.blocks; ++b) {
      // Blocks that lie wholly before the window may be gone: read a live one in their place.
      const int block = first_block + b < first_live ? first_live : first_block + b;
      const int next = block + kSpanBlocks <= last_block ? block + kSpanBlocks : last_block;
      const size_t physical = static_cast<size_t>(args.blocks[block]);
      span.k[b] = k_cache + physical * args.k_block_stride;
      span.v[b] = v_cache + physical * args.v_block_stride;
      span.next_k[b] = k_cache + static_cast<size_t>(args.blocks[next]) * args.k_block_stride;
    }
    AllRows<T>(span, s, rows, false);
    for (int r = 0; r < rows; ++r) {
      RowState& row = s.rows[r];
      const int row_begin = args.first_visible[first + r] - start;
      const int row_end = args.context[first + r] - start;
      row.begin = row_begin < 0 ? 0 : row_begin;
      row.end = row_end < kSpanTokens ? row_end : kSpanTokens;
      if (row.begin >= row.end) {
        row.begin = row.end = 0;
        continue;
      }
      const bool started = row.top != -__builtin_inff();
      SoftmaxStep(args, span.blocks, s.p[r], row);
      if (started && row.rescale != 1.0f) RescaleRow(s.out[r], head_dim, row.rescale);
    }
    AllRows<T>(span, s, rows, true);
  }

  for (int r = 0; r < rows; ++r) {
    RowState& row = s.rows[r];
    float total = SumLanes(row.total);
    float scale = 1.0f;
    if (args.has_sink) {
      const float top = row.top > args.sink_logit ? row.top : args.sink_logit;
      scale = MaxLanes(ExpOrZero(Set(row.top - top)));
      total = total * scale + MaxLanes(ExpOrZero(Set(args.sink_logit - top)));
    }
    const Vec factor = Set(scale / total);
    float* out = args.out + args.q_offsets[first + r];
    for (int d = 0; d < head_dim; d += 16) {
      const int n = head_dim - d < 16 ? head_dim - d : 16;
      StoreN(out + d, Mul(Load(s.out[r] + d), factor), n);
    }
  }
}

template <class T>
void AttentionAs(const AttentionArgs& args) {
  for (int row = 0; row < args.rows; row += kGroupRows) {
    const int left = args.rows - row;
    AttentionGroup<T>(args, row, left < kGroupRows ? left : kGroupRows);
  }
}
void Attention(const AttentionArgs& args) {
  switch (args.kv_dtype) {
    case DType::kF32:
      return AttentionAs<float>(args);
    case DType::kF16:
      return AttentionAs<F16>(args);
    case DType::kBF16:
      return AttentionAs<Bf16>(args);
  }
}

SLUICE_END_ISA
