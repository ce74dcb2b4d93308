// What a calibrated pack knows of its experts' use before the first token.
#pragma once

#include <vector>

#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_id.h"
#include "engine/formats/pack.h"

namespace sluice {

// The share of the calibration text's tokens that chose each expert, as `sluice pack` writes it
// into the provenance: calibration.expert_frequency[layer][expert], rows of dense layers empty.
// Empty when there is none, or when it does not fit `space` or is no share: provenance is free-form
// and untrusted, and a pack serves as well without it.
ExpertPrior ReadPackPrior(const PackMetadata& metadata, ExpertSpace space);

// All places, the most frequent first; equal ones, and all without a prior, by place.
std::vector<int> PlacesByFrequency(ExpertSpace space, const ExpertPrior& prior);

}  // namespace sluice
