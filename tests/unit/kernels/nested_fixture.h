// What the tests of bit-nested matrices share: all formats, and matrices of reproducible numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/nested.h"
#include "tests/unit/kernels/kernel_fixture.h"

namespace sluice {

inline std::vector<NestedFormat> AllNestedFormats() {
  std::vector<NestedFormat> formats;
  for (int kind = 0; kind < kScaleKinds; ++kind) {
    const auto scales = static_cast<ScaleKind>(kind);
    for (const int group : {16, 32}) {
      for (int bits = 2; bits <= 8; ++bits) {
        const NestedFormat format = {scales, static_cast<uint8_t>(group),
                                     static_cast<uint8_t>(bits)};
        if (ValidNestedFormat(format)) formats.push_back(format);
      }
    }
  }
  return formats;
}

inline std::string Case(NestedFormat format) {
  static constexpr const char* kNames[] = {"F16",    "F16Min", "U8Min",   "I8",
                                           "Iq4F16", "Iq4I8",  "E2m1E8m0"};
  return std::string(kNames[static_cast<int>(format.scales)]) + " group " +
         std::to_string(format.group) + " bits " + std::to_string(format.bits);
}

// An encoded matrix whose rows past `rows` and columns past `cols` are zero, and what it was
// encoded from. Each plane has guard bytes round it and holds `filler` before.
struct NestedMatrix {
  NestedFormat format;
  int rows;
  int cols;
  std::vector<NestedPanel> panels;
  std::vector<cpu::Guarded<uint8_t>> storage;
  std::byte* planes[kMaxPlanes] = {};

  NestedMatrix(NestedFormat format, int rows, int cols, cpu::Numbers& numbers,
               uint8_t filler = 0x5a)
      : format(format), rows(rows), cols(cols) {
    storage.reserve(kMaxPlanes);
    for (int i = 0; i < NestedPlanes(format.bits); ++i) {
      const size_t bytes = NestedPlaneBytes(format, rows, cols, i);
      storage.emplace_back(bytes);
      planes[i] = reinterpret_cast<std::byte*>(storage.back().data());
      std::memset(planes[i], filler, bytes);
    }
    for (int panel = 0; panel < (rows + kNestedRows - 1) / kNestedRows; ++panel) {
      panels.push_back(RandomPanel(panel, numbers));
      EncodeNestedPanel(format, cols, panels.back(), panel, planes);
    }
  }
  NestedMatrix(const NestedMatrix&) = delete;
  NestedMatrix& operator=(const NestedMatrix&) = delete;

  bool Intact() const {
    for (const auto& plane : storage) {
      if (!plane.Intact()) return false;
    }
    return true;
  }

 private:
  NestedPanel RandomPanel(int index, cpu::Numbers& numbers) const {
    NestedPanel panel;
    panel.Resize(format, cols);
    const int padded = NestedPaddedCols(cols);
    const bool powers = format.scales == ScaleKind::kE2m1E8m0;
    const bool bytes = HasSuperScales(format.scales) || powers;
    const auto fill = [&](std::vector<uint16_t>& field, bool as_bytes) {
      for (size_t i = 0; i < field.size(); ++i) {
        const uint16_t value = powers     ? static_cast<uint16_t>(118 + numbers.Below(8))
                               : as_bytes ? static_cast<uint16_t>(numbers.Below(256))
                                          : F32ToF16(0.01f * numbers.Next());
        if (index * kNestedRows + static_cast<int>(i) % kNestedRows < rows) field[i] = value;
      }
    };
    fill(panel.super_scale, false);
    fill(panel.super_min, false);
    fill(panel.scale, bytes);
    fill(panel.min, bytes);
    for (int row = 0; row < kNestedRows && index * kNestedRows + row < rows; ++row) {
      for (int k = 0; k < cols; ++k) {
        panel.codes[row * padded + k] = static_cast<uint8_t>(numbers.Below(1 << format.bits));
      }
    }
    return panel;
  }
};

// One token quantized by the words of ops.h: columns as they enter the dot products.
inline std::vector<double> QuantizedInputs(const float* x, int cols) {
  std::vector<double> values(cols);
  for (int begin = 0; begin < cols; begin += 32) {
    const int end = std::min(begin + 32, cols);
    float largest = 0;
    for (int k = begin; k < end; ++k) largest = std::max(largest, std::fabs(x[k]));
    const float xs = largest / 127.0f;
    for (int k = begin; k < end; ++k) {
      values[k] = xs == 0 ? 0 : static_cast<double>(xs) * std::nearbyint(x[k] / xs);
    }
  }
  return values;
}

// |y - expected| against the sum of the magnitudes that make it up (codes and offsets of a weight
// are added up apart, and may cancel), the worst over all outputs; infinity where one is no number.
inline double WorstError(const NestedMatrix& matrix, int planes, NestedLevel level,
                         const std::vector<float>& x, int tokens, const float* bias,
                         const std::vector<float>& y) {
  const int rows = matrix.rows, cols = matrix.cols;
  std::vector<float> w(static_cast<size_t>(rows) * cols), codes(w.size()), offsets(w.size());
  DequantizeNested(matrix.format, cols, matrix.planes, planes, level, 0, rows, w.data());
  DequantizeNested(matrix.format, cols, matrix.planes, planes, {level.mul, 0}, 0, rows,
                   codes.data());
  DequantizeNested(matrix.format, cols, matrix.planes, planes, {0, level.add}, 0, rows,
                   offsets.data());
  double worst = 0;
  for (int t = 0; t < tokens; ++t) {
    const std::vector<double> q = QuantizedInputs(x.data() + static_cast<size_t>(t) * cols, cols);
    for (int r = 0; r < rows; ++r) {
      double sum = bias != nullptr ? bias[r] : 0, size = std::fabs(sum) + 1e-30;
      for (int k = 0; k < cols; ++k) {
        const size_t at = static_cast<size_t>(r) * cols + k;
        sum += w[at] * q[k];
        size += (std::fabs(codes[at]) + std::fabs(offsets[at])) * std::fabs(q[k]);
      }
      const double error = std::fabs(y[static_cast<size_t>(t) * rows + r] - sum) / size;
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  }
  return worst;
}

}  // namespace sluice
