#include "engine/convert/compensation.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "kernels/cpu/convert_ops.h"

namespace sluice {
namespace {

constexpr int kRows = kNestedRows;
constexpr int kMaxGroup = 32;
// d and dmin are fixed before a super's later groups have been moved by its earlier ones' errors.
constexpr float kHeadroom = 1.06f;

struct Level {
  int dropped;
  float add;
  float weight;
  std::vector<float> targets;  // [padded cols][16]
  float errors[kMaxGroup * kRows];
};

// One column of a panel: codes and errors of all levels.
class ColumnRounder {
 public:
  ColumnRounder(NestedFormat format, std::vector<Level>* levels)
      : levels_(levels),
        top_((1 << format.bits) - 1),
        centre_(format.scales == ScaleKind::kF16 || format.scales == ScaleKind::kI8
                    ? static_cast<float>(1 << (format.bits - 1))
                    : 0.0f) {}

  void Round(int column, int place, const float* scale, const float* min, float inverse_pivot,
             int32_t* codes) {
    const size_t at = static_cast<size_t>(column) * kRows;
    const Level& full = levels_->back();
    int32_t nearest[kRows];
    float best[kRows];
    for (int r = 0; r < kRows; ++r) {
      const float steps = scale[r] != 0 ? (full.targets[at + r] - min[r]) / scale[r] + centre_ : 0;
      // The negation also catches what is not a number.
      const float bounded = !(steps > 0) ? 0.0f : std::min(steps, static_cast<float>(top_));
      nearest[r] = codes[r] = static_cast<int32_t>(bounded + 0.5f);
    }
    Cost(at, scale, min, nearest, best);
    // Codes just across the next border of a lower level, on either side.
    for (size_t l = 0; l + 1 < levels_->size(); ++l) {
      const int dropped = (*levels_)[l].dropped;
      for (const bool up : {false, true}) {
        int32_t trial[kRows];
        float cost[kRows];
        for (int r = 0; r < kRows; ++r) {
          const int32_t cell = nearest[r] >> dropped << dropped;
          trial[r] = std::clamp(up ? cell + (1 << dropped) : cell - 1, 0, top_);
        }
        Cost(at, scale, min, trial, cost);
        for (int r = 0; r < kRows; ++r) {
          const bool better = cost[r] < best[r];
          best[r] = better ? cost[r] : best[r];
          codes[r] = better ? trial[r] : codes[r];
        }
      }
    }
    for (Level& level : *levels_) {
      for (int r = 0; r < kRows; ++r) {
        level.errors[place * kRows + r] =
            (level.targets[at + r] - Value(level, scale[r], min[r], codes[r])) * inverse_pivot;
      }
    }
  }

 private:
  static float Value(const Level& level, float scale, float min, int32_t code) {
    return scale * (static_cast<float>(code >> level.dropped << level.dropped) + level.add) + min;
  }
  void Cost(size_t at, const float* scale, const float* min, const int32_t* codes,
            float* cost) const {
    std::fill_n(cost, kRows, 0.0f);
    for (const Level& level : *levels_) {
      for (int r = 0; r < kRows; ++r) {
        const float gap = level.targets[at + r] - Value(level, scale[r], min[r], codes[r]);
        cost[r] += level.weight * gap * gap;
      }
    }
  }

  std::vector<Level>* levels_;
  int top_;
  float centre_;
};

}  // namespace

void CompensatePanel(NestedFormat format, std::span<const double> level_weights,
                     std::span<const float> factor, int cols, PanelScales* scales,
                     const std::vector<float>& x, NestedPanel* out) {
  const cpu::ConvertOps* ops = cpu::SelectConvertOps(cpu::Isa::kAuto);
  const int planes = NestedPlanes(format.bits);
  std::vector<Level> levels;
  for (int p = 1; p <= planes; ++p) {
    // Full precision always takes part: nothing else decides the lowest bits.
    const double weight = p == planes ? std::max(level_weights[p - 1], 1e-6) : level_weights[p - 1];
    if (weight <= 0) continue;
    levels.push_back({.dropped = format.bits - NestedPrecision(format.bits, p),
                      .add = DefaultNestedLevel(format, p).add,
                      .weight = static_cast<float>(weight),
                      .targets = x,
                      .errors = {}});
  }
  ColumnRounder rounder(format, &levels);
  const int groups = NestedGroups(format, cols);
  const int step = scales->groups_per_super();
  int32_t codes[kMaxGroup * kRows];
  for (int g = 0; g < groups; ++g) {
    const float* targets = levels.back().targets.data();
    if (g % step == 0) {
      scales->FitSuper(targets, g, std::min(groups, g + step), step > 1 ? kHeadroom : 1.0f);
    } else {
      scales->Refit(targets, g);
    }
    scales->Round(targets, g);
    const int begin = g * format.group;
    const int end = std::min(begin + format.group, cols);
    // Subtracts errors of columns [first, past), times their rows of the factor, from the targets
    // of columns [past, stop).
    const auto propagate = [&](int first, int past, int stop) {
      const float* errors[kMaxPlanes];
      float* later[kMaxPlanes];
      for (size_t l = 0; l < levels.size(); ++l) {
        errors[l] = levels[l].errors + static_cast<ptrdiff_t>(first - begin) * kRows;
        later[l] = levels[l].targets.data() + static_cast<ptrdiff_t>(past) * kRows;
      }
      ops->subtract_products(errors, past - first,
                             factor.data() + static_cast<ptrdiff_t>(first) * cols + past, cols,
                             stop - past, later, static_cast<int>(levels.size()));
    };
    for (int k = begin; k < end; ++k) {
      const float pivot = factor[static_cast<size_t>(k) * (static_cast<size_t>(cols) + 1)];
      const int place = k - begin;
      rounder.Round(k, place, scales->scale(), scales->min(), 1.0f / pivot, codes + place * kRows);
      propagate(k, k + 1, end);
    }
    if (begin < end) propagate(begin, end, cols);
    scales->AddGain(x.data(), g, codes);
    StoreCodes(format, cols, g, codes, out);
  }
}

}  // namespace sluice
