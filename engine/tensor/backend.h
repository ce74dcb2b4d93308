// The operations of a forward pass on one device (SEAM): the CPU now, CUDA later.
//
// Pointers in the argument structs point into buffers of this backend, unless they are marked
// [host]. Activations are F32, row-major. A call returns when its results may be used by the next
// call; each is one parallel region or a few, and small work runs on the calling thread alone.
//
// Every op computes each output row from its own inputs only, in one fixed order: results are
// bit-identical for every number of rows in the call and every number of threads.
//
// Threads: one caller at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/base/result.h"
#include "engine/tensor/device_buffer.h"
#include "engine/tensor/tensor.h"
#include "kernels/common/dtype.h"
#include "kernels/common/kv_format.h"

namespace sluice {

// Sizes the workspace that ops use inside a call; every later call must stay within.
struct WorkspaceLimits {
  int max_tokens = 0;          // rows of x in any call
  int max_cols = 0;            // widest x of Linear
  int max_mlp_groups = 0;      // groups in one Mlp call
  int64_t max_mlp_rows = 0;    // assignments in one Mlp call, over all groups
  int max_mlp_width = 0;       // widest intermediate of any group
  int64_t max_mlp_values = 0;  // sum over groups of count * intermediate
  // What the weights of any call want their inputs packed as. Each form costs memory.
  ActivationForms linear_forms = ActivationForms::All();
  ActivationForms mlp_forms = ActivationForms::All();
};

struct LinearOutput {
  PackedMatrix weight;
  const float* bias = nullptr;  // nullable, [weight.rows]
  float* y = nullptr;           // [tokens, weight.rows] at y_stride
  ptrdiff_t y_stride = 0;
  bool add = false;  // y += W x + b instead of y = W x + b
};

// Several matrices that read the same input: outputs[i].y = W_i f(x) + b_i, f the RMS norm or
// nothing.
struct LinearArgs {
  const float* x = nullptr;  // [tokens, cols] at x_stride
  ptrdiff_t x_stride = 0;
  int tokens = 0;
  int cols = 0;
  const float* norm_weight = nullptr;  // nullable, [cols]
  float norm_eps = 0;
  float* normed = nullptr;  // nullable, [tokens, cols]: receives f(x); may not overlap x
  std::span<const LinearOutput> outputs;
};

// The token table: row-major, or the packed output head when embeddings are tied.
struct EmbeddingTable {
  TensorView rows;
  PackedMatrix packed;  // used when `rows` is empty
};

// The paged cache of one layer; kernels/common/kv_format.h has the layout of a KV block.
struct KvLayer {
  KvDType dtype = KvDType::kF32;
  void* k = nullptr;
  void* v = nullptr;
  size_t k_block_bytes = 0;
  size_t v_block_bytes = 0;
  int kv_heads = 0;
  int head_dim = 0;
};

// Between the projections and attention, per token, in this order: RMS norm of q and k, clipping of
// q, k and v, rotation of q and k, K and V into the cache. q, k and v are changed in place.
struct RopeCacheArgs {
  float* q = nullptr;  // [tokens, heads * head_dim]
  float* k = nullptr;  // [tokens, kv_heads * head_dim]
  float* v = nullptr;
  int tokens = 0;
  int heads = 0;
  KvLayer kv;
  const float* q_norm = nullptr;  // nullable: no norm
  const float* k_norm = nullptr;
  bool norm_full_width = false;  // one norm over all heads, weights [heads * head_dim]; else per
                                 // head, weights [head_dim]
  float norm_eps = 0;
  float clip = 0;  // 0: off; else to [-clip, clip]
  int rotary_dim = 0;
  const float* cos = nullptr;  // [positions, rotary_dim / 2] at rope_stride
  const float* sin = nullptr;
  ptrdiff_t rope_stride = 0;
  const int32_t* positions = nullptr;  // [tokens], row of cos and sin
  const int32_t* slots = nullptr;      // [tokens], physical KV block * 16 + slot in the block
};

// Query rows that read one sequence's context. A row is one head of one token; offsets are relative
// to the first head of the group that shares a kv head.
struct AttentionGroup {
  const int32_t* blocks = nullptr;  // block table of the sequence
  int rows = 0;
  const ptrdiff_t* offsets = nullptr;      // [rows], in floats, into q and out
  const int32_t* first_visible = nullptr;  // [rows], ascending
  const int32_t* context = nullptr;        // [rows], ascending
};

struct PagedAttentionArgs {
  KvLayer kv;
  int heads = 0;
  const float* q = nullptr;  // [tokens, heads * head_dim]
  float* out = nullptr;      // same shape; may not overlap q
  float scale = 1;
  std::span<const AttentionGroup> groups;  // [host]
};

// Softmax over all logits of a token, then its k largest probabilities in descending order; of
// equal ones the lower index first.
struct TopKArgs {
  float* logits = nullptr;  // [tokens, n] at stride; becomes the probabilities
  ptrdiff_t stride = 0;
  int tokens = 0;
  int n = 0;
  int k = 0;
  bool renormalize = false;  // weights are divided by their sum
  int32_t* ids = nullptr;    // [tokens, k] at ids_stride [host]
  ptrdiff_t ids_stride = 0;
  float* weights = nullptr;  // [tokens, k] at weights_stride
  ptrdiff_t weights_stride = 0;
  // Nullable [tokens] at gate_stride: weights[t, k], one past the selected ones, becomes
  // sigmoid(gate[t]) (the shared expert's weight).
  const float* gate = nullptr;
  ptrdiff_t gate_stride = 0;
};

// A SwiGLU network and the rows of x that go through it.
struct MlpGroup {
  PackedMatrix gate;              // [intermediate, hidden]
  PackedMatrix up;                // [intermediate, hidden]
  PackedMatrix down;              // [hidden, intermediate]
  const int32_t* rows = nullptr;  // [count] rows of x [host]; null: 0, 1, 2, ...
  int count = 0;
  int64_t first_output = -1;  // row of y for rows[0], the others follow; -1: past the group before
};

// y[first_output + i] = down(silu(gate(x[rows[i]])) * up(x[rows[i]])) for every group. Each group's
// weights are read once, whatever its count.
struct MlpArgs {
  const float* x = nullptr;  // [.., hidden] at x_stride
  ptrdiff_t x_stride = 0;
  int hidden = 0;
  std::span<const MlpGroup> groups;  // [host]
  float* y = nullptr;                // [.., hidden]
  // Nullable: receives what the down projections read, [count, intermediate] group after group.
  float* down_inputs = nullptr;
};

// out[t] += sum over s of weights[t, s] * y[index[t, s]], the sum taken in the order of s.
struct CombineArgs {
  const float* y = nullptr;  // [.., hidden]
  int tokens = 0;
  int slots = 0;
  int hidden = 0;
  const int32_t* index = nullptr;  // [tokens, slots] [host]
  const float* weights = nullptr;  // [tokens, slots]
  float* out = nullptr;            // [tokens, hidden]
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const char* name() const = 0;  // "avx512bf16", ...
  virtual int threads() const = 0;

  // Memory that ops can read and write. `what` names the purpose in an error.
  virtual Result<DeviceBuffer> Allocate(size_t bytes, const char* what) = 0;
  // Must be called once before the first op.
  virtual Result<> Prepare(const WorkspaceLimits& limits) = 0;
  virtual size_t workspace_bytes() const = 0;

  // Packs `rows` rows of a row-major matrix [rows, cols] (host memory, any alignment) to `packed`,
  // which holds cpu::PackedMatrixBytes(dtype, rows, cols) bytes.
  virtual void Pack(DType dtype, const void* src, int rows, int cols, void* packed) = 0;
  // Converts n host values to F32.
  virtual void ToF32(DType dtype, const void* src, int64_t n, float* out) = 0;

  // out[i] = the table's row ids[i], out [ids.size(), cols].
  virtual void Embed(const EmbeddingTable& table, std::span<const int32_t> ids, float* out) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void RopeCache(const RopeCacheArgs& args) = 0;
  virtual void Attention(const PagedAttentionArgs& args) = 0;
  virtual void TopK(const TopKArgs& args) = 0;
  virtual void Mlp(const MlpArgs& args) = 0;
  virtual void Combine(const CombineArgs& args) = 0;
};

}  // namespace sluice
