#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/common/half.h"

namespace sluice::reference {

float Element(DType dtype, const void* data, int64_t i) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes + i * 4, sizeof value);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, bytes + i * 2, sizeof half);
  return dtype == DType::kF16 ? F16ToF32(half) : Bf16ToF32(half);
}

float Rounded(DType dtype, float value) {
  if (dtype == DType::kF16) return F16ToF32(F32ToF16(value));
  if (dtype == DType::kBF16) return Bf16ToF32(F32ToBf16(value));
  return value;
}

void Matmul(DType dtype, const void* w, int rows, int cols, DType activations, const float* x,
            int tokens, const float* bias, float* y, ptrdiff_t y_stride) {
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < rows; ++r) {
      double sum = 0;
      for (int k = 0; k < cols; ++k) {
        sum += static_cast<double>(Element(dtype, w, static_cast<int64_t>(r) * cols + k)) *
               Rounded(activations, x[static_cast<int64_t>(t) * cols + k]);
      }
      y[t * y_stride + r] = static_cast<float>(sum + (bias != nullptr ? bias[r] : 0.0f));
    }
  }
}

void KvRounded(KvDType dtype, int group, const float* x, int n, float* out) {
  if (dtype != KvDType::kQ8) {
    const DType type = dtype == KvDType::kF32   ? DType::kF32
                       : dtype == KvDType::kF16 ? DType::kF16
                                                : DType::kBF16;
    for (int i = 0; i < n; ++i) out[i] = Rounded(type, x[i]);
    return;
  }
  for (int begin = 0; begin < n; begin += group) {
    const int end = std::min(n, begin + group);
    float largest = 0;
    for (int i = begin; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
    // The kernels take the quotient as a product.
    const float wanted = largest * (1.0f / 127.0f);
    uint16_t half = F32ToF16(wanted);
    if (F16ToF32(half) < wanted) ++half;
    const float scale = F16ToF32(std::min<uint16_t>(half, 0x7bff));
    for (int i = begin; i < end; ++i) {
      const float code = scale > 0 ? std::nearbyintf(x[i] * (1.0f / scale)) : 0.0f;
      out[i] = scale * std::clamp(code, -127.0f, 127.0f);
    }
  }
}

void Attention(const AttentionQuery& a, float* out) {
  std::vector<double> weights;
  double top = a.has_sink ? a.sink_logit : -std::numeric_limits<double>::infinity();
  for (int token = a.first_visible; token < a.context; ++token) {
    double score = 0;
    for (int d = 0; d < a.head_dim; ++d) {
      score += static_cast<double>(a.q[d]) * a.k[static_cast<int64_t>(token) * a.head_dim + d];
    }
    score *= a.scale;
    if (a.softcap != 0) score = a.softcap * std::tanh(score / a.softcap);
    top = std::max(top, score);
    weights.push_back(score);
  }
  double total = a.has_sink ? std::exp(a.sink_logit - top) : 0;
  for (double& weight : weights) total += weight = std::exp(weight - top);
  for (int d = 0; d < a.head_dim; ++d) {
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      sum += weights[i] * a.v[(a.first_visible + static_cast<int64_t>(i)) * a.head_dim + d];
    }
    out[d] = static_cast<float>(sum / total);
  }
}

void RmsNorm(const float* x, const float* weight, int n, float eps, float* out) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double scale = 1 / std::sqrt(squares / n + eps);
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * scale * weight[i]);
}

void Rope(float* x, const float* cos, const float* sin, int rotary_dim) {
  const int half = rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    const double a = x[i];
    const double b = x[i + half];
    x[i] = static_cast<float>(a * cos[i] - b * sin[i]);
    x[i + half] = static_cast<float>(b * cos[i] + a * sin[i]);
  }
}

void SiluMul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    const double g = gate[i];
    out[i] = static_cast<float>(g / (1 + std::exp(-g)) * up[i]);
  }
}

void AddScaled(const float* x, float scale, int n, float* y) {
  for (int i = 0; i < n; ++i) {
    y[i] = static_cast<float>(y[i] + static_cast<double>(scale) * x[i]);
  }
}

void Softmax(float* x, int n) {
  const double top = *std::max_element(x, x + n);
  double total = 0;
  for (int i = 0; i < n; ++i) total += std::exp(x[i] - top);
  for (int i = 0; i < n; ++i) x[i] = static_cast<float>(std::exp(x[i] - top) / total);
}

}  // namespace sluice::reference
