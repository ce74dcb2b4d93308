#include <cmath>

#include "engine/base/check.h"
#include "engine/convert/quantizer.h"

namespace sluice {
LevelFit::LevelFit(NestedFormat format)
    : format_(format), sums_(static_cast<size_t>(NestedPlanes(format.bits) - 1)) {}

void LevelFit::Add(const InputStatistics& statistics, const float* rows, int row_count, int cols,
                   const NestedPanel& panel) {
  const auto padded = static_cast<size_t>(NestedPaddedCols(cols));
  for (int r = 0; r < row_count; ++r) {
    const float* weights = rows + static_cast<ptrdiff_t>(r) * cols;
    const uint8_t* codes = panel.codes.data() + static_cast<size_t>(r) * padded;
    for (int begin = 0; begin < cols; begin += format_.group) {
      const NestedAffine affine = NestedAffineOf(format_, panel, begin / format_.group, r);
      const int end = std::min<int>(begin + format_.group, cols);
      for (size_t l = 0; l < sums_.size(); ++l) {
        const int dropped = format_.bits - NestedPrecision(format_.bits, static_cast<int>(l) + 1);
        Sums group;
        for (int k = begin; k < end; ++k) {
          const double importance =
              statistics.mean_square.empty() ? 1.0 : double{statistics.mean_square[k]};
          const double q = codes[k] >> dropped;
          const double y = double{weights[k]} - affine.min;
          group.qq += importance * q * q;
          group.q += importance * q;
          group.one += importance;
          group.qy += importance * q * y;
          group.y += importance * y;
          group.yy += importance * y * y;
        }
        const double s = affine.scale;
        Sums& total = sums_[l];
        total.qq += s * s * group.qq;
        total.q += s * s * group.q;
        total.one += s * s * group.one;
        total.qy += s * group.qy;
        total.y += s * group.y;
        total.yy += group.yy;
      }
    }
  }
}

void LevelFit::Merge(const LevelFit& other) {
  SLUICE_CHECK(format_ == other.format_);
  for (size_t l = 0; l < sums_.size(); ++l) {
    sums_[l].qq += other.sums_[l].qq;
    sums_[l].q += other.sums_[l].q;
    sums_[l].one += other.sums_[l].one;
    sums_[l].qy += other.sums_[l].qy;
    sums_[l].y += other.sums_[l].y;
    sums_[l].yy += other.sums_[l].yy;
  }
}

std::vector<NestedLevel> LevelFit::Levels(double keep_gain) const {
  std::vector<NestedLevel> levels;
  for (size_t l = 0; l < sums_.size(); ++l) {
    const Sums& s = sums_[l];
    levels.push_back(DefaultNestedLevel(format_, static_cast<int>(l) + 1));
    const double determinant = s.qq * s.one - s.q * s.q;
    if (!(determinant > 1e-9 * s.qq * s.one)) continue;  // one code only: nothing to fit
    // What is left of codes and weights once a multiple of s is taken out of both.
    const double codes = determinant / s.one;
    const double both = s.qy - s.q * s.y / s.one;
    const double weights = s.yy - s.y * s.y / s.one;
    if (!(both > 0)) continue;
    const double gain = std::pow(weights * codes / (both * both), keep_gain);
    const double mul = both / codes * gain;
    levels.back().mul = static_cast<float>(mul);
    levels.back().add = static_cast<float>((s.y - mul * s.q) / s.one);
  }
  levels.push_back(DefaultNestedLevel(format_, NestedPlanes(format_.bits)));
  return levels;
}

}  // namespace sluice
