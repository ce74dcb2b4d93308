// A model's weights from a pack: bytes go from the file to where kernels read them, unchanged.
#pragma once

#include <memory>
#include <string>

#include "engine/arch/model_config.h"
#include "engine/arch/tensor_names.h"
#include "engine/base/result.h"
#include "engine/formats/pack.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/tensor/backend.h"

namespace sluice {

// The name that a weight outside the routed experts has in a pack: that of the Hugging Face
// checkpoint ("model.layers.0.self_attn.q_proj.weight").
std::string PackTensorName(const ModelConfig& config, const ExpectedTensor& expected);

// Reads all weights but those of routed experts, which get a cache without memory in front of the
// pack (Transformer gives it memory once all else has its own). options: expert_bits, tiers,
// progress. Errors name the tensor or expert: missing, another shape than the configuration asks
// for, a form that its role cannot have, damaged bytes.
Result<ModelWeights> LoadPackWeights(std::shared_ptr<const PackReader> pack,
                                     const ModelConfig& config, const ModelOptions& options,
                                     Backend* backend);

}  // namespace sluice
