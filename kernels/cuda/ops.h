// The CUDA kernels' launchers (SEAM between kernels/cuda and the CUDA backend). No CUDA header is
// needed to include this.
//
// Every launcher puts one kernel (or none, for nothing to do) behind what `stream` holds and
// returns at once: pointers are to device memory, must stay valid until the stream has passed, and
// results may be read then. It allocates nothing, waits for nothing, and reads no device memory on
// the host, so a sequence of calls can be captured as a CUDA graph. The status is that of the
// launch; an error of the kernel itself comes out of a later call (Synchronize in runtime.h).
//
// Activations are F32, row-major. Weights and the K/V cache lie as on the CPU and in packs
// (kernels/common/nested.h, kernels/common/kv_format.h).
//
// Numbers do not depend on company (design.md, section 5): every output is computed from its own
// inputs by a sum whose shape follows from the row's length alone (columns, context), so results
// are the same bytes for every number of rows, groups, tile and split. They differ from the CPU's
// by rounding: sums run in another order.
//   RmsNorm 1e-6, SiluMul 1e-6, AddScaled and Rope 3e-7 of their values, softmax 2e-6; nested
//   products 2e-6 of the sum of the magnitudes that make them up; attention 3e-6 absolute for
//   values up to 1 (F32, F16, BF16), 5e-4 (Q8, whose queries are rounded to 14 bits, too).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/kv_format.h"
#include "kernels/common/nested.h"

struct CUstream_st;

namespace sluice::cuda {

// A cudaError_t.
enum class Status : int { kOk = 0 };
// A cudaStream_t; null is the default stream.
using Stream = CUstream_st*;

// ---- Bit-nested matrices -----------------------------------------------------------------------

// Rows of activations in 8 bits: per row and unit of 32 columns a scale xs = max|x| / 127 and codes
// qx = x / xs rounded to nearest even, as on the CPU (kernels/cpu/ops.h). A unit that is not finite
// has NaN for its scale.
struct QuantizedRows {
  int8_t* codes = nullptr;  // [rows][units][32], 16-byte aligned; padding columns are 0
  float* scales = nullptr;  // [rows][units]
  // [rows][units]: the sum of qx over columns 0 to 15 in the low 16 bits, over the others above.
  uint32_t* sums = nullptr;
};

constexpr size_t QuantizedBytes(int64_t rows, int cols) {
  return static_cast<size_t>(rows) * static_cast<size_t>(NestedUnits(cols)) * 40;
}
// The parts of `memory`, 16-byte aligned, QuantizedBytes(rows, cols) long.
inline QuantizedRows QuantizedAt(void* memory, int64_t rows, int cols) {
  const size_t units = static_cast<size_t>(rows) * static_cast<size_t>(NestedUnits(cols));
  auto* bytes = static_cast<std::byte*>(memory);
  return {reinterpret_cast<int8_t*>(bytes), reinterpret_cast<float*>(bytes + 32 * units),
          reinterpret_cast<uint32_t*>(bytes + 36 * units)};
}

struct QuantizeArgs {
  const float* x = nullptr;  // [rows, cols] at x_stride (floats)
  ptrdiff_t x_stride = 0;
  int rows = 0;
  int cols = 0;
  QuantizedRows out;
};
Status QuantizeRows(const QuantizeArgs& args, Stream stream);

// A bit-nested matrix at one precision, as kernels read it. Made on the host by MakeNestedOperand;
// lies in device memory as part of a group.
struct NestedOperand {
  const std::byte* plane[kMaxPlanes] = {};  // panel 0 of each in device memory, 64-byte aligned
  uint32_t table[4] = {};                   // of table kinds: T + 128, a byte each
  float mul = 1;                            // the level's
  float centre = 0;                         // its add / mul
  uint32_t scale_offset_bytes = 0;          // in plane 0 of a panel
  uint32_t code_offset_bytes = 0;
  ScaleKind scales = ScaleKind::kF16;
  uint8_t unit_groups = 1;  // groups per unit of 32 columns: 1 or 2
  uint8_t precision = 4;    // bits that `plane` gives: 2, 3, 4, 5, 6 or 8
};
NestedOperand MakeNestedOperand(NestedFormat format, NestedLevel level, int planes,
                                const std::byte* const* plane, int cols);

// What of the input goes through which weights: a linear layer is one group, the experts of a layer
// are as many as the step needs. Groups may differ in format and precision, not in shape.
struct NestedGroup {
  NestedOperand matrix[2];        // gate and up; the first alone for NestedMatmulArgs.matrices == 1
  const int32_t* rows = nullptr;  // [count] rows of x, in device memory; null: first_row + i
  int first_row = 0;
  int count = 0;
  int64_t first_output = 0;  // row of y for the first, the others follow
};

// y[first_output + i] = W x[row i] + bias, or silu(W0 x) * (W1 x), for all groups in one launch.
//
// The order of a sum: a row's units are cut into chunks of kNestedChunkUnits. In a chunk, eight
// sums each walk every eighth unit upwards, arithmetic of a unit as kernels/cpu/ops.h states it,
// and are added as a butterfly; chunks are added upwards. `splits` > 1 spreads a row's chunks over
// that many blocks, for matrices of too few rows to fill the device: their sums go through
// `partials` and a second launch adds them up, in the same order.
//
// Bound: bytes of the planes, from memory once; tiles of 4 rows of a group after the first
// find them in the caches.
struct NestedMatmulArgs {
  const NestedGroup* groups = nullptr;  // [group_count], in device memory
  int group_count = 0;
  int max_count = 0;  // the largest count of a group
  int matrices = 1;   // 1, or 2 for SwiGLU
  QuantizedRows x;
  int rows = 0;  // of each matrix
  int cols = 0;
  const float* bias = nullptr;  // nullable, [rows]; matrices == 1 only
  float* y = nullptr;           // at y_stride (floats)
  ptrdiff_t y_stride = 0;
  int splits = 1;
  // splits > 1: NestedPartialFloats floats, contents do not survive; outputs past 0 .. outputs - 1
  // are not written.
  float* partials = nullptr;
  int64_t outputs = 0;
};
inline constexpr int kNestedChunkUnits = 16;
constexpr int NestedChunks(int cols) {
  return (NestedUnits(cols) + kNestedChunkUnits - 1) / kNestedChunkUnits;
}
constexpr size_t NestedPartialFloats(int matrices, int rows, int cols, int64_t outputs) {
  return static_cast<size_t>(matrices) * static_cast<size_t>(NestedChunks(cols)) *
         static_cast<size_t>(rows) * static_cast<size_t>(outputs);
}
Status NestedMatmul(const NestedMatmulArgs& args, Stream stream);

// ---- Rows --------------------------------------------------------------------------------------

// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; x == out allowed.
struct RmsNormArgs {
  const float* x = nullptr;  // [rows, cols] at x_stride
  ptrdiff_t x_stride = 0;
  const float* weight = nullptr;  // [cols]
  float eps = 0;
  int rows = 0;
  int cols = 0;
  float* out = nullptr;  // at out_stride
  ptrdiff_t out_stride = 0;
};
Status RmsNorm(const RmsNormArgs& args, Stream stream);

// Rotates heads in place, NeoX style: pairs (i, i + rotary_dim / 2).
struct RopeArgs {
  float* x = nullptr;  // [tokens, heads, head_dim], contiguous
  int tokens = 0;
  int heads = 0;
  int head_dim = 0;
  int rotary_dim = 0;
  const float* cos = nullptr;  // [positions, rotary_dim / 2] at table_stride
  const float* sin = nullptr;
  ptrdiff_t table_stride = 0;
  const int32_t* positions = nullptr;  // [tokens]: row of cos and sin
};
Status Rope(const RopeArgs& args, Stream stream);

// out[i] = silu(gate[i]) * up[i], i < n.
struct SiluMulArgs {
  const float* gate = nullptr;
  const float* up = nullptr;
  int64_t n = 0;
  float* out = nullptr;  // may be gate or up
};
Status SiluMul(const SiluMulArgs& args, Stream stream);

// out[t] += sum over s of weights[t, s] * y[index[t, s]], the sum taken upwards in s from 0.
struct CombineArgs {
  const float* y = nullptr;  // [.., cols]
  int tokens = 0;
  int slots = 0;
  int cols = 0;
  const int32_t* index = nullptr;  // [tokens, slots]
  const float* weights = nullptr;  // [tokens, slots]
  float* out = nullptr;            // [tokens, cols]
};
Status Combine(const CombineArgs& args, Stream stream);

// The router: softmax over all n logits of a token, then its k largest probabilities in descending
// order; of equal ones the lower index first, and one that is not a number passes nobody. As
// TopKArgs of engine/tensor/backend.h, with the same meaning of `renormalize` and `gate`.
struct RouteArgs {
  float* logits = nullptr;  // [tokens, n] at stride; becomes the probabilities
  ptrdiff_t stride = 0;
  int tokens = 0;
  int n = 0;
  int k = 0;  // at most n
  bool renormalize = false;
  int32_t* ids = nullptr;  // [tokens, k] at ids_stride
  ptrdiff_t ids_stride = 0;
  float* weights = nullptr;  // [tokens, k], or k + 1 with a gate, at weights_stride
  ptrdiff_t weights_stride = 0;
  const float* gate = nullptr;  // nullable, [tokens] at gate_stride
  ptrdiff_t gate_stride = 0;
};
Status Route(const RouteArgs& args, Stream stream);

// ---- Attention ---------------------------------------------------------------------------------

// The paged cache of one layer.
struct KvCache {
  KvDType dtype = KvDType::kF16;
  std::byte* k = nullptr;  // block b at k + b * k_block_bytes; heads inside as kv_format.h says
  std::byte* v = nullptr;
  size_t k_block_bytes = 0;
  size_t v_block_bytes = 0;
  int kv_heads = 0;
  int head_dim = 0;  // a multiple of 8, at most 256
};

// Tokens' K and V to their places in the cache; the same bytes as the CPU writes.
struct KvWriteArgs {
  KvCache cache;
  const float* k = nullptr;  // [tokens, kv_heads, head_dim]
  const float* v = nullptr;
  int tokens = 0;
  const int32_t* slots = nullptr;  // [tokens]: physical KV block * 16 + slot in the block
};
Status KvWrite(const KvWriteArgs& args, Stream stream);

// Query rows that read one sequence's context: a row is one head of one token. Offsets are relative
// to the first head of the group that shares a kv head, as in engine/tensor/backend.h.
struct AttentionGroup {
  const int32_t* blocks = nullptr;  // block table of the sequence
  int rows = 0;
  const int64_t* offsets = nullptr;        // [rows], in floats, into q and out
  const int32_t* first_visible = nullptr;  // [rows], ascending
  const int32_t* context = nullptr;        // [rows], ascending, >= 1
  int64_t first_partial = 0;               // rows of the groups before it, together
};

// Tokens in a part of attention: a row's context is cut at multiples of it, each part is summed by
// a block of its own, and a second launch merges them upwards.
inline constexpr int kAttentionPartTokens = 256;
constexpr int AttentionParts(int context) {
  return (context + kAttentionPartTokens - 1) / kAttentionPartTokens;
}
constexpr int AttentionPartialFloats(int head_dim) { return head_dim + 2; }

struct AttentionArgs {
  KvCache cache;
  const AttentionGroup* groups = nullptr;  // [group_count], in device memory
  int group_count = 0;
  int max_rows = 0;          // the largest rows of a group
  int parts = 0;             // >= AttentionParts of every context
  int group_heads = 1;       // query heads per kv head: offsets of kv head h start at
                             // h * group_heads * head_dim
  const float* q = nullptr;  // already roped and normed
  float* out = nullptr;      // may not overlap q
  float scale = 1;
  float softcap = 0;     // 0: none; else softcap * tanh(score / softcap)
  float sink_logit = 0;  // used when has_sink: joins the softmax denominator
  bool has_sink = false;
  // [kv_heads][rows of all groups][parts] times AttentionPartialFloats(head_dim) floats; contents
  // do not survive.
  float* partials = nullptr;
  int64_t total_rows = 0;  // rows of all groups
};
Status Attention(const AttentionArgs& args, Stream stream);

}  // namespace sluice::cuda
