// How experts are named: by (layer, index), or by one number where tables are indexed.
#pragma once

#include <cstddef>

#include "engine/base/check.h"

namespace sluice {

struct ExpertId {
  int layer = 0;
  int index = 0;

  bool operator==(const ExpertId&) const = default;
};

// All places that an expert can have in a model: [layers, experts_per_layer]. Dense layers have
// places too, which stay empty.
struct ExpertSpace {
  int layers = 0;
  int experts_per_layer = 0;

  int size() const { return layers * experts_per_layer; }
  // The place of an expert: tables over all experts are indexed by it.
  int place(ExpertId id) const {
    SLUICE_CHECK(id.layer >= 0 && id.layer < layers && id.index >= 0 &&
                 id.index < experts_per_layer);
    return id.layer * experts_per_layer + id.index;
  }
  ExpertId id(int place) const { return {place / experts_per_layer, place % experts_per_layer}; }

  bool operator==(const ExpertSpace&) const = default;
};

}  // namespace sluice
