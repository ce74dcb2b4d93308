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

ExpertWeights ViewExpert(const PackExpert& expert, size_t set_count, const std::byte* base) {
  SLUICE_CHECK(set_count >= 1 && set_count <= expert.sets.size());
  const auto view = [&](const WeightLayout& layout, int projection) {
    const int planes = std::min(layout.planes(), static_cast<int>(set_count));
    std::array<const std::byte*, kMaxPlanes> starts{};
    const std::byte* set = base;
    for (int plane = 0; plane < planes; ++plane) {
      starts[plane] = set + expert.PlaneOffset(projection, plane);
      set += expert.sets[plane].bytes;
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
