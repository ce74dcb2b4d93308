// Rounding of a panel's columns one after the other, each making up for the errors before it.
// Internal to the quantizer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/convert/panel_scales.h"
#include "engine/convert/quantizer.h"

namespace sluice {

// x: [padded cols][16], the weights. factor: [cols, cols], InputStatistics::compensation. Fills the
// panel.
//
// Every level l has targets T_l of its own, the weights at first. Column k takes the code that
// minimises sum_l level_weights[l] * (T_l[k] - value_l)^2; then
//   e_l = (T_l[k] - value_l) / U[k, k],  T_l[j] -= e_l * U[k, j] for j > k.
// For one level this is GPTQ. Columns of a group are updated at once, those after it group by
// group.
void CompensatePanel(NestedFormat format, std::span<const double> level_weights,
                     std::span<const float> factor, int cols, PanelScales* scales,
                     const std::vector<float>& x, NestedPanel* out);

// Puts codes [group][16] into the panel, those of padding left out.
void StoreCodes(NestedFormat format, int cols, int group, const int32_t* codes, NestedPanel* out);

}  // namespace sluice
