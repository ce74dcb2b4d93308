// Records what the gates of a model said and would have said early: the raw material for judging
// expert predictors. A backend is put between the model and the CPU that watches the router's
// products go by and applies the gates of the layers ahead to the same input.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/expert_id.h"

namespace sluice {

// What a gate is applied to ahead of its layer.
enum class EarlyInput {
  kOwnNorm,    // today's residual after attention, normed with the weight of the layer ahead
  kGateInput,  // today's gate input as it is (Fate)
};
inline constexpr int kEarlyInputs = 2;

struct GateTrace {
  static constexpr int kMaxDistance = 4;

  ExpertSpace space;  // sparse layers only
  int experts_per_token = 0;
  int tokens = 0;
  std::vector<int64_t> streams;  // [tokens]
  std::vector<int32_t> ids;      // [tokens, layers, experts_per_token]
  // [input][distance]: [tokens, layers, experts] probabilities of the gate of `layer`, computed at
  // layer - distance. Zero where there is no such layer.
  std::vector<float> scores[kEarlyInputs][kMaxDistance + 1];
  // [layers - 1] mean cosine of the gate inputs of layer and layer + 1, and of the residuals that
  // they come from.
  std::vector<double> input_cosine, residual_cosine;

  const int32_t* chosen(int token, int layer) const {
    return &ids[(static_cast<size_t>(token) * space.layers + layer) * experts_per_token];
  }
  const float* gate(EarlyInput input, int distance, int token, int layer) const {
    return &scores[static_cast<int>(input)][distance]
                  [(static_cast<size_t>(token) * space.layers + layer) * space.experts_per_layer];
  }
};

// Runs the model over each stream's tokens (at most 256 of them).
Result<GateTrace> RecordGates(const std::filesystem::path& model,
                              std::span<const std::vector<int32_t>> streams);

}  // namespace sluice
