#include "engine/arch/arch_table.h"

#include <array>

namespace sluice {
namespace {

constexpr std::array kArchitectures = {
    Architecture{.family = "mixtral",
                 .vocab = 32000,
                 .hidden = 4096,
                 .intermediate = 14336,
                 .layers = 32,
                 .heads = 32,
                 .kv_heads = 8,
                 .max_positions = 4096 * 32,
                 .norm_eps = 1e-5,
                 .rope_theta = 1e6,
                 .experts = 8,
                 .experts_per_token = 2,
                 .expert_intermediate = 0,
                 .shared_intermediate = 0,
                 .bos_id = 1,
                 .eos_id = 2,
                 .qkv_bias = false,
                 .always_renormalizes = true,
                 .has_dense_layers = false,
                 .has_clip_qkv = false,
                 .qk_norm = QkNorm::kNone,
                 .sliding_window = SlidingWindowRule::kAllLayers,
                 .bias = AttentionBiasRule::kNone,
                 .moe_module = "block_sparse_moe",
                 .expert_gate = "w1",
                 .expert_up = "w3",
                 .expert_down = "w2"},
    Architecture{.family = "olmoe",
                 .vocab = 50304,
                 .hidden = 2048,
                 .intermediate = 2048,
                 .layers = 16,
                 .heads = 16,
                 .kv_heads = 0,
                 .max_positions = 4096,
                 .norm_eps = 1e-5,
                 .rope_theta = 1e4,
                 .experts = 64,
                 .experts_per_token = 8,
                 .expert_intermediate = 0,
                 .shared_intermediate = 0,
                 .bos_id = -1,
                 .eos_id = 50279,
                 .qkv_bias = false,
                 .always_renormalizes = false,
                 .has_dense_layers = false,
                 .has_clip_qkv = true,
                 .qk_norm = QkNorm::kFullWidth,
                 .sliding_window = SlidingWindowRule::kNone,
                 .bias = AttentionBiasRule::kAttentionBias,
                 .moe_module = "mlp",
                 .expert_gate = "gate_proj",
                 .expert_up = "up_proj",
                 .expert_down = "down_proj"},
    Architecture{.family = "qwen2_moe",
                 .vocab = 151936,
                 .hidden = 2048,
                 .intermediate = 5632,
                 .layers = 24,
                 .heads = 16,
                 .kv_heads = 16,
                 .max_positions = 32768,
                 .norm_eps = 1e-6,
                 .rope_theta = 1e4,
                 .experts = 60,
                 .experts_per_token = 4,
                 .expert_intermediate = 1408,
                 .shared_intermediate = 5632,
                 .bos_id = -1,
                 .eos_id = -1,
                 .qkv_bias = true,
                 .always_renormalizes = false,
                 .has_dense_layers = true,
                 .has_clip_qkv = false,
                 .qk_norm = QkNorm::kNone,
                 .sliding_window = SlidingWindowRule::kByLayerType,
                 .bias = AttentionBiasRule::kQkvBias,
                 .moe_module = "mlp",
                 .expert_gate = "gate_proj",
                 .expert_up = "up_proj",
                 .expert_down = "down_proj"},
    Architecture{.family = "qwen3_moe",
                 .vocab = 151936,
                 .hidden = 2048,
                 .intermediate = 6144,
                 .layers = 24,
                 .heads = 32,
                 .kv_heads = 4,
                 .max_positions = 32768,
                 .norm_eps = 1e-6,
                 .rope_theta = 1e4,
                 .experts = 128,
                 .experts_per_token = 8,
                 .expert_intermediate = 768,
                 .shared_intermediate = 0,
                 .bos_id = -1,
                 .eos_id = -1,
                 .qkv_bias = false,
                 .always_renormalizes = false,
                 .has_dense_layers = true,
                 .has_clip_qkv = false,
                 .qk_norm = QkNorm::kPerHead,
                 .sliding_window = SlidingWindowRule::kAllLayersIf,
                 .bias = AttentionBiasRule::kAttentionBias,
                 .moe_module = "mlp",
                 .expert_gate = "gate_proj",
                 .expert_up = "up_proj",
                 .expert_down = "down_proj"},
};

}  // namespace

std::span<const Architecture> Architectures() { return kArchitectures; }

const Architecture* FindArchitecture(std::string_view model_type) {
  for (const Architecture& row : kArchitectures) {
    if (row.family == model_type) return &row;
  }
  return nullptr;
}

std::string SupportedFamilies() {
  std::string names;
  for (const Architecture& row : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += row.family;
  }
  return names;
}

}  // namespace sluice
