// Where each weight of a model is: a map from (role, layer, expert) to the tensor of a Hugging Face
// checkpoint, the shape it must have, and the rows of it that hold the weight. Checkpoints as
// published keep one tensor per expert; transformers 5 can also write all experts of a layer fused
// in one (`experts.gate_up_proj` [E, 2I, H], `experts.down_proj` [E, H, I]). Both are accepted, for
// every role on its own.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/base/result.h"

namespace sluice {

// In the comments: H hidden, V vocab, D head_dim, I the width of the (expert, shared, dense) MLP.
enum class TensorRole {
  kEmbedding,         // [V, H]
  kFinalNorm,         // [H]
  kLmHead,            // [V, H]; the embedding itself when embeddings are tied
  kAttentionNorm,     // input_layernorm [H]
  kQ,                 // [heads * D, H]
  kK,                 // [kv_heads * D, H]
  kV,                 // [kv_heads * D, H]
  kO,                 // [H, heads * D]
  kQBias,             // [heads * D]
  kKBias,             // [kv_heads * D]
  kVBias,             // [kv_heads * D]
  kOBias,             // [H]
  kQNorm,             // [D], or [heads * D] with QkNorm::kFullWidth
  kKNorm,             // [D], or [kv_heads * D]
  kMoeNorm,           // post_attention_layernorm [H]
  kRouter,            // [experts, H]
  kExpertGate,        // [I, H]
  kExpertUp,          // [I, H]
  kExpertDown,        // [H, I]
  kSharedGate,        // [I, H]
  kSharedUp,          // [I, H]
  kSharedDown,        // [H, I]
  kSharedGateWeight,  // shared_expert_gate [1, H]
  kDenseGate,         // [I, H]
  kDenseUp,           // [I, H]
  kDenseDown,         // [H, I]
};

// A weight as rows of a tensor. With the tensor seen as [product of all but the last, last], the
// weight is `rows` rows of `columns` values from `first_row`; a one-dimensional tensor is one row.
struct TensorSlice {
  std::string name;
  std::vector<int64_t> shape;  // of the whole tensor
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t columns = 0;

  int64_t first_element() const { return first_row * columns; }
  int64_t elements() const { return rows * columns; }
};

// The shape of a tensor of the checkpoint, or null when it has no such tensor. The pointer must
// outlive the call that uses it.
using TensorLookup = std::function<const std::vector<int64_t>*(std::string_view name)>;

// One weight that the model has; layer and expert are -1 where the role has none.
struct ExpectedTensor {
  TensorRole role;
  int layer = -1;
  int expert = -1;
};

// Every weight of the model, once, in the order of use: embedding, layers, final norm, head. A tied
// head is not listed.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// The places where the weight may be, the published one first. REQUIRES: a role that the model has
// in that layer.
std::vector<TensorSlice> TensorCandidates(const ModelConfig& config, TensorRole role,
                                          int layer = -1, int expert = -1);

// The place that the checkpoint has. Errors: a missing tensor (kNotFound) or a wrong shape
// (kCorrupt), naming the tensor.
Result<TensorSlice> FindTensor(const ModelConfig& config, const TensorLookup& lookup,
                               TensorRole role, int layer = -1, int expert = -1);

// FindTensor for all of ExpectedTensors: the first fault, or nothing.
Result<void> CheckTensors(const ModelConfig& config, const TensorLookup& lookup);

}  // namespace sluice
