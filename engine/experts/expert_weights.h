// Where an expert's weights are. Experts are named by (layer, index); the expert layer asks for
// them by that name once per step and uses what it gets until the step's end.
//
// Today every expert is resident for the life of the process, so a lookup returns plain views. A
// cache of slots gives the same views together with a lease that pins them; only the type returned
// by Lookup changes.
#pragma once

#include <vector>

#include "engine/base/check.h"
#include "engine/experts/expert_id.h"
#include "engine/tensor/tensor.h"

namespace sluice {

// One SwiGLU network: down(silu(gate x) * (up x)). gate and up share a dtype.
struct ExpertWeights {
  PackedMatrix gate;  // [intermediate, hidden]
  PackedMatrix up;    // [intermediate, hidden]
  PackedMatrix down;  // [hidden, intermediate]

  explicit operator bool() const { return static_cast<bool>(gate); }
  size_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
};

class ResidentExperts {
 public:
  ResidentExperts() = default;
  ResidentExperts(int layers, int experts_per_layer)
      : experts_per_layer_(experts_per_layer),
        weights_(static_cast<size_t>(layers) * experts_per_layer) {}

  const ExpertWeights& Lookup(ExpertId id) const { return weights_[Place(id)]; }
  // For the loader: the entry to fill. Entries never move.
  ExpertWeights& Entry(ExpertId id) { return weights_[Place(id)]; }

 private:
  size_t Place(ExpertId id) const {
    SLUICE_CHECK(id.index >= 0 && id.index < experts_per_layer_);
    return static_cast<size_t>(id.layer) * experts_per_layer_ + id.index;
  }

  int experts_per_layer_ = 0;
  std::vector<ExpertWeights> weights_;  // empty entries for dense layers
};

}  // namespace sluice
