// Spans of keys in a Q8 cache (kernels/common/kv_format.h), in integers. See attention-inl.h.
//
// A row's query is one scale and integers of 14 bits in two signed bytes, 128 * high + low with low
// in [-64, 64]: an 8-bit query would add as much error to the scores as the 8-bit keys. A score is
//   sum over groups of 32, upwards, of (sum of query * (code - 128)) * key scale, then query scale,
// the inner sum exact. What weighs V is, per row, span and group of 64: exponential * value scale,
// as one scale and integers in [0, 16319] in two bytes; their sum with the codes over the span is
// exact, so only the order of spans counts, as for floats.
//
// A row's masked slots get integer weight 0, whatever their bytes, and a row that sees nothing of a
// span keeps its sums untouched: a row's result is the same in any company.
//
// Bound: the bytes of K and V for few rows; for many 2 * 2 * head_dim 8-bit multiply-accumulates
// per row and key.
#pragma once

#include "kernels/common/kv_format.h"
#include "kernels/cpu/attention_span-inl.h"

SLUICE_BEGIN_ISA

// A byte of a Q8 cache.
struct Q8 {
  uint8_t byte;
};

constexpr float kQ8Levels = 16319.0f;       // 128 * 127 + 63
constexpr float kQ8Negligible = 0x1p-100f;  // weights below count as 0: their sums are at least 1
// Integers |v| <= kQ8Levels as 128 * high + low.
SLUICE_INLINE void StoreHighLow(Vec v, int8_t* high, int8_t* low) {
  const Vec top = RoundToInt(Mul(v, Set(1.0f / 128.0f)));
  StoreI8(high, top);
  StoreI8(low, Fma(top, Set(-128.0f), v));
}

SLUICE_INLINE const F16* KeyScales(const Q8* k, int head_dim) {
  return reinterpret_cast<const F16*>(k + (head_dim + 3) / 4 * 64);
}
SLUICE_INLINE const F16* ValueScales(const Q8* v, int head_dim) {
  return reinterpret_cast<const F16*>(v + (head_dim + 15) / 16 * 256);
}

// What attention to any format does first with its scaled queries; nothing for floats.
template <class T>
SLUICE_INLINE void PrepareQueries(AttentionScratch&, int, int) {}

template <>
SLUICE_INLINE void PrepareQueries<Q8>(AttentionScratch& s, int head_dim, int rows) {
  for (int r = 0; r < rows; ++r) {
    Vec top = Set(0.0f);
    Vec finite = Set(0.0f);  // stays 0 unless a value is a NaN or infinite
    for (int d = 0; d < head_dim; d += 16) {
      const Vec x = Load(s.q[r] + d);
      top = Max(Max(x, Sub(Set(0.0f), x)), top);
      finite = Fma(x, Set(0.0f), finite);
    }
    const float largest = MaxLanes(top);
    const float inverse = largest > kQ8Negligible ? kQ8Levels / largest : 0.0f;
    s.q8.q_scale[r] = largest / kQ8Levels + SumLanes(finite);
    for (int g = 0; g * kKvKeyGroup < head_dim; ++g) {
      Vec sum = Set(0.0f);
      for (int d = g * kKvKeyGroup; d < (g + 1) * kKvKeyGroup && d < head_dim; d += 16) {
        const Vec x =
            Max(Min(Mul(Load(s.q[r] + d), Set(inverse)), Set(kQ8Levels)), Set(-kQ8Levels));
        const Vec rounded = RoundToInt(x);
        sum = Add(sum, rounded);
        StoreHighLow(rounded, s.q8.q[0][r] + d, s.q8.q[1][r] + d);
      }
      s.q8.q_sum[r][g] = static_cast<int32_t>(SumLanes(sum));
    }
  }
}

// Scores of R rows for B blocks from `block` on.
template <int R, int B>
void Q8Scores(const Span<Q8>& span, int block, AttentionScratch& s, int row, bool prefetch) {
  Vec sum[R][B];
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) sum[r][b] = Set(0.0f);
  }
  const int quads = (span.head_dim + 3) / 4;
  constexpr int kGroupQuads = kKvKeyGroup / 4;
  if (prefetch) {
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) {
      __builtin_prefetch(ValueScales(span.v[block + b], span.head_dim), 0, kIntoL2);
    }
  }
  for (int g = 0; g * kGroupQuads < quads; ++g) {
    Dots<8> high[R][B], low[R][B];
    SLUICE_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      SLUICE_UNROLL(8)
      for (int b = 0; b < B; ++b) low[r][b] = CentredDots(s.q8.q_sum[row + r][g]);
    }
    const int end = (g + 1) * kGroupQuads < quads ? (g + 1) * kGroupQuads : quads;
    for (int quad = g * kGroupQuads; quad < end; ++quad) {
      Codes k[B];
      SLUICE_UNROLL(8)
      for (int b = 0; b < B; ++b) {
        if (prefetch) __builtin_prefetch(span.v[block + b] + quad * 64, 0, kIntoL2);
        k[b] = LoadCodes(&span.k[block + b][quad * 64].byte);
      }
      SLUICE_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        SLUICE_UNROLL(8)
        for (int b = 0; b < B; ++b) {
          AddDots(k[b], s.q8.q[0][row + r] + quad * 4, high[r][b]);
          AddDots(k[b], s.q8.q[1][row + r] + quad * 4, low[r][b]);
        }
      }
    }
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) {
      const Vec scale = Load(KeyScales(span.k[block + b], span.head_dim) + g * kKvBlockTokens);
      SLUICE_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        sum[r][b] = Fma(JoinDots(high[r][b], low[r][b]), scale, sum[r][b]);
      }
    }
  }
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    const Vec scale = Set(s.q8.q_scale[row + r]);
    SLUICE_UNROLL(8)
    for (int b = 0; b < B; ++b) {
      Store(s.p[row + r] + (block + b) * kKvBlockTokens, Mul(sum[r][b], scale));
    }
  }
}

// Weights of V of one row for group g: zero outside of what the row sees.
SLUICE_INLINE void Q8Weights(const Span<Q8>& span, AttentionScratch& s, int row, int g) {
  const int begin = s.begin[row], end = s.end[row];
  int8_t* high = s.q8.w[0][row];
  int8_t* low = s.q8.w[1][row];
  s.q8.w_scale[row] = 0.0f;
  s.q8.w_sum[row] = 0;
  const int first = begin / kKvBlockTokens;
  const int last = begin < end ? (end - 1) / kKvBlockTokens : -1;
  alignas(64) float w[kSpanTokens];
  Vec top = Set(0.0f);
  for (int b = first; b <= last; ++b) {
    const int at = b * kKvBlockTokens;
    const Vec scale = Load(ValueScales(span.v[b], span.head_dim) + g * kKvBlockTokens);
    Vec x = Mul(Load(s.p[row] + at), scale);
    if (at < begin || at + kKvBlockTokens > end) {
      x = KeepLanes(x, begin > at ? begin - at : 0, end - at < 16 ? end - at : 16, 0.0f);
    }
    Store(w + at, x);
    top = Max(x, top);
  }
  const float largest = MaxLanes(top);
  if (!(largest > kQ8Negligible)) {
    __builtin_memset(high, 0, kSpanTokens);
    __builtin_memset(low, 0, kSpanTokens);
    return;
  }
  const Vec inverse = Set(kQ8Levels / largest);
  Vec sum = Set(0.0f);
  for (int b = 0; b < span.blocks; ++b) {
    const int at = b * kKvBlockTokens;
    if (b < first || b > last) {
      __builtin_memset(high + at, 0, kKvBlockTokens);
      __builtin_memset(low + at, 0, kKvBlockTokens);
      continue;
    }
    const Vec rounded = RoundToInt(Min(Mul(Load(w + at), inverse), Set(kQ8Levels)));
    sum = Add(sum, rounded);
    StoreHighLow(rounded, high + at, low + at);
  }
  s.q8.w_sum[row] = static_cast<int32_t>(SumLanes(sum));
  s.q8.w_scale[row] = largest / kQ8Levels;
}

// out[row + r][d ...] += weights times V over the span, for R rows and D Vecs of head_dim.
template <int R, int D>
void Q8WeightedValues(const Span<Q8>& span, AttentionScratch& s, int row, int d, bool prefetch) {
  Dots<8> high[R][D], low[R][D];
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SLUICE_UNROLL(8)
    for (int i = 0; i < D; ++i) low[r][i] = CentredDots(s.q8.w_sum[row + r]);
  }
  const ptrdiff_t stride = static_cast<ptrdiff_t>((span.head_dim + 15) / 16) * 64;
  for (int b = 0; b < span.blocks; ++b) {
    SLUICE_UNROLL(4)
    for (int quad = 0; quad < 4; ++quad) {
      const ptrdiff_t offset = quad * stride + d * 4;
      const int token = b * kKvBlockTokens + quad * 4;
      Codes v[D];
      SLUICE_UNROLL(8)
      for (int i = 0; i < D; ++i) {
        if (prefetch) __builtin_prefetch(span.next_k[b] + offset + i * 64, 0, kIntoL2);
        v[i] = LoadCodes(&span.v[b][offset + i * 64].byte);
      }
      SLUICE_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        SLUICE_UNROLL(8)
        for (int i = 0; i < D; ++i) {
          AddDots(v[i], s.q8.w[0][row + r] + token, high[r][i]);
          AddDots(v[i], s.q8.w[1][row + r] + token, low[r][i]);
        }
      }
    }
  }
  SLUICE_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    // Adding 0 would turn a sum of -0 into 0.
    if (s.begin[row + r] >= s.end[row + r]) continue;
    const Vec scale = Set(s.q8.w_scale[row + r]);
    SLUICE_UNROLL(8)
    for (int i = 0; i < D; ++i) {
      float* out = s.out[row + r] + d + 16 * i;
      Store(out, Fma(JoinDots(high[r][i], low[r][i]), scale, Load(out)));
    }
  }
}

template <int R>
SLUICE_INLINE void Q8SpanScores(const Span<Q8>& span, AttentionScratch& s, int row, bool prefetch) {
  constexpr int kPairs = kAttentionAccumulators / 2;
  constexpr int B = kPairs / R < 1 ? 1 : kPairs / R > 4 ? 4 : kPairs / R;
  int block = 0;
  for (; block + B <= span.blocks; block += B) Q8Scores<R, B>(span, block, s, row, prefetch);
  if constexpr (B > 1) {
    for (; block < span.blocks; ++block) Q8Scores<R, 1>(span, block, s, row, prefetch);
  }
}

// V of group [begin, end) of head_dim.
template <int R>
SLUICE_INLINE void Q8SpanValues(const Span<Q8>& span, AttentionScratch& s, int row, int begin,
                                int end, bool prefetch) {
  constexpr int kPairs = kAttentionAccumulators / 2;
  constexpr int D = kPairs / R < 1 ? 1 : kPairs / R > 4 ? 4 : kPairs / R;
  int d = begin;
  for (; d + 16 * D <= end; d += 16 * D) Q8WeightedValues<R, D>(span, s, row, d, prefetch);
  for (; d < end; d += 16) Q8WeightedValues<R, 1>(span, s, row, d, prefetch);
}

template <int R>
SLUICE_INLINE int Q8RowsOf(const Span<Q8>& span, AttentionScratch& s, int row, int rows, int begin,
                           int end) {
  for (; row + R <= rows; row += R) {
    if (begin < end) {
      Q8SpanValues<R>(span, s, row, begin, end, row == 0);
    } else {
      Q8SpanScores<R>(span, s, row, row == 0);
    }
  }
  return row;
}
// Values of head_dim [begin, end), or scores when that is empty.
SLUICE_INLINE void Q8Rows(const Span<Q8>& span, AttentionScratch& s, int rows, int begin, int end) {
  int row = 0;
  if constexpr (kAttentionAccumulators >= 16) {
    row = Q8RowsOf<8>(span, s, row, rows, begin, end);
    row = Q8RowsOf<4>(span, s, row, rows, begin, end);
  }
  row = Q8RowsOf<2>(span, s, row, rows, begin, end);
  Q8RowsOf<1>(span, s, row, rows, begin, end);
}
SLUICE_INLINE void AllRows(const Span<Q8>& span, AttentionScratch& s, int rows, bool values) {
  if (!values) return Q8Rows(span, s, rows, 0, 0);
  for (int b = 0; b < span.blocks; ++b) {
    // K is longer than V by the scales of its narrower groups.
    const F16* scales = KeyScales(span.next_k[b], span.head_dim);
    __builtin_prefetch(scales, 0, kIntoL2);
    __builtin_prefetch(scales + 2 * kKvBlockTokens, 0, kIntoL2);
  }
  for (int begin = 0; begin < span.head_dim; begin += kKvValueGroup) {
    for (int r = 0; r < rows; ++r) Q8Weights(span, s, r, begin / kKvValueGroup);
    const int end = begin + kKvValueGroup < span.head_dim ? begin + kKvValueGroup : span.head_dim;
    Q8Rows(span, s, rows, begin, end);
  }
}

// Quantizes one group of n <= 64 values and returns its scale; codes are written by `put`.
template <class Put>
SLUICE_INLINE F16 QuantizeGroup(const float* x, int n, Put put) {
  Vec top = Set(0.0f);
  for (int i = 0; i < n; i += 16) {
    const Vec v = LoadN(x + i, n - i < 16 ? n - i : 16);
    top = Max(Max(v, Sub(Set(0.0f), v)), top);
  }
  F16 nearest[16], result[16];
  const float wanted = MaxLanes(top) * (1.0f / 127.0f);
  Store(nearest, Set(wanted));
  __builtin_memcpy(result, nearest, sizeof result);
  if (MaxLanes(Load(nearest)) < wanted) ++result[0].bits;
  if (result[0].bits > 0x7bff) result[0].bits = 0x7bff;  // the largest finite
  for (int i = 1; i < 16; ++i) result[i] = result[0];
  const float scale = MaxLanes(Load(result));
  const Vec inverse = Set(scale > 0.0f ? 1.0f / scale : 0.0f);
  for (int i = 0; i < n; i += 16) {
    const int left = n - i < 16 ? n - i : 16;
    const Vec v = Mul(LoadN(x + i, left), inverse);
    alignas(16) int8_t codes[16];
    StoreI8(codes, RoundToInt(Max(Min(v, Set(127.0f)), Set(-127.0f))));
    for (int j = 0; j < left; ++j) put(i + j, static_cast<uint8_t>(codes[j] + 128));
  }
  return result[0];
}

SLUICE_INLINE bool AllFinite(const float* x, int n) {
  Vec zero = Set(0.0f);
  for (int i = 0; i < n; i += 16) {
    zero = Fma(LoadN(x + i, n - i < 16 ? n - i : 16), Set(0.0f), zero);
  }
  return SumLanes(zero) == 0.0f;
}

void KvWriteQ8(const float* k, const float* v, int kv_heads, int head_dim, int slot, void* k_block,
               void* v_block, size_t k_head_bytes, size_t v_head_bytes) {
  const int padded = (head_dim + 15) / 16 * 16;
  for (int head = 0; head < kv_heads; ++head) {
    uint8_t* keys = static_cast<uint8_t*>(k_block) + static_cast<size_t>(head) * k_head_bytes;
    uint8_t* values = static_cast<uint8_t*>(v_block) + static_cast<size_t>(head) * v_head_bytes;
    uint8_t* key_scales = keys + (head_dim + 3) / 4 * 64 + slot * 2;
    uint8_t* value_scales = values + padded * 16 + slot * 2;
    const bool finite = AllFinite(k, head_dim) && AllFinite(v, head_dim);
    for (int d = 0; d < head_dim; d += kKvKeyGroup) {
      const int n = head_dim - d < kKvKeyGroup ? head_dim - d : kKvKeyGroup;
      F16 scale{0x7e00};  // NaN
      if (finite) {
        scale = QuantizeGroup(k + d, n, [&](int i, uint8_t code) {
          keys[(d + i) / 4 * 64 + slot * 4 + (d + i) % 4] = code;
        });
      }
      __builtin_memcpy(key_scales + d / kKvKeyGroup * 32, &scale, sizeof scale);
    }
    uint8_t* quad = values + slot / 4 * padded * 4 + slot % 4;
    for (int d = 0; d < head_dim; d += kKvValueGroup) {
      const int n = head_dim - d < kKvValueGroup ? head_dim - d : kKvValueGroup;
      F16 scale{0};
      if (finite) {
        scale = QuantizeGroup(v + d, n, [&](int i, uint8_t code) { quad[(d + i) * 4] = code; });
      }
      __builtin_memcpy(value_scales + d / kKvValueGroup * 32, &scale, sizeof scale);
    }
    k += head_dim;
    v += head_dim;
  }
}

SLUICE_END_ISA
