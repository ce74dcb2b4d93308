// An expert of a pack, as it lies in memory: views into the bytes of its plane sets.
#pragma once

#include <cstddef>
#include <span>

#include "engine/experts/expert_weights.h"
#include "engine/formats/pack.h"

namespace sluice {

// One weight whose planes [0, planes) start at plane_starts[i]. REQUIRES: kPanels, or kNested with
// planes >= 1; starts are 64-byte aligned.
PackedMatrix ViewWeight(const WeightLayout& layout, int planes,
                        const std::byte* const* plane_starts);

// The expert from its first set_starts.size() plane sets. A projection with fewer planes uses all
// it has. REQUIRES: at least one set; starts are 64-byte aligned.
ExpertWeights ViewExpert(const PackExpert& expert, std::span<const std::byte* const> set_starts);

// The plane sets that give every projection the most precision up to `bits` bits (0: all sets). At
// least one set: a projection of 2 bits has no less.
size_t PlaneSetsFor(const PackExpert& expert, int bits);

}  // namespace sluice
