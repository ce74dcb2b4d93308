// Architecture as data: everything that the forward pass needs to know about a model, and nothing
// about files or tensors (SEAM). A new model that fits these enums is a row in the architecture
// table (arch_table.h), a tensor-name map (tensor_names.h) and a golden test: never a subclass.
// Source of each field: the Hugging Face configuration of the family, field named in the comment.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

enum class RopeScalingKind { kNone, kLinear, kDynamic, kYarn, kLlama3 };

// `rope_parameters` / `rope_scaling`. Only the fields of the chosen kind are meaningful.
struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 1.0;
  int original_max_position = 0;
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0;        // yarn
  double beta_slow = 1.0;         // yarn
  double attention_factor = 0.0;  // yarn; 0: derived as 0.1 ln(factor) + 1
  double mscale = 0.0;            // yarn, as DeepSeek uses it; 0: unused
  double mscale_all_dim = 0.0;
  bool truncate = true;  // yarn: round the correction range to whole dimensions
};

enum class QkNorm {
  kNone,
  kPerHead,    // RMS norm over head_dim, one weight vector for all heads (Qwen3)
  kFullWidth,  // RMS norm over the whole projected width (OLMoE)
};

enum class Activation { kSilu };

struct RouterConfig {
  int num_experts = 0;
  int experts_per_token = 0;
  bool renormalize = false;  // selected weights are divided by their sum (norm_topk_prob)
};

struct LayerConfig {
  bool sparse = true;      // false: one dense SwiGLU of `dense_intermediate`
  int sliding_window = 0;  // 0: full attention; w: a token sees itself and the w - 1 before it
};

struct ModelConfig {
  std::string family;      // HF model_type: "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"
  int hidden = 0;          // hidden_size
  int vocab = 0;           // vocab_size (rows of the embedding; may exceed the tokenizer's)
  int heads = 0;           // num_attention_heads
  int kv_heads = 0;        // num_key_value_heads; divides heads
  int head_dim = 0;        // head_dim, or hidden / heads
  int max_positions = 0;   // max_position_embeddings
  double norm_eps = 1e-6;  // rms_norm_eps
  double rope_theta = 10000.0;
  int rotary_dim = 0;  // head_dim, unless the model rotates a part
  RopeScaling rope_scaling;
  QkNorm qk_norm = QkNorm::kNone;
  double clip_qkv = 0.0;  // OLMoE clip_qkv; 0: off
  bool qkv_bias = false;
  bool o_bias = false;
  bool tied_embeddings = false;
  Activation activation = Activation::kSilu;
  RouterConfig router;
  int expert_intermediate = 0;  // width of one expert
  int shared_intermediate = 0;  // width of the shared expert; 0: none
  bool shared_gate = false;     // its output is multiplied by sigmoid(w . x) (Qwen2-MoE)
  int dense_intermediate = 0;   // width of dense layers
  std::vector<LayerConfig> layers;
  std::vector<int32_t> eos_ids;  // generation_config.json first, then config.json
  int32_t bos_id = -1;

  int num_layers() const { return static_cast<int>(layers.size()); }
};

}  // namespace sluice
