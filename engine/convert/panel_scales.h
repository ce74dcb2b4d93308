// Scales and minima of one panel under construction: searched as floats by the kernels
// (kernels/cpu/convert_ops.h), then rounded to what the format can hold. Internal to the quantizer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/convert/quantizer.h"
#include "kernels/cpu/convert_ops.h"

namespace sluice {

class PanelScales {
 public:
  // level_weights: one per number of planes. column_weights: [padded cols]. `panel` is sized for
  // the format. All outlive this object.
  PanelScales(NestedFormat format, std::span<const double> level_weights,
              std::span<const float> column_weights, NestedPanel* panel);

  int groups_per_super() const { return supers_ ? kNestedSuperCols / format_.group : 1; }

  // Searches groups [first, end) of x, [padded cols][16], and fixes what they share (d and dmin),
  // `headroom` times what they need. REQUIRES: the groups of one super, or one group of a
  // format without supers.
  void FitSuper(const float* x, int first, int end, float headroom = 1.0f);
  // Searches one group anew, within what FitSuper fixed.
  void Refit(const float* x, int group);
  // Writes the fields of `group` into the panel, chosen by the error of the values that they stand
  // for; returns those values, scale()[16] and min()[16].
  void Round(const float* x, int group);
  const float* scale() const { return rounded_scale_; }
  const float* min() const { return rounded_min_; }

  // Remembers how much of the weights x the codes of a group reproduce with the rounded scales.
  void AddGain(const float* x, int group, const int32_t* codes);
  // Multiplies each row's scales and minima by the power `keep_gain` of what restores its size.
  void KeepGain(double keep_gain);

  // Codes of a group with the rounded scales: [group][16].
  void Encode(const float* x, int group, int32_t* codes);

 private:
  struct Fitted {
    float scale[kNestedRows];
    float min[kNestedRows];
  };
  const cpu::GroupFitArgs& ArgsFor(const float* x, int group);
  // What the format's fields hold, as floats.
  float ScaleOf(int row, int field) const;
  float MinOf(int row, int field) const;

  NestedFormat format_;
  bool supers_;
  bool has_min_;
  std::span<const float> column_weights_;
  NestedPanel* panel_;
  const cpu::ConvertOps* kernels_;
  cpu::GroupFitArgs args_{};
  std::vector<Fitted> fitted_;  // [groups]
  float super_scale_[kNestedRows] = {};
  float super_min_[kNestedRows] = {};
  float rounded_scale_[kNestedRows] = {};
  float rounded_min_[kNestedRows] = {};
  double weight_squares_[kNestedRows] = {};  // sums of w * w and w * (value of its code)
  double weight_products_[kNestedRows] = {};
};

}  // namespace sluice
