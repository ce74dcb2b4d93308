// The CPU kernels, one table of function pointers per instruction set (SEAM between kernels/cpu and
// engine/tensor).
//
// Every entry is single-threaded over a range that the caller chooses, works on raw pointers,
// allocates nothing, and may be called from any thread. All activations are F32 in memory unless
// stated.
//
// Numbers do not depend on company (design.md, section 5): every output element is accumulated by
// one lane that walks the inputs in ascending order with one accumulator, so a result is
// bit-identical for every number of tokens, every split into ranges and every thread. Different
// ISAs may differ by rounding.
//
// Packed weights: a matrix [rows, cols] (HF layout: rows = outputs) is stored in panels of 16 rows.
//   F32, F16:  panel = [cols][16]            element (r, k) at panel[k * 16 + r]
//   BF16:      panel = [ceil(cols/2)][16][2] element (r, k) at panel[(k / 2) * 32 + r * 2 + k % 2]
// Rows are padded with zeros to a multiple of 16, and for BF16 cols to a multiple of 2. The layout
// is the same for all ISAs.
//
// Packed activations: an opaque form of x [tokens, cols] that one ISA's matmul reads for one weight
// type (BF16 weights on a CPU with BF16 dot products take activations rounded to BF16; everything
// else keeps F32).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/kv_format.h"
#include "kernels/common/nested.h"

namespace sluice::cpu {

inline constexpr int kPanelRows = 16;
// Keys per KV block; also the layout unit of the K cache (see AttentionArgs).
inline constexpr int kKvBlockTokens = 16;

// Tokens in a part of attention; see AttentionArgs.
inline constexpr int kAttentionPartTokens = 1024;

constexpr int AttentionParts(int context) {
  return (context + kAttentionPartTokens - 1) / kAttentionPartTokens;
}
// [head_dim, to a multiple of 16] weighted values, then the maximum and the sum of exponentials.
constexpr size_t AttentionPartialFloats(int head_dim) {
  return (static_cast<size_t>(head_dim) + 15) / 16 * 16 + 16;
}

struct MatmulArgs {
  DType weight_dtype;
  const void*
      weights;    // packed panels, 64-byte aligned; panel p starts at p * PanelBytes(dtype, cols)
  const void* x;  // from pack_activations, same weight_dtype, cols and tokens
  int tokens;     // >= 1
  int cols;
  int panel_begin;  // panels [panel_begin, panel_end) are computed
  int panel_end;
  int rows;            // true rows: outputs at and past `rows` are not written
  const float* bias;   // nullable, [rows]; added after the sum
  float* y;            // y[t * y_stride + r], r counts from row 0 of the matrix
  ptrdiff_t y_stride;  // in floats
};

// A bit-nested matrix (kernels/common/nested.h) at one precision. Planes start at multiples of 64
// bytes.
//
// Activations are 8-bit: per token and unit of 32 columns xs = max|x| / 127 (F32), qx = x / xs
// rounded to nearest even. With s, m, mul, add of nested.h: s' = s * mul (super scales first) and c
// = add / mul. Per unit, ascending, from y = 0: u = 0; for each group of the unit
//   dot = sum of leading bits (or T + 128 of table kinds) * qx, n = sum of qx; exact integers
//   u = fma(s', dot + c * n, u), or, with a minimum: u = fma(fma(s', c, m), n, fma(s', dot, u))
// and then y = fma(u, xs, y).
// Every tiling and thread count computes exactly this; ISAs differ by the rounding of fma at most.
struct NestedMatmulArgs {
  NestedFormat format;
  NestedLevel level;
  int planes;  // planes used, 1 to NestedPlanes(format.bits)
  // Start of panel 0 of each plane; [0, planes) are set.
  const std::byte* plane[kMaxPlanes];
  const void* x;  // from nested_pack_activations, same cols and tokens
  int tokens;
  int cols;
  int panel_begin;  // panels [panel_begin, panel_end) are computed
  int panel_end;
  // Nullable: what this thread reads after panel panel_end - 1, plane by plane, in panels of the
  // same size. It is prefetched meanwhile.
  const std::byte* next[kMaxPlanes];
  int rows;            // true rows of the matrix: outputs at and past `rows` are not written
  const float* bias;   // nullable, [rows]; added after the sum
  float* y;            // y[t * y_stride + r], r counts from row 0 of the matrix
  ptrdiff_t y_stride;  // in floats
  // Scratch for one panel's unpacked codes and scales: NestedScratchBytes(cols), 64-byte aligned,
  // not shared between threads. Contents do not survive a call.
  void* scratch;
};

// One query row (one head of one token) of attention walks its whole context, block by block, with
// an online softmax. The K of KV block b is at k_cache + b * k_block_bytes, its V at v_cache + b *
// v_block_bytes, as kernels/common/kv_format.h lays them out; for Q8 all four are multiples of 64
// bytes. Slots past the context are never read into a result, whatever bytes they hold.
//
// With Q8, queries and the weights of V are rounded to 14 bits as well (attention_q8-inl.h).
//
// A row's context is cut into parts at absolute positions, multiples of kAttentionPartTokens. Each
// part is summed by itself and the parts' sums are merged in ascending order: by `attention` itself
// when `partials` is null, or by `merge_attention` after calls of `attention` that left every
// part's sums in `partials`, in any order and on any threads. Both ways give the same bytes.
struct AttentionArgs {
  KvDType kv_dtype;
  const void* k_cache;
  const void* v_cache;
  size_t k_block_bytes;
  size_t v_block_bytes;
  const int32_t* blocks;  // block table: physical block of tokens [16 i, 16 i + 16)
  int head_dim;           // at most 256; multiples of 16 are fastest
  int kv_head;            // which kv head all these query rows read
  // Query rows: `rows` rows; row i's query is at q + q_offsets[i] (head_dim floats, already roped
  // and normed), its output goes to out + q_offsets[i], and it sees tokens [first_visible[i],
  // context[i]) with context[i] >= 1.
  int rows;
  const float* q;
  float* out;
  const ptrdiff_t* q_offsets;
  const int32_t* first_visible;  // > 0 only with a sliding window
  const int32_t* context;
  float scale;       // 1/sqrt(head_dim) as the model says
  float softcap;     // 0: none; else softcap * tanh(score / softcap)
  float sink_logit;  // used when has_sink: joins the softmax denominator
  bool has_sink;
  // Null: whole rows are written to `out`. Otherwise `attention` computes parts [part_begin,
  // part_end) only and leaves the sums of row i's part p at partials + (i * parts + p) *
  // AttentionPartialFloats(head_dim); REQUIRES parts >= AttentionParts(context[i]) for all rows.
  // Parts of which a row sees nothing are neither written nor merged.
  float* partials;
  int parts;
  int part_begin;
  int part_end;
};

struct Ops {
  const char* name;  // "scalar", "avx2", "avx512", "avx512bf16", "neon"

  // Bytes that pack_activations writes for this shape (64-byte aligned destination).
  size_t (*activation_bytes)(DType weight_dtype, int tokens, int cols);
  // Packs rows x[gather ? gather[t] : t] for t in [0, tokens). x_stride in floats. gather may be
  // null.
  void (*pack_activations)(DType weight_dtype, const float* x, ptrdiff_t x_stride,
                           const int32_t* gather, int tokens, int cols, void* packed);
  void (*matmul)(const MatmulArgs& args);
  void (*attention)(const AttentionArgs& args);
  // Merges the parts of every row and writes `out`; the same args, part_begin and part_end aside.
  void (*merge_attention)(const AttentionArgs& args);

  // The same three for bit-nested matrices.
  size_t (*nested_activation_bytes)(int tokens, int cols);
  void (*nested_pack_activations)(const float* x, ptrdiff_t x_stride, const int32_t* gather,
                                  int tokens, int cols, void* packed);
  void (*nested_matmul)(const NestedMatmulArgs& args);
  // Rounds of the 8-bit dot product from registers; returns multiply-accumulates, as peak_macs.
  int64_t (*nested_peak_macs)(int64_t iterations, float* sink);

  // Appends one token's K and V of all kv heads to its place in a block (converting to kv_dtype).
  // k, v: [kv_heads, head_dim] F32. k_block, v_block: the start of the block, laid out as above.
  // slot in [0, 16).
  void (*kv_write)(KvDType kv_dtype, const float* k, const float* v, int kv_heads, int head_dim,
                   int slot, void* k_block, void* v_block);

  // out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; n values; x == out allowed. Sum in a fixed
  // order.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
  // Rotates one head in place, NeoX style: pairs (i, i + rotary_dim/2). cos, sin: [rotary_dim / 2].
  void (*rope)(float* x, const float* cos, const float* sin, int rotary_dim);
  // out[i] = silu(gate[i]) * up[i].
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  // y[i] += scale * x[i].
  void (*add_scaled)(const float* x, float scale, int n, float* y);
  // In-place softmax over n values; max subtracted; fixed order.
  void (*softmax)(float* x, int n);
  // Converts n values of dtype to F32.
  void (*to_f32)(DType dtype, const void* src, int64_t n, float* out);
  // Packs rows of a row-major matrix into panels. src: [rows, cols] of dtype (unaligned allowed),
  // the destination holds PackedMatrixBytes(dtype, rows, cols) bytes. Panels [panel_begin,
  // panel_end) are written whole, padding included.
  void (*pack_matrix)(DType dtype, const void* src, int rows, int cols, int panel_begin,
                      int panel_end, void* packed);
  // Streams `bytes` (multiple of 4096) and returns a checksum: the read-bandwidth roofline.
  uint64_t (*read_stream)(const void* src, size_t bytes);
  // Runs `iterations` rounds of the matmul's own multiply-accumulate instruction from registers and
  // returns the multiply-accumulates done: the arithmetic roofline for this weight type. `sink`
  // keeps the work alive.
  int64_t (*peak_macs)(DType weight_dtype, int64_t iterations, float* sink);
};

constexpr size_t PanelBytes(DType dtype, int cols) {
  const size_t k = dtype == DType::kBF16 ? (static_cast<size_t>(cols) + 1) / 2 * 2 : cols;
  return k * kPanelRows * DTypeBytes(dtype);
}
constexpr int PanelCount(int rows) { return (rows + kPanelRows - 1) / kPanelRows; }
constexpr size_t PackedMatrixBytes(DType dtype, int rows, int cols) {
  return PanelBytes(dtype, cols) * static_cast<size_t>(PanelCount(rows));
}

// Scratch of one nested_matmul call: codes of up to four panels, scales and minima as F32, and what
// the scales are applied to for a tile of up to 16 tokens.
constexpr size_t NestedScratchBytes(int cols) {
  const auto units = static_cast<size_t>(NestedUnits(cols));
  return units * (4 * (kPanelRows * kNestedUnitCols + 4 * kPanelRows * sizeof(float)) +
                  2 * 4 * 16 * sizeof(float));
}

// What to run on. kAuto is the best that this CPU offers.
enum class Isa { kAuto, kScalar, kAvx2, kAvx512, kAvx512Bf16, kNeon };

// The table for `isa`, or null when it is not compiled in or this CPU lacks it. Never null for
// kAuto and kScalar.
const Ops* SelectOps(Isa isa);
// Names accepted by --cpu-isa: auto, scalar, avx2, avx512, avx512bf16, neon. False when unknown.
bool ParseIsa(const char* name, Isa* isa);

}  // namespace sluice::cpu
