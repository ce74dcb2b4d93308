// One expert's weights, as views into memory that somebody else keeps (expert_source.h says for how
// long).
#pragma once

#include <cstddef>

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

}  // namespace sluice
