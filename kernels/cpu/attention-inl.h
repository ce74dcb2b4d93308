// Attention of query rows over a paged K/V cache (kernels/common/kv_format.h), one kv head, one
// thread; and the writes to that cache.
//
// A row walks its context in spans of kSpanBlocks blocks that start at absolute positions. Per
// span: scores, then one step of the online softmax (Milakov and Gimelshein 2018), then the
// weighted sum of V. Nothing in that order depends on other rows, so a row's result is the same in
// any company. Up to kGroupRows rows go over a span together and share its loads. Scores and sums
// are in attention_float-inl.h and attention_q8-inl.h.
//
// Parts of the context (ops.h) start afresh and are merged in order by MergePart, the one body for
// rows done in one call and for parts done apart.
//
// A file of its own for each instruction set (attention_<isa>.cc). Scratch is on the stack (about
// 80 KB).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/attention_float-inl.h"
#include "kernels/cpu/attention_q8-inl.h"

SLUICE_BEGIN_ISA

// As AttentionPartialFloats of ops.h, which may not be called from here (isa_macros.h).
SLUICE_INLINE size_t AttentionPartialFloatsHere(int head_dim) {
  return (static_cast<size_t>(head_dim) + 15) / 16 * 16 + 16;
}

// As KvKeyBytes and KvValueBytes of kv_format.h, which may not be called from here either.
template <class T>
SLUICE_INLINE size_t HeadBytes(int head_dim, int group) {
  if constexpr (sizeof(T) > 1) {
    return static_cast<size_t>(head_dim) * kKvBlockTokens * sizeof(T);
  }
  const int codes = group == kKvKeyGroup ? (head_dim + 3) / 4 * 64 : (head_dim + 15) / 16 * 256;
  const int bytes = codes + (head_dim + group - 1) / group * kKvBlockTokens * 2;
  return static_cast<size_t>((bytes + 63) / 64 * 64);
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
void PartOfGroup(const AttentionArgs& args, const uint8_t* k_cache, const uint8_t* v_cache,
                 int first, int rows, int begin, int end, int last_wanted, AttentionScratch& s) {
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
      const auto next_physical = static_cast<size_t>(args.blocks[next]);
      span.k[b] = reinterpret_cast<const T*>(k_cache + physical * args.k_block_bytes);
      span.v[b] = reinterpret_cast<const T*>(v_cache + physical * args.v_block_bytes);
      span.next_k[b] = reinterpret_cast<const T*>(k_cache + next_physical * args.k_block_bytes);
    }
    AllRows(span, s, rows, false);
    for (int r = 0; r < rows; ++r) {
      const int row_begin = args.first_visible[first + r] - start;
      const int row_end = args.context[first + r] - start;
      s.begin[r] = row_begin < 0 ? 0 : row_begin;
      s.end[r] = row_end < kSpanTokens ? row_end : kSpanTokens;
      if (s.begin[r] >= s.end[r]) s.begin[r] = s.end[r] = 0;
    }
    SoftmaxStep(args, s, rows);
    AllRows(span, s, rows, true);
  }
}

// Rows [first, first + rows), rows <= kGroupRows.
template <class T>
void AttentionGroup(const AttentionArgs& args, int first, int rows) {
  AttentionScratch s;
  const int head_dim = args.head_dim;
  const auto head = static_cast<size_t>(args.kv_head);
  const uint8_t* k_cache =
      static_cast<const uint8_t*>(args.k_cache) + head * HeadBytes<T>(head_dim, kKvKeyGroup);
  const uint8_t* v_cache =
      static_cast<const uint8_t*>(args.v_cache) + head * HeadBytes<T>(head_dim, kKvValueGroup);
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
  PrepareQueries<T>(s, head_dim, rows);
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

void MergeAttentionImpl(const AttentionArgs& args) {
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

template <class T>
void KvWriteAs(const float* k, const float* v, int kv_heads, int head_dim, int slot, void* k_block,
               void* v_block) {
  T* k_out = static_cast<T*>(k_block) + slot;
  T* v_out = static_cast<T*>(v_block) + static_cast<ptrdiff_t>(slot) * head_dim;
  for (int head = 0; head < kv_heads; ++head) {
    for (int d = 0; d < head_dim; d += 16) {
      const int n = head_dim - d < 16 ? head_dim - d : 16;
      T rounded[16];
      Store(rounded, LoadN(k + d, n));
      for (int i = 0; i < n; ++i) {
        __builtin_memcpy(k_out + (d + i) * kKvBlockTokens, &rounded[i], sizeof(T));
      }
      StoreN(v_out + d, LoadN(v + d, n), n);
    }
    k += head_dim;
    v += head_dim;
    k_out += static_cast<ptrdiff_t>(head_dim) * kKvBlockTokens;
    v_out += static_cast<ptrdiff_t>(head_dim) * kKvBlockTokens;
  }
}
SLUICE_END_ISA

// What the table of this ISA takes from here.
namespace sluice::cpu::SLUICE_ISA {

void Attention(const AttentionArgs& args);
void MergeAttention(const AttentionArgs& args);
void KvWrite(KvDType kv_dtype, const float* k, const float* v, int kv_heads, int head_dim, int slot,
             void* k_block, void* v_block);

void Attention(const AttentionArgs& args) {
  switch (args.kv_dtype) {
    case KvDType::kF32:
      return AttentionAs<float>(args);
    case KvDType::kF16:
      return AttentionAs<F16>(args);
    case KvDType::kBF16:
      return AttentionAs<Bf16>(args);
    case KvDType::kQ8:
      return AttentionAs<Q8>(args);
  }
}

void MergeAttention(const AttentionArgs& args) { MergeAttentionImpl(args); }

void KvWrite(KvDType kv_dtype, const float* k, const float* v, int kv_heads, int head_dim, int slot,
             void* k_block, void* v_block) {
  switch (kv_dtype) {
    case KvDType::kF32:
      return KvWriteAs<float>(k, v, kv_heads, head_dim, slot, k_block, v_block);
    case KvDType::kF16:
      return KvWriteAs<F16>(k, v, kv_heads, head_dim, slot, k_block, v_block);
    case KvDType::kBF16:
      return KvWriteAs<Bf16>(k, v, kv_heads, head_dim, slot, k_block, v_block);
    case KvDType::kQ8:
      return KvWriteQ8(k, v, kv_heads, head_dim, slot, k_block, v_block,
                       HeadBytes<Q8>(head_dim, kKvKeyGroup),
                       HeadBytes<Q8>(head_dim, kKvValueGroup));
  }
}

}  // namespace sluice::cpu::SLUICE_ISA
