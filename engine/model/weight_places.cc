#include "engine/model/weight_places.h"

#include <string>

#include "engine/base/check.h"

namespace sluice {
namespace {

PackedMatrix* ExpertMatrix(ExpertWeights& expert, TensorRole role) {
  switch (role) {
    case TensorRole::kExpertGate:
    case TensorRole::kSharedGate:
    case TensorRole::kDenseGate:
      return &expert.gate;
    case TensorRole::kExpertUp:
    case TensorRole::kSharedUp:
    case TensorRole::kDenseUp:
      return &expert.up;
    default:
      return &expert.down;
  }
}

const char* TypeName(const PackedMatrix& matrix) {
  return matrix.is_nested() ? "bit-nested" : DTypeName(matrix.dtype);
}

}  // namespace

WeightPlace PlaceOf(const ModelConfig& config, const ExpectedTensor& expected,
                    ModelWeights* weights) {
  switch (expected.role) {
    case TensorRole::kEmbedding:
      if (config.tied_embeddings) return {.matrix = &weights->head};
      return {.view = &weights->embedding.rows};
    case TensorRole::kFinalNorm:
      return {.vector = &weights->final_norm};
    case TensorRole::kLmHead:
      return {.matrix = &weights->head};
    default:
      break;
  }
  LayerWeights& layer = weights->layers[expected.layer];
  switch (expected.role) {
    case TensorRole::kAttentionNorm:
      return {.vector = &layer.attention_norm};
    case TensorRole::kQ:
      return {.matrix = &layer.q};
    case TensorRole::kK:
      return {.matrix = &layer.k};
    case TensorRole::kV:
      return {.matrix = &layer.v};
    case TensorRole::kO:
      return {.matrix = &layer.o};
    case TensorRole::kQBias:
      return {.vector = &layer.q_bias};
    case TensorRole::kKBias:
      return {.vector = &layer.k_bias};
    case TensorRole::kVBias:
      return {.vector = &layer.v_bias};
    case TensorRole::kOBias:
      return {.vector = &layer.o_bias};
    case TensorRole::kQNorm:
      return {.vector = &layer.q_norm};
    case TensorRole::kKNorm:
      return {.vector = &layer.k_norm};
    case TensorRole::kMoeNorm:
      return {.vector = &layer.moe.norm};
    case TensorRole::kRouter:
      return {.matrix = &layer.moe.router, .f32 = true};
    case TensorRole::kSharedGateWeight:
      return {.matrix = &layer.moe.shared_gate, .f32 = true};
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown:
      return {.matrix = ExpertMatrix(weights->experts.Entry({expected.layer, expected.expert}),
                                     expected.role)};
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
    case TensorRole::kSharedDown:
      return {.matrix = ExpertMatrix(layer.moe.shared, expected.role)};
    case TensorRole::kDenseGate:
    case TensorRole::kDenseUp:
    case TensorRole::kDenseDown:
      return {.matrix = ExpertMatrix(layer.moe.dense, expected.role)};
    default:
      break;
  }
  SLUICE_CHECK(false, "a tensor role without a place");
}

void FinishPlaces(const ModelConfig& config, ModelWeights* weights) {
  if (config.tied_embeddings) weights->embedding.packed = weights->head;
  if (!weights->layers.empty()) weights->dtype = weights->layers[0].q.dtype;
}

Result<> CheckWeightPairs(const ModelConfig& config, const ModelWeights& weights) {
  const auto check = [](const ExpertWeights& expert, const std::string& where) -> Result<> {
    if (!expert || expert.gate.activation_form() == expert.up.activation_form()) return {};
    return Unsupported("the gate and up projections of " + where + " have different types (" +
                       TypeName(expert.gate) + " and " + TypeName(expert.up) + ")");
  };
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const std::string where = "layer " + std::to_string(layer);
    const MoeWeights& moe = weights.layers[layer].moe;
    if (auto ok = check(moe.dense, where); !ok) return ok;
    if (auto ok = check(moe.shared, where + "'s shared expert"); !ok) return ok;
    if (!config.layers[layer].sparse || weights.tiered != nullptr) continue;
    for (int expert = 0; expert < config.router.num_experts; ++expert) {
      auto ok = check(weights.experts.Lookup({layer, expert}),
                      where + ", expert " + std::to_string(expert));
      if (!ok) return ok;
    }
  }
  return {};
}

}  // namespace sluice
