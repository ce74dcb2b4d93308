// Attention of query rows over a paged K/V cache (layout in ops.h), one kv head, one thread.
//
// A row walks its context in spans of kSpanBlocks blocks that start at absolute positions. Per
// span: scores (lanes are keys, each lane sums over head_dim upwards), then one step of the online
// softmax (Milakov and Gimelshein 2018), then the weighted sum of V (lanes are head_dim, each sums
// over tokens upwards). Nothing in that order depends on other rows, so a row's result is the same
// in any company. Up to kGroupRows rows go over a span together and share its loads.
//
// Parts of the context (ops.h) start afresh and are merged in order by MergePart, the one body for
// rows done in one call and for parts done apart.
//
// Masked slots may hold anything: their scores are replaced before use, and their V is never
// touched. Scratch is on the stack (about 60 KB).
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
static_assert(kAttentionPartTokens % kSpanTokens == 0);
// Prefetch hint. A span does not fit L1, and L1 tracks too few misses to stream from memory (on Zen
// 4 the hint is worth half as much bandwidth again).
constexpr int kIntoL2 = 2;
constexpr float kLog2E = 1.44269504f;

// Rows are handled 16 at a time where one value per row is enough: a Vec of rows.
static_assert(kGroupRows == 16);

struct AttentionScratch {
  alignas(64) float q[kGroupRows][kMaxHeadDim];  // scaled queries
  alignas(64) float out[kGroupRows][kMaxHeadDim];
  alignas(64) float p[kGroupRows][kSpanTokens];  // scores in units of ln 2, then their exponentials
  alignas(64) float top[kGroupRows];             // running maximum of the scores
  alignas(64) float span_top[kGroupRows];        // of the current span
  alignas(64) float rescale[kGroupRows];         // what a new maximum makes of earlier sums
  Vec total[kGroupRows];                         // running sum of exponentials, by token mod 16
  alignas(64) float merged[kGroupRows][kMaxHeadDim];  // of earlier parts: out, top and total
  float merged_top[kGroupRows];
  float merged_total[kGroupRows];  // 0 before a row's first part
  int begin[kGroupRows];           // visible tokens of the current span, relative to its start
  int end[kGroupRows];
};

template <class T>
struct Span {
  const T* k[kSpanBlocks];
  const T* v[kSpanBlocks];
  const T* next_k[kSpanBlocks];
  int blocks;
  int head_dim;
};

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

// Hides a row's invisible tokens in the KV blocks that it sees in part, and finds the maximum of
// those that it sees.
SLUICE_INLINE float SpanTop(const AttentionArgs& args, float* p, int begin, int end) {
  const float kMinusInfinity = -__builtin_inff();
  const int first = begin / kKvBlockTokens;
  const int last = (end - 1) / kKvBlockTokens;
  if (args.softcap != 0.0f) {
    const Vec over = Set(1.0f / args.softcap);
    const Vec cap = Set(args.softcap * kLog2E);
    for (int b = first; b <= last; ++b) {
      float* block = p + b * kKvBlockTokens;
      Store(block, Mul(cap, Tanh(Mul(Load(block), over))));
    }
  }
  if (begin % kKvBlockTokens != 0) {
    float* block = p + first * kKvBlockTokens;
    Store(block, KeepLanes(Load(block), begin % kKvBlockTokens, 16, kMinusInfinity));
  }
  if (end % kKvBlockTokens != 0) {
    float* block = p + last * kKvBlockTokens;
    Store(block, KeepLanes(Load(block), 0, end % kKvBlockTokens, kMinusInfinity));
  }
  Vec top = Load(p + first * kKvBlockTokens);
  for (int b = first + 1; b <= last; ++b) top = Max(Load(p + b * kKvBlockTokens), top);
  return MaxLanes(top);
}

// One step of the online softmax for all rows: scores become exponentials against the new maximum,
// and what was summed so far is rescaled to it. What lies before and after a row's visible tokens
// in a KV block that it sees in part becomes next to nothing (2^-126) in its sum.
SLUICE_INLINE void SoftmaxStep(const AttentionArgs& args, AttentionScratch& s, int rows) {
  for (int r = 0; r < rows; ++r) {
    s.span_top[r] = s.begin[r] < s.end[r] ? SpanTop(args, s.p[r], s.begin[r], s.end[r]) : s.top[r];
  }
  const Vec old_top = Load(s.top);
  const Vec new_top = Max(Load(s.span_top), old_top);
  Store(s.top, new_top);
  Store(s.rescale, Exp2OfNegative(Sub(old_top, new_top)));
  for (int r = 0; r < rows; ++r) {
    if (s.begin[r] >= s.end[r]) continue;
    const Vec rescale = Set(s.rescale[r]);
    for (int d = 0; d < args.head_dim; d += 16) {
      Store(s.out[r] + d, Mul(Load(s.out[r] + d), rescale));
    }
    const Vec shift = Set(s.top[r]);
    Vec total = Mul(s.total[r], rescale);
    const int last = (s.end[r] - 1) / kKvBlockTokens;
    float* p = s.p[r];
    for (int b = s.begin[r] / kKvBlockTokens; b <= last; ++b) {
      const Vec e = Exp2OfNegative(Sub(Load(p + b * kKvBlockTokens), shift));
      total = Add(total, e);
      Store(p + b * kKvBlockTokens, e);
    }
    s.total[r] = total;
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

// As AttentionPartialFloats of ops.h, which may not be called from here (isa_macros.h).
SLUICE_INLINE size_t AttentionPartialFloatsHere(int head_dim) {
  return (static_cast<size_t>(head_dim) + 15) / 16 * 16 + 16;
}

// Adds a part to the sums of the parts before it; total == 0 says that there are none. Never
// inlined: one body, so that every caller rounds alike.
__attribute__((noinline)) void MergePart(const float* part, float part_top, float part_total,
                                         int head_dim, float* out, float* top, float* total) {
  if (*total == 0.0f) {
    for (int d = 0; d < head_dim; d += 16) Store(out + d, Load(part + d));
    *top = part_top;
    *total = part_total;
    return;
  }
  const float new_top = part_top > *top ? part_top : *top;
  const Vec old_scale = Exp2OfNegative(Set(*top - new_top));
  const Vec part_scale = Exp2OfNegative(Set(part_top - new_top));
  for (int d = 0; d < head_dim; d += 16) {
    Store(out + d, Fma(Load(part + d), part_scale, Mul(Load(out + d), old_scale)));
  }
  *top = new_top;
  *total = MaxLanes(Fma(Set(part_total), part_scale, Mul(Set(*total), old_scale)));
}

// Normalizes a row's sums and writes its output.
__attribute__((noinline)) void FinishRow(const AttentionArgs& args, const float* sums, float top,
                                         float total, float* out) {
  float out_scale = 1.0f;
  if (args.has_sink) {
    const float sink = args.sink_logit * kLog2E;
    const float new_top = top > sink ? top : sink;
    out_scale = MaxLanes(Exp2OfNegative(Set(top - new_top)));
    total = total * out_scale + MaxLanes(Exp2OfNegative(Set(sink - new_top)));
  }
  const Vec factor = Set(out_scale / total);
  for (int d = 0; d < args.head_dim; d += 16) {
    const int n = args.head_dim - d < 16 ? args.head_dim - d : 16;
    StoreN(out + d, Mul(Load(sums + d), factor), n);
  }
}

// The sums of `rows` rows over tokens [begin, end), all that any of them sees of one part. K up to
// KV block `last_wanted`, which may belong to the next part, is worth a prefetch.
template <class T>
void PartOfGroup(const AttentionArgs& args, const T* k_cache, const T* v_cache, int first, int rows,
                 int begin, int end, int last_wanted, AttentionScratch& s) {
  for (int r = 0; r < rows; ++r) {
    for (int d = 0; d < args.head_dim; d += 16) Store(s.out[r] + d, Set(0.0f));
    s.total[r] = Set(0.0f);
  }
  Store(s.top, Set(-__builtin_inff()));
  Store(s.span_top, Set(-__builtin_inff()));
  const int first_live = begin / kKvBlockTokens;
  const int last_block = (end - 1) / kKvBlockTokens;
  for (int start = begin / kSpanTokens * kSpanTokens; start < end; start += kSpanTokens) {
    Span<T> span;
    span.head_dim = args.head_dim;
    const int first_block = start / kKvBlockTokens;
    const int left = last_block + 1 - first_block;
    span.blocks = left < kSpanBlocks ? left : kSpanBlocks;
    for (int b = 0; b < span.blocks; ++b) {
      // Blocks that lie wholly before the window may be gone: read a live one in their place.
      const int block = first_block + b < first_live ? first_live : first_block + b;
      const int next = block + kSpanBlocks <= last_wanted ? block + kSpanBlocks : last_wanted;
      const size_t physical = static_cast<size_t>(args.blocks[block]);
      span.k[b] = k_cache + physical * args.k_block_stride;
      span.v[b] = v_cache + physical * args.v_block_stride;
      span.next_k[b] = k_cache + static_cast<size_t>(args.blocks[next]) * args.k_block_stride;
    }
    AllRows<T>(span, s, rows, false);
    for (int r = 0; r < rows; ++r) {
      const int row_begin = args.first_visible[first + r] - start;
      const int row_end = args.context[first + r] - start;
      s.begin[r] = row_begin < 0 ? 0 : row_begin;
      s.end[r] = row_end < kSpanTokens ? row_end : kSpanTokens;
      if (s.begin[r] >= s.end[r]) s.begin[r] = s.end[r] = 0;
    }
    SoftmaxStep(args, s, rows);
    AllRows<T>(span, s, rows, true);
  }
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
  // The softmax works in powers of two. A softcap needs the score itself first.
  const float scale = args.softcap != 0.0f ? args.scale : args.scale * kLog2E;
  int begin = args.first_visible[first];
  int end = args.context[first];
  for (int r = 0; r < rows; ++r) {
    begin = args.first_visible[first + r] < begin ? args.first_visible[first + r] : begin;
    end = args.context[first + r] > end ? args.context[first + r] : end;
    const float* q = args.q + args.q_offsets[first + r];
    for (int d = 0; d < head_dim; d += 16) {
      const int n = head_dim - d < 16 ? head_dim - d : 16;
      Store(s.q[r] + d, Mul(LoadN(q + d, n), Set(scale)));
    }
    s.merged_total[r] = 0.0f;
  }
  if (args.partials != nullptr) {
    const int parts_begin = args.part_begin * kAttentionPartTokens;
    const int parts_end = args.part_end * kAttentionPartTokens;
    begin = parts_begin > begin ? parts_begin : begin;
    end = parts_end < end ? parts_end : end;
  }
  while (begin < end) {
    const int part = begin / kAttentionPartTokens;
    const int part_start = part * kAttentionPartTokens;
    const int part_end =
        part_start + kAttentionPartTokens < end ? part_start + kAttentionPartTokens : end;
    PartOfGroup<T>(args, k_cache, v_cache, first, rows, begin, part_end, (end - 1) / kKvBlockTokens,
                   s);
    for (int r = 0; r < rows; ++r) {
      const int row_begin = args.first_visible[first + r];
      if (args.context[first + r] <= part_start || row_begin >= part_end) continue;
      const float total = SumLanes(s.total[r]);
      if (args.partials == nullptr) {
        MergePart(s.out[r], s.top[r], total, head_dim, s.merged[r], &s.merged_top[r],
                  &s.merged_total[r]);
        continue;
      }
      const size_t index = static_cast<size_t>(first + r) * static_cast<size_t>(args.parts) +
                           static_cast<size_t>(part);
      const size_t floats = AttentionPartialFloatsHere(head_dim);
      float* partial = args.partials + index * floats;
      for (int d = 0; d < head_dim; d += 16) Store(partial + d, Load(s.out[r] + d));
      partial[floats - 16] = s.top[r];
      partial[floats - 15] = total;
    }
    begin = part_end;
  }
  if (args.partials != nullptr) return;
  for (int r = 0; r < rows; ++r) {
    FinishRow(args, s.merged[r], s.merged_top[r], s.merged_total[r],
              args.out + args.q_offsets[first + r]);
  }
}

void MergeAttention(const AttentionArgs& args) {
  alignas(64) float sums[kMaxHeadDim];
  const size_t floats = AttentionPartialFloatsHere(args.head_dim);
  for (int r = 0; r < args.rows; ++r) {
    float top = 0.0f;
    float total = 0.0f;
    const int last = (args.context[r] - 1) / kAttentionPartTokens;
    for (int part = args.first_visible[r] / kAttentionPartTokens; part <= last; ++part) {
      const size_t index =
          static_cast<size_t>(r) * static_cast<size_t>(args.parts) + static_cast<size_t>(part);
      const float* partial = args.partials + index * floats;
      MergePart(partial, partial[floats - 16], partial[floats - 15], args.head_dim, sums, &top,
                &total);
    }
    FinishRow(args, sums, top, total, args.out + args.q_offsets[r]);
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
