// A model's weights from a pack: bytes go from the file to where kernels read them, unchanged.
#pragma once

#include <functional>
#include <string>

#include "engine/arch/model_config.h"
#include "engine/arch/tensor_names.h"
#include "engine/base/result.h"
#include "engine/formats/pack.h"
#include "engine/model/weights.h"
#include "engine/tensor/backend.h"

namespace sluice {

// The name that a weight outside the routed experts has in a pack: that of the Hugging Face
// checkpoint ("model.layers.0.self_attn.q_proj.weight").
std::string PackTensorName(const ModelConfig& config, const ExpectedTensor& expected);

// Reads the whole model. `expert_bits`: routed experts at the highest precision up to this many
// bits (2 to 8), 0: all there is. Errors name the tensor or expert: missing, another shape than the
// configuration asks for, a form that its role cannot have, damaged bytes.
Result<ModelWeights> LoadPackWeights(const PackReader& pack, const ModelConfig& config,
                                     int expert_bits, Backend* backend,
                                     const std::function<void(double)>& progress);

}  // namespace sluice
