// Where each weight of a model goes in ModelWeights. Shared by the loaders of checkpoints and
// packs.
#pragma once

#include "engine/arch/model_config.h"
#include "engine/arch/tensor_names.h"
#include "engine/base/result.h"
#include "engine/model/weights.h"

namespace sluice {

// Exactly one pointer is set. They point into the ModelWeights, which must stay where it is.
struct WeightPlace {
  PackedMatrix* matrix = nullptr;  // panels or planes
  const float** vector = nullptr;  // a flat F32 array
  TensorView* view = nullptr;      // row-major, in the source's dtype
  bool f32 = false;                // a matrix that is kept in F32 whatever the checkpoint has
};

// REQUIRES: an element of ExpectedTensors(config); weights->layers and experts are sized.
WeightPlace PlaceOf(const ModelConfig& config, const ExpectedTensor& expected,
                    ModelWeights* weights);

// Sets what follows from the weights that were placed: tied embeddings, dtype.
void FinishPlaces(const ModelConfig& config, ModelWeights* weights);

// The two halves of a SwiGLU network read one packed input, so they must want it in the same form.
// kUnsupported, naming the layer and expert. Routed experts of packs are checked by their loader.
Result<> CheckWeightPairs(const ModelConfig& config, const ModelWeights& weights);

}  // namespace sluice
