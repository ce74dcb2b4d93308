// A model's weights in memory: packed for the matrix kernels in the type that the checkpoint has
// them in; norms and biases as F32 vectors; routers packed as F32.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/base/result.h"
#include "engine/experts/expert_weights.h"
#include "engine/experts/moe_layer.h"
#include "engine/experts/resident_experts.h"
#include "engine/experts/tiered_experts.h"
#include "engine/formats/safetensors.h"
#include "engine/model/disk_embedding.h"
#include "engine/tensor/backend.h"

namespace sluice {

// Views into the buffers of ModelWeights.
struct LayerWeights {
  const float* attention_norm = nullptr;
  PackedMatrix q, k, v, o;
  const float* q_bias = nullptr;  // nullable, as the next five
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* o_bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  MoeWeights moe;
};

struct ModelWeights {
  DType dtype = DType::kF32;  // of the attention projections, when they are floats
  EmbeddingTable embedding;   // tied: the head's packed matrix is the table
  std::optional<DiskEmbedding> disk_embedding;  // instead of `embedding`
  size_t disk_bytes = 0;                        // of what stays on disk besides routed experts
  const float* final_norm = nullptr;
  PackedMatrix head;
  std::vector<LayerWeights> layers;
  ResidentExperts experts;                // of a checkpoint
  std::unique_ptr<TieredExperts> tiered;  // of a pack
  ActivationForms expert_forms;           // of routed experts in `tiered`

  ExpertSource* source() {
    return tiered != nullptr ? static_cast<ExpertSource*>(tiered.get()) : &experts;
  }

  size_t dense_bytes = 0;   // everything outside routed experts, the row-major table included
  size_t expert_bytes = 0;  // of all routed experts together, wherever they are

  DeviceBuffer dense_memory;
  DeviceBuffer expert_memory;
};

// Reads and packs every tensor that `config` calls for, in file order, through a buffer of a few
// megabytes. Errors name the tensor and what was expected of it: missing, another shape, a type
// that is not F32, F16 or BF16, a truncated file. `progress` (may be empty) gets fractions in [0,
// 1].
Result<ModelWeights> LoadWeights(const SafetensorsReader& reader, const ModelConfig& config,
                                 Backend* backend, const std::function<void(double)>& progress);

}  // namespace sluice
