// Ops over single vectors: norm, rotation, activation, softmax, conversions; and the read-bandwidth
// roofline. All are bound by the bytes that they touch. Sums run over 16 lanes (lane = index mod
// 16), each lane upwards, and the lanes are added in SumLanes' order.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"

SLUICE_BEGIN_ISA

void RmsNorm(const float* x, const float* weight, int n, float eps, float* out) {
  Vec squares = Set(0.0f);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const Vec v = Load(x + i);
    squares = Fma(v, v, squares);
  }
  if (i < n) {
    const Vec v = LoadN(x + i, n - i);
    squares = Fma(v, v, squares);
  }
  const float mean = SumLanes(squares) / static_cast<float>(n);
  const Vec scale = Set(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i + 16 <= n; i += 16) {
    Store(out + i, Mul(Mul(Load(x + i), scale), Load(weight + i)));
  }
  if (i < n) {
    StoreN(out + i, Mul(Mul(LoadN(x + i, n - i), scale), LoadN(weight + i, n - i)), n - i);
  }
}

void Rope(float* x, const float* cos, const float* sin, int rotary_dim) {
  const int half = rotary_dim / 2;
  float* y = x + half;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    const Vec a = Load(x + i);
    const Vec b = Load(y + i);
    const Vec c = Load(cos + i);
    const Vec s = Load(sin + i);
    Store(x + i, Sub(Mul(a, c), Mul(b, s)));
    Store(y + i, Add(Mul(b, c), Mul(a, s)));
  }
  if (i < half) {
    const int n = half - i;
    const Vec a = LoadN(x + i, n);
    const Vec b = LoadN(y + i, n);
    const Vec c = LoadN(cos + i, n);
    const Vec s = LoadN(sin + i, n);
    StoreN(x + i, Sub(Mul(a, c), Mul(b, s)), n);
    StoreN(y + i, Add(Mul(b, c), Mul(a, s)), n);
  }
}

SLUICE_INLINE Vec Silu(Vec x) { return Div(x, Add(Set(1.0f), Exp(Sub(Set(0.0f), x)))); }

void SiluMul(const float* gate, const float* up, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, Mul(Silu(Load(gate + i)), Load(up + i)));
  if (i < n) {
    StoreN(out + i, Mul(Silu(LoadN(gate + i, n - i)), LoadN(up + i, n - i)), n - i);
  }
}

void AddScaled(const float* x, float scale, int n, float* y) {
  const Vec s = Set(scale);
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(y + i, Fma(Load(x + i), s, Load(y + i)));
  if (i < n) StoreN(y + i, Fma(LoadN(x + i, n - i), s, LoadN(y + i, n - i)), n - i);
}

void Softmax(float* x, int n) {
  const float kMinusInfinity = -__builtin_inff();
  Vec top = Set(kMinusInfinity);
  int i = 0;
  for (; i + 16 <= n; i += 16) top = Max(Load(x + i), top);
  if (i < n) top = Max(KeepLanes(LoadN(x + i, n - i), 0, n - i, kMinusInfinity), top);
  const Vec shift = Set(MaxLanes(top));
  Vec total = Set(0.0f);
  for (i = 0; i + 16 <= n; i += 16) {
    const Vec e = ExpOrZero(Sub(Load(x + i), shift));
    total = Add(total, e);
    Store(x + i, e);
  }
  if (i < n) {
    const Vec e = KeepLanes(ExpOrZero(Sub(LoadN(x + i, n - i), shift)), 0, n - i, 0.0f);
    total = Add(total, e);
    StoreN(x + i, e, n - i);
  }
  const Vec scale = Set(1.0f / SumLanes(total));
  for (i = 0; i + 16 <= n; i += 16) Store(x + i, Mul(Load(x + i), scale));
  if (i < n) StoreN(x + i, Mul(LoadN(x + i, n - i), scale), n - i);
}

template <class T>
void ToF32As(const void* src, int64_t n, float* out) {
  const T* from = static_cast<const T*>(src);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, Load(from + i));
  const int left = static_cast<int>(n - i);
  if (left > 0) StoreN(out + i, LoadN(from + i, left), left);
}
void ToF32(DType dtype, const void* src, int64_t n, float* out) {
  switch (dtype) {
    case DType::kF32:
      return ToF32As<float>(src, n, out);
    case DType::kF16:
      return ToF32As<F16>(src, n, out);
    case DType::kBF16:
      return ToF32As<Bf16>(src, n, out);
  }
}

// Row r of the panel goes to lane r. Group is how many k stay together: elements of kGroupBytes.
template <int kGroupBytes>
void PackPanel(const uint8_t* src, size_t row_bytes, int rows, int groups, size_t tail_bytes,
               uint8_t* out) {
  const uint8_t* from[kPanelRows];
  for (int r = 0; r < kPanelRows; ++r) from[r] = src + (r < rows ? r : 0) * row_bytes;
  if (rows < kPanelRows) {
    const size_t bytes =
        (static_cast<size_t>(groups) + (tail_bytes != 0)) * kPanelRows * kGroupBytes;
    __builtin_memset(out, 0, bytes);
  }
  for (int g = 0; g < groups; ++g) {
    if (rows == kPanelRows) {
      SLUICE_UNROLL(16)
      for (int r = 0; r < kPanelRows; ++r) {
        __builtin_memcpy(out + r * kGroupBytes, from[r], kGroupBytes);
        from[r] += kGroupBytes;
      }
    } else {
      for (int r = 0; r < rows; ++r) {
        __builtin_memcpy(out + r * kGroupBytes, from[r], kGroupBytes);
        from[r] += kGroupBytes;
      }
    }
    out += kPanelRows * kGroupBytes;
  }
  if (tail_bytes != 0) {
    __builtin_memset(out, 0, kPanelRows * kGroupBytes);
    for (int r = 0; r < rows; ++r) __builtin_memcpy(out + r * kGroupBytes, from[r], tail_bytes);
  }
}

void PackMatrix(DType dtype, const void* src, int rows, int cols, int panel_begin, int panel_end,
                void* packed) {
  const size_t element = dtype == DType::kF32 ? 4 : 2;
  const size_t row_bytes = static_cast<size_t>(cols) * element;
  const size_t padded =
      dtype == DType::kBF16 ? (static_cast<size_t>(cols) + 1) / 2 * 2 : static_cast<size_t>(cols);
  const size_t panel_bytes = padded * kPanelRows * element;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const int row = panel * kPanelRows;
    const int left = rows - row < kPanelRows ? rows - row : kPanelRows;
    const uint8_t* from = static_cast<const uint8_t*>(src) + row * row_bytes;
    uint8_t* out = static_cast<uint8_t*>(packed) + panel * panel_bytes;
    if (dtype == DType::kF32) {
      PackPanel<4>(from, row_bytes, left, cols, 0, out);
    } else if (dtype == DType::kF16) {
      PackPanel<2>(from, row_bytes, left, cols, 0, out);
    } else {
      PackPanel<4>(from, row_bytes, left, cols / 2, static_cast<size_t>(cols % 2) * 2, out);
    }
  }
}

// Four streams, as many as the matmul reads at once, each prefetched ahead.
uint64_t ReadStream(const void* src, size_t bytes) {
  typedef uint64_t Line __attribute__((vector_size(64), aligned(1), may_alias));
  constexpr int kStreams = 4;
  constexpr size_t kAhead = 2048;
  const size_t quarter = bytes / kStreams;
  const uint8_t* from = static_cast<const uint8_t*>(src);
  Line sums[kStreams] = {};
  for (size_t at = 0; at < quarter; at += sizeof(Line)) {
    SLUICE_UNROLL(4)
    for (int i = 0; i < kStreams; ++i) {
      const uint8_t* line = from + i * quarter + at;
      __builtin_prefetch(line + kAhead);
      sums[i] += *reinterpret_cast<const Line*>(line);
    }
  }
  uint64_t total = 0;
  for (int i = 0; i < kStreams; ++i) {
    for (int lane = 0; lane < 8; ++lane) total += sums[i][lane];
  }
  return total;
}

SLUICE_END_ISA
