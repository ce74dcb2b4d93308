// Numbers for weights and activations of tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice {

// `count` numbers in [-0.5, 0.5), the same for the same seed.
inline std::vector<float> ScatteredValues(size_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = (static_cast<float>(seed >> 8) / 8388608.0f - 1.0f) * 0.5f;
  }
  return values;
}

}  // namespace sluice
