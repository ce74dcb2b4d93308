// The oracle: every kernel as plain loops over row-major arrays with double accumulation. Slow and
// obviously right; only tests use it. Shapes and meanings are those of kernels/cpu/ops.h, without
// packing or paging.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/kv_format.h"

namespace sluice::reference {

// Element i of an array of dtype (unaligned allowed), as F32.
float Element(DType dtype, const void* data, int64_t i);
// Rounds to dtype and back.
float Rounded(DType dtype, float value);

// y[t * y_stride + r] = sum_k w[r, k] x[t, k] + bias[r]. w: [rows, cols] of dtype, x: [tokens,
// cols]. activations: the type that x is rounded to first.
void Matmul(DType dtype, const void* w, int rows, int cols, DType activations, const float* x,
            int tokens, const float* bias, float* y, ptrdiff_t y_stride);

// What a K/V cache of dtype gives back of one head's row x [n]: rounded, and for Q8 quantized in
// groups of `group` values (kernels/common/kv_format.h). x is finite.
void KvRounded(KvDType dtype, int group, const float* x, int n, float* out);

// One query over tokens [first_visible, context) of k and v, both [tokens, head_dim] F32.
struct AttentionQuery {
  const float* q;
  const float* k;
  const float* v;
  int head_dim;
  int first_visible;
  int context;
  float scale;
  float softcap;
  float sink_logit;
  bool has_sink;
};
void Attention(const AttentionQuery& query, float* out);

void RmsNorm(const float* x, const float* weight, int n, float eps, float* out);
void Rope(float* x, const float* cos, const float* sin, int rotary_dim);
void SiluMul(const float* gate, const float* up, int n, float* out);
void AddScaled(const float* x, float scale, int n, float* y);
void Softmax(float* x, int n);

}  // namespace sluice::reference
