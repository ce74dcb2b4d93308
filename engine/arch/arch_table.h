// The table of served families: one row per Hugging Face `model_type`, holding what its
// configuration class assumes for absent fields and which switches its implementation honours.
// Source: transformers 5.23, configuration_<family>.py and modeling_<family>.py.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/arch/model_config.h"

namespace sluice {

enum class SlidingWindowRule {
  kNone,         // always full attention (OLMoE)
  kAllLayers,    // `sliding_window`, when not null, for every layer (Mixtral)
  kAllLayersIf,  // the same, when `use_sliding_window` (Qwen3-MoE)
  kByLayerType,  // `layer_types`, or every other layer below `max_window_layers` (Qwen2-MoE)
};

enum class AttentionBiasRule {
  kNone,
  kQkvBias,        // `qkv_bias`: on q, k and v
  kAttentionBias,  // `attention_bias`: on q, k, v and o
};

struct Architecture {
  std::string_view family;  // model_type

  // Defaults of the configuration class.
  int vocab;
  int hidden;
  int intermediate;
  int layers;
  int heads;
  int kv_heads;  // 0: as many as heads
  int max_positions;
  double norm_eps;
  double rope_theta;
  int experts;
  int experts_per_token;
  int expert_intermediate;  // 0: the field is `intermediate_size`, otherwise
                            // `moe_intermediate_size`
  int shared_intermediate;  // 0: the family has no shared expert
  int bos_id;               // -1: none
  int eos_id;               // -1: none
  bool qkv_bias;

  // Switches and rules.
  bool always_renormalizes;  // otherwise `norm_topk_prob`, default false
  bool has_dense_layers;     // honours `decoder_sparse_step` and `mlp_only_layers`
  bool has_clip_qkv;
  QkNorm qk_norm;
  SlidingWindowRule sliding_window;
  AttentionBiasRule bias;

  // Published tensor names of the sparse block: "model.layers.N.<moe>.experts.E.<gate>.weight".
  std::string_view moe_module;
  std::string_view expert_gate;
  std::string_view expert_up;
  std::string_view expert_down;
};

std::span<const Architecture> Architectures();

// Null when the family is not served.
const Architecture* FindArchitecture(std::string_view model_type);

// "mixtral, olmoe, ...", for messages.
std::string SupportedFamilies();

}  // namespace sluice
