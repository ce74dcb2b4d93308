// Spans of keys in a cache of F32, F16 or BF16: scores (lanes are keys, each sums over head_dim
// upwards) and the weighted sum of V (lanes are head_dim, each sums over tokens upwards). See
// attention-inl.h.
//
// Masked slots may hold anything: their scores are replaced before use, and their V is never
// touched. Bound: for one or few rows the bytes of K and V (V is prefetched while K is read, and
// the next span's K while V is read); for many rows 2 * head_dim multiply-accumulates per row and
// key.
#pragma once

#include "kernels/cpu/attention_span-inl.h"

SLUICE_BEGIN_ISA

// Whether the i-th of consecutive Vecs of T begins a cache line of 64 bytes.
template <class T>
SLUICE_INLINE bool NewLine(int i) {
  return i % (64 / (16 * static_cast<int>(sizeof(T)))) == 0;
}

// Scores of R rows for B blocks from `block` on.
template <class T, int R, int B>
void Scores(const Span<T>& span, int block, AttentionScratch& s, int row, bool prefetch) {
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
      if (prefetch && NewLine<T>(d)) {
        __builtin_prefetch(span.v[block + b] + d * kKvBlockTokens, 0, kIntoL2);
      }
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
void SpanScores(const Span<T>& span, AttentionScratch& s, int row, bool prefetch) {
  constexpr int B = kAttentionAccumulators / R < 1   ? 1
                    : kAttentionAccumulators / R > 4 ? 4
                                                     : kAttentionAccumulators / R;
  int block = 0;
  for (; block + B <= span.blocks; block += B) Scores<T, R, B>(span, block, s, row, prefetch);
  if constexpr (B > 1) {
    for (; block < span.blocks; ++block) Scores<T, R, 1>(span, block, s, row, prefetch);
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
        if (prefetch && NewLine<T>(i)) {
          __builtin_prefetch(span.next_k[block] + offset + 16 * i, 0, kIntoL2);
        }
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

// Tokens [begin, end) of the span for those of R rows that see them. Rows that see the same tokens
// go together (heads of one token do), so halves that differ are taken apart.
template <class T, int R>
void EdgeValues(const Span<T>& span, AttentionScratch& s, int row, int begin, int end) {
  if (begin >= end) return;
  int lowest[2] = {s.begin[row], s.end[row]};
  int highest[2] = {s.begin[row], s.end[row]};
  for (int r = 1; r < R; ++r) {
    const int from = s.begin[row + r], to = s.end[row + r];
    lowest[0] = from < lowest[0] ? from : lowest[0];
    highest[0] = from > highest[0] ? from : highest[0];
    lowest[1] = to < lowest[1] ? to : lowest[1];
    highest[1] = to > highest[1] ? to : highest[1];
  }
  begin = lowest[0] > begin ? lowest[0] : begin;
  end = highest[1] < end ? highest[1] : end;
  if (begin >= end) return;
  if (highest[0] <= begin && lowest[1] >= end) {
    return TokenRange<T, R>(span, s, row, begin, end, false);
  }
  if constexpr (R > 1) {
    EdgeValues<T, R / 2>(span, s, row, begin, end);
    EdgeValues<T, R / 2>(span, s, row + R / 2, begin, end);
  }
}

// The tokens that all R rows see go together.
template <class T, int R>
void SpanValues(const Span<T>& span, AttentionScratch& s, int row, bool prefetch) {
  int begin = s.begin[row];
  int end = s.end[row];
  for (int r = 1; r < R; ++r) {
    begin = s.begin[row + r] > begin ? s.begin[row + r] : begin;
    end = s.end[row + r] < end ? s.end[row + r] : end;
  }
  if (begin >= end) return EdgeValues<T, R>(span, s, row, 0, kSpanTokens);
  EdgeValues<T, R>(span, s, row, 0, begin);
  TokenRange<T, R>(span, s, row, begin, end, prefetch);
  EdgeValues<T, R>(span, s, row, end, kSpanTokens);
}

template <class T, int R>
SLUICE_INLINE int RowsOf(const Span<T>& span, AttentionScratch& s, int row, int rows, bool values) {
  for (; row + R <= rows; row += R) {
    if (values) {
      SpanValues<T, R>(span, s, row, row == 0);
    } else {
      SpanScores<T, R>(span, s, row, row == 0);
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

SLUICE_END_ISA
