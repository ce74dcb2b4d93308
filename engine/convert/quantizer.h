// From float rows (or GGUF blocks) to bit-nested planes. Works panel by panel: 16 rows at a time,
// no state between panels, so panels of a matrix may be quantized by several threads.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "engine/formats/gguf_types.h"
#include "engine/formats/pack.h"
#include "kernels/common/nested.h"

namespace sluice {

// What calibration knows of a matrix's inputs. Empty spans: nothing is known (data-free).
struct InputStatistics {
  std::span<const float> mean_square;  // [cols] of the input: the weight of a column's error
  // Upper triangular factor for error compensation: U with U^T U = (H + damping)^-1, H the mean of
  // x x^T; [cols, cols] row-major. Empty: columns are rounded independently.
  std::span<const float> compensation;
};

struct QuantizerOptions {
  NestedFormat format;  // no table kind: those are only imported
  // How much the squared error at each number of planes counts when scales and codes are chosen;
  // [NestedPlanes(bits)], the last one is full precision. Empty: DefaultLevelWeights.
  std::vector<double> level_weights = {};
  // What least squares rounds, it shrinks: quantized weights reproduce 1 - e of their matrix's
  // output and noise, e their relative squared error, and the same shrinkage in every matrix adds
  // up while noise does not. 1: each row's scales are multiplied so that its output keeps its size
  // at full precision (and a LevelFit's likewise at lower ones); 0: least squares; between: a power
  // of it. Nothing: DefaultKeepGain at full precision, kDefaultLevelKeepGain at lower ones.
  std::optional<double> keep_gain = {};
};
// compensated: for InputStatistics with a compensation factor, where every precision counts;
// otherwise mostly the full one does.
std::vector<double> DefaultLevelWeights(int bits, bool compensated);
// Packs and the errors that allocation goes by (expert_error.h) both take this.
double DefaultKeepGain(bool compensated);
// A lower level cuts more off than rounding does. On the demo model's 4-bit pack, full precision
// left at least squares, it takes the divergence at 2 bits from .0167 to .0115 and leaves that at 3
// bits as it is (.0028; four held-out texts).
inline constexpr double kDefaultLevelKeepGain = 1;

// With compensation, columns are rounded from first to last, and what a column loses at a level is
// made up for by the columns after it at that level (GPTQ, Frantar et al. 2022, for several
// precisions at once): a code is the one whose values at all levels serve best. Otherwise every
// weight takes its nearest code.
//
// rows: up to 16 rows, [row_count, cols]; missing rows of the panel become zeros.
void QuantizePanel(const QuantizerOptions& options, const InputStatistics& statistics,
                   const float* rows, int row_count, int cols, NestedPanel* out);

// Fits a matrix's levels to its weights by least squares, after its panels were quantized: what a
// NestedLevel of a lower precision should be. Full precision keeps its default.
class LevelFit {
 public:
  explicit LevelFit(NestedFormat format);
  // rows and panel as QuantizePanel had and made them. Of `statistics` only mean_square counts.
  void Add(const InputStatistics& statistics, const float* rows, int row_count, int cols,
           const NestedPanel& panel);
  void Merge(const LevelFit& other);  // of the same format
  // For WeightLayout::levels. keep_gain as in QuantizerOptions.
  std::vector<NestedLevel> Levels(double keep_gain = 1.0) const;

 private:
  struct Sums {
    // Of s * leading bits (q), s (one) and w - m (y).
    double qq = 0, q = 0, one = 0, qy = 0, y = 0, yy = 0;
  };
  NestedFormat format_;
  std::vector<Sums> sums_;  // [planes - 1]
};

// The format that holds blocks of this type without loss, or nothing (floats).
std::optional<NestedFormat> ExactFormat(GgufType type);
// Up to 16 rows of blocks as a panel of ExactFormat(type): DequantizeNested of it equals
// DequantizeGguf of them, bit for bit (up to -0). `blocks`: GgufBytes(row_count * cols) bytes.
void ImportPanel(const GgufTypeInfo& type, const std::byte* blocks, int row_count, int cols,
                 NestedPanel* out);

}  // namespace sluice
