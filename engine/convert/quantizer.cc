#include "engine/convert/quantizer.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "engine/convert/compensation.h"
#include "engine/convert/panel_scales.h"

namespace sluice {
namespace {

// [row_count, cols] to [padded cols][16], the missing rows and columns zeros.
void Transpose(const float* rows, int row_count, int cols, std::vector<float>* out) {
  out->assign(static_cast<size_t>(NestedPaddedCols(cols)) * kNestedRows, 0.0f);
  for (int r = 0; r < row_count; ++r) {
    const float* from = rows + static_cast<ptrdiff_t>(r) * cols;
    float* to = out->data() + r;
    for (int k = 0; k < cols; ++k) to[static_cast<ptrdiff_t>(k) * kNestedRows] = from[k];
  }
}

// [padded cols]: of mean 1 where calibration says something; columns that it never saw count a
// little, so that their weights do not become arbitrary. Padding counts nothing.
std::vector<float> ColumnWeights(const InputStatistics& statistics, int cols) {
  std::vector<float> weights(static_cast<size_t>(NestedPaddedCols(cols)), 0.0f);
  std::fill_n(weights.begin(), cols, 1.0f);
  if (statistics.mean_square.empty()) return weights;
  SLUICE_CHECK(statistics.mean_square.size() == static_cast<size_t>(cols));
  double total = 0;
  for (const float square : statistics.mean_square) total += square;
  const double mean = total / cols;
  if (!(mean > 0) || !std::isfinite(mean)) return weights;
  for (int k = 0; k < cols; ++k) {
    weights[k] = static_cast<float>(statistics.mean_square[k] / mean + 1e-3);
  }
  return weights;
}

}  // namespace

void StoreCodes(NestedFormat format, int cols, int group, const int32_t* codes, NestedPanel* out) {
  const auto padded = static_cast<size_t>(NestedPaddedCols(cols));
  const int begin = group * format.group;
  const int count = std::min<int>(format.group, cols - begin);
  for (int r = 0; r < kNestedRows; ++r) {
    uint8_t* to = out->codes.data() + r * padded + begin;
    for (int k = 0; k < count; ++k) to[k] = static_cast<uint8_t>(codes[k * kNestedRows + r]);
  }
}

void QuantizePanel(const QuantizerOptions& options, const InputStatistics& statistics,
                   const float* rows, int row_count, int cols, NestedPanel* out) {
  const NestedFormat format = options.format;
  SLUICE_CHECK(row_count >= 1 && row_count <= kNestedRows && cols >= 1);
  const std::vector<double> levels =
      options.level_weights.empty() ? DefaultLevelWeights(format.bits) : options.level_weights;
  out->Resize(format, cols);
  std::vector<float> x;
  Transpose(rows, row_count, cols, &x);
  const std::vector<float> weights = ColumnWeights(statistics, cols);
  PanelScales scales(format, levels, weights, out);
  if (!statistics.compensation.empty()) {
    SLUICE_CHECK(statistics.compensation.size() ==
                 static_cast<size_t>(cols) * static_cast<size_t>(cols));
    CompensatePanel(format, levels, statistics.compensation, cols, &scales, x, out);
    scales.KeepGain(options.keep_gain);
    return;
  }
  const int groups = NestedGroups(format, cols);
  int32_t codes[32 * kNestedRows];
  for (int first = 0; first < groups; first += scales.groups_per_super()) {
    const int end = std::min(groups, first + scales.groups_per_super());
    scales.FitSuper(x.data(), first, end);
    for (int g = first; g < end; ++g) {
      scales.Round(x.data(), g);
      scales.Encode(x.data(), g, codes);
      scales.AddGain(x.data(), g, codes);
      StoreCodes(format, cols, g, codes, out);
    }
  }
  scales.KeepGain(options.keep_gain);
}

// Measured with bench_nested_quality on the demo model: with compensation these halve the KL
// divergence at 3 bits and lower it by a quarter at 2, and the 4-bit level stays that of a plain
// 4-bit quantization without compensation or better. Without compensation they cost 0.4% at 4 bits.
std::vector<double> DefaultLevelWeights(int bits) {
  switch (bits) {
    case 2:
      return {1};
    case 3:
      return {0.1, 1};
    case 4:
      return {0.03, 0.1, 1};
    case 5:
      return {0.03, 0.1, 1, 1};
    case 6:
      return {0.03, 0.1, 1, 1};
    default:
      SLUICE_CHECK(bits == 8);
      return {0.03, 0.1, 1, 1, 1};
  }
}

}  // namespace sluice
