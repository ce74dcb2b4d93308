#include "engine/convert/panel_scales.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "kernels/common/half.h"

namespace sluice {
namespace {

constexpr float kLargestF16 = 65504.0f;

uint16_t HalfBits(float x) { return F32ToF16(std::clamp(x, -kLargestF16, kLargestF16)); }

// Steps of `step` in x, rounded; 0 when there is no step.
int Steps(float x, float step, int low, int high) {
  if (step == 0 || !std::isfinite(x)) return std::clamp(0, low, high);
  return std::clamp(static_cast<int>(std::lround(std::clamp(x / step, -1e6f, 1e6f))), low, high);
}

}  // namespace

PanelScales::PanelScales(NestedFormat format, std::span<const double> level_weights,
                         std::span<const float> column_weights, NestedPanel* panel)
    : format_(format),
      supers_(format.scales == ScaleKind::kU8Min || format.scales == ScaleKind::kI8),
      has_min_(format.scales == ScaleKind::kU8Min || format.scales == ScaleKind::kF16Min),
      column_weights_(column_weights),
      panel_(panel),
      kernels_(cpu::SelectConvertOps(cpu::Isa::kAuto)) {
  const int planes = NestedPlanes(format.bits);
  SLUICE_CHECK(ValidNestedFormat(format) && static_cast<int>(level_weights.size()) == planes);
  args_.cols = format.group;
  args_.max_code = (1 << format.bits) - 1;
  args_.symmetric = !has_min_;
  args_.min_at_most_zero = format.scales == ScaleKind::kU8Min;
  for (int p = 1; p <= planes; ++p) {
    if (level_weights[p - 1] <= 0) continue;
    args_.level[args_.levels++] = {.dropped = format.bits - NestedPrecision(format.bits, p),
                                   .add = DefaultNestedLevel(format, p).add,
                                   .weight = static_cast<float>(level_weights[p - 1])};
  }
  SLUICE_CHECK(args_.levels > 0, "no level has a weight");
  fitted_.resize(column_weights.size() / format.group);
}

const cpu::GroupFitArgs& PanelScales::ArgsFor(const float* x, int group) {
  args_.x = x + static_cast<ptrdiff_t>(group) * format_.group * kNestedRows;
  args_.weight = column_weights_.data() + static_cast<ptrdiff_t>(group) * format_.group;
  return args_;
}

void PanelScales::FitSuper(const float* x, int first, int end, float headroom) {
  for (int g = first; g < end; ++g) {
    kernels_->fit(ArgsFor(x, g), fitted_[g].scale, fitted_[g].min);
  }
  if (!supers_) return;
  const int super = first * format_.group / kNestedSuperCols;
  const float top = format_.scales == ScaleKind::kU8Min ? 255.0f : 127.0f;
  for (int r = 0; r < kNestedRows; ++r) {
    float scale = 0, min = 0;
    for (int g = first; g < end; ++g) {
      // The sign of d is free; the scales that need the most decide nothing but its size.
      scale = std::max(scale, std::fabs(fitted_[g].scale[r]));
      min = std::max(min, -fitted_[g].min[r]);
    }
    const size_t at = static_cast<size_t>(super) * kNestedRows + r;
    panel_->super_scale[at] = HalfBits(headroom * scale / top);
    super_scale_[r] = F16ToF32(panel_->super_scale[at]);
    if (has_min_) {
      panel_->super_min[at] = HalfBits(headroom * min / top);
      super_min_[r] = F16ToF32(panel_->super_min[at]);
    }
  }
}

void PanelScales::Refit(const float* x, int group) {
  kernels_->fit(ArgsFor(x, group), fitted_[group].scale, fitted_[group].min);
}

float PanelScales::ScaleOf(int row, int field) const {
  return supers_ ? super_scale_[row] * static_cast<float>(field)
                 : F16ToF32(static_cast<uint16_t>(field));
}
float PanelScales::MinOf(int row, int field) const {
  if (!has_min_) return 0;
  return supers_ ? -(super_min_[row] * static_cast<float>(field))
                 : F16ToF32(static_cast<uint16_t>(field));
}

void PanelScales::Round(const float* x, int group) {
  const cpu::GroupFitArgs& args = ArgsFor(x, group);
  const bool is_signed = format_.scales == ScaleKind::kI8;
  const int low = is_signed ? -127 : 0;
  const int high = is_signed ? 127 : 255;
  int scale_field[kNestedRows], min_field[kNestedRows];
  for (int r = 0; r < kNestedRows; ++r) {
    const float scale = fitted_[group].scale[r], min = fitted_[group].min[r];
    scale_field[r] = supers_ ? Steps(scale, super_scale_[r], low, high) : HalfBits(scale);
    min_field[r] = !has_min_ ? 0 : supers_ ? Steps(-min, super_min_[r], 0, 255) : HalfBits(min);
  }
  float best[kNestedRows];
  const auto score = [&](const int* scales, const int* mins, float* error) {
    float scale[kNestedRows], min[kNestedRows];
    for (int r = 0; r < kNestedRows; ++r) {
      scale[r] = ScaleOf(r, scales[r]);
      min[r] = MinOf(r, mins[r]);
    }
    kernels_->score(args, scale, min, error);
  };
  if (supers_) {
    // A step of d or dmin is coarse beside a code of many bits: neighbours are tried, first of the
    // scale, then of the minimum.
    score(scale_field, min_field, best);
    for (const bool of_scale : {true, false}) {
      if (!of_scale && !has_min_) break;
      int* fields = of_scale ? scale_field : min_field;
      int start[kNestedRows], trial[kNestedRows];
      std::copy_n(fields, kNestedRows, start);
      for (const int step : {-1, 1}) {
        float error[kNestedRows];
        for (int r = 0; r < kNestedRows; ++r) {
          trial[r] = std::clamp(start[r] + step, of_scale ? low : 0, high);
        }
        score(of_scale ? trial : scale_field, of_scale ? min_field : trial, error);
        for (int r = 0; r < kNestedRows; ++r) {
          if (error[r] < best[r]) {
            best[r] = error[r];
            fields[r] = trial[r];
          }
        }
      }
    }
  }
  for (int r = 0; r < kNestedRows; ++r) {
    const size_t at = static_cast<size_t>(group) * kNestedRows + r;
    panel_->scale[at] = static_cast<uint16_t>(supers_ ? scale_field[r] & 0xff : scale_field[r]);
    if (has_min_) panel_->min[at] = static_cast<uint16_t>(min_field[r]);
    rounded_scale_[r] = ScaleOf(r, scale_field[r]);
    rounded_min_[r] = MinOf(r, min_field[r]);
  }
}

void PanelScales::AddGain(const float* x, int group, const int32_t* codes) {
  const cpu::GroupFitArgs& args = ArgsFor(x, group);
  const float centre = args.symmetric ? static_cast<float>(args.max_code + 1) / 2 : 0.0f;
  float squares[kNestedRows] = {}, products[kNestedRows] = {};
  for (int k = 0; k < args.cols; ++k) {
    const float* weights = args.x + static_cast<ptrdiff_t>(k) * kNestedRows;
    const int32_t* row_codes = codes + static_cast<ptrdiff_t>(k) * kNestedRows;
    for (int r = 0; r < kNestedRows; ++r) {
      const float value =
          rounded_scale_[r] * (static_cast<float>(row_codes[r]) - centre) + rounded_min_[r];
      const float weighted = args.weight[k] * weights[r];
      squares[r] += weighted * weights[r];
      products[r] += weighted * value;
    }
  }
  for (int r = 0; r < kNestedRows; ++r) {
    weight_squares_[r] += squares[r];
    weight_products_[r] += products[r];
  }
}

void PanelScales::KeepGain(double keep_gain) {
  // Codes that reproduce less than half of a row are not mended by making them larger.
  constexpr double kMost = 2.0;
  float gain[kNestedRows];
  for (int r = 0; r < kNestedRows; ++r) {
    const double ratio = weight_squares_[r] / weight_products_[r];
    gain[r] =
        ratio > 1 / kMost && ratio < kMost ? static_cast<float>(std::pow(ratio, keep_gain)) : 1.0f;
  }
  const auto multiply = [&](std::vector<uint16_t>* fields) {
    for (size_t i = 0; i < fields->size(); ++i) {
      (*fields)[i] = HalfBits(F16ToF32((*fields)[i]) * gain[i % kNestedRows]);
    }
  };
  multiply(supers_ ? &panel_->super_scale : &panel_->scale);
  if (has_min_) multiply(supers_ ? &panel_->super_min : &panel_->min);
}

void PanelScales::Encode(const float* x, int group, int32_t* codes) {
  kernels_->encode(ArgsFor(x, group), rounded_scale_, rounded_min_, codes);
}

}  // namespace sluice
