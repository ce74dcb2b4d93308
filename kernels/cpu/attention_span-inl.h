// What attention does to a span of keys whatever the format of the cache: shapes, scratch and the
// online softmax. See attention-inl.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/common/kv_format.h"
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

constexpr int kKeyGroups = kMaxHeadDim / kKvKeyGroup;

// What Q8 caches need besides; see attention_q8-inl.h.
struct Q8Scratch {
  alignas(64) int8_t q[2][kGroupRows][kMaxHeadDim];  // integer queries: high and low bytes
  int32_t q_sum[kGroupRows][kKeyGroups];             // of the integers of a group
  float q_scale[kGroupRows];
  alignas(64) int8_t w[2][kGroupRows][kSpanTokens];  // integer weights of V for one group
  int32_t w_sum[kGroupRows];
  float w_scale[kGroupRows];
};

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
  Q8Scratch q8;
};

template <class T>
struct Span {
  const T* k[kSpanBlocks];
  const T* v[kSpanBlocks];
  const T* next_k[kSpanBlocks];  // worth a prefetch
  int blocks;
  int head_dim;
};

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

SLUICE_END_ISA
