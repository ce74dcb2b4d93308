#include "engine/experts/pack_expert.h"

#include <algorithm>
#include <array>

#include "engine/base/check.h"

namespace sluice {

PackedMatrix ViewWeight(const WeightLayout& layout, int planes,
                        const std::byte* const* plane_starts) {
  PackedMatrix matrix = {.dtype = layout.dtype, .rows = layout.rows, .cols = layout.cols};
  if (layout.form == WeightForm::kPanels) {
    matrix.data = plane_starts[0];
    return matrix;
  }
  SLUICE_CHECK(layout.form == WeightForm::kNested && planes >= 1 && planes <= layout.planes());
  matrix.nested = {.format = layout.nested, .level = layout.level(planes), .count = planes};
  std::copy_n(plane_starts, planes, matrix.nested.planes.begin());
  return matrix;
}

ExpertWeights ViewExpert(const PackExpert& expert, std::span<const std::byte* const> set_starts) {
  SLUICE_CHECK(!set_starts.empty() && set_starts.size() <= expert.sets.size());
  const auto view = [&](const WeightLayout& layout, int projection) {
    const int planes = std::min(layout.planes(), static_cast<int>(set_starts.size()));
    std::array<const std::byte*, kMaxPlanes> starts{};
    for (int plane = 0; plane < planes; ++plane) {
      starts[plane] = set_starts[plane] + expert.PlaneOffset(projection, plane);
    }
    return ViewWeight(layout, planes, starts.data());
  };
  return {view(expert.gate, 0), view(expert.up, 1), view(expert.down, 2)};
}

size_t PlaneSetsFor(const PackExpert& expert, int bits) {
  if (bits == 0) return expert.sets.size();
  int planes = 1;
  for (const WeightLayout* layout : {&expert.gate, &expert.up, &expert.down}) {
    if (layout->form == WeightForm::kNested) {
      planes = std::max(planes, NestedPlanesFor(layout->nested.bits, bits));
    }
  }
  return static_cast<size_t>(planes);
}

}  // namespace sluice
