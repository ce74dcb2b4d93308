#include "engine/arch/tensor_names.h"

#include <utility>

#include "engine/arch/arch_table.h"
#include "engine/base/check.h"

namespace sluice {
namespace {

TensorSlice Vector(std::string name, int64_t length) {
  return {.name = std::move(name), .shape = {length}, .first_row = 0, .rows = 1, .columns = length};
}

TensorSlice Matrix(std::string name, int64_t rows, int64_t columns) {
  return {.name = std::move(name),
          .shape = {rows, columns},
          .first_row = 0,
          .rows = rows,
          .columns = columns};
}

// `rows` rows at `first_row` of each expert's [height, columns] part of a fused tensor.
TensorSlice FusedPart(std::string name, int64_t experts, int64_t height, int64_t columns,
                      int64_t expert, int64_t first_row, int64_t rows) {
  return {.name = std::move(name),
          .shape = {experts, height, columns},
          .first_row = expert * height + first_row,
          .rows = rows,
          .columns = columns};
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

}  // namespace

std::vector<TensorSlice> TensorCandidates(const ModelConfig& config, TensorRole role, int layer,
                                          int expert) {
  const Architecture* arch = FindArchitecture(config.family);
  SLUICE_CHECK(arch != nullptr, "a ModelConfig of a family outside the table");
  const int64_t hidden = config.hidden;
  const int64_t q_width = int64_t{config.heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  const bool full_norm = config.qk_norm == QkNorm::kFullWidth;
  const std::string block = "model.layers." + std::to_string(layer) + ".";
  const std::string attention = block + "self_attn.";
  const std::string dense = block + "mlp.";
  const std::string shared = block + "mlp.shared_expert.";

  // One expert's matrix: its own tensor, or its part of the layer's fused one.
  const auto expert_matrix = [&](std::string_view part) {
    const int64_t width = config.expert_intermediate;
    const int64_t experts = config.router.num_experts;
    const bool down = role == TensorRole::kExpertDown;
    const std::string own = block + std::string(arch->moe_module) + ".experts." +
                            std::to_string(expert) + "." + std::string(part) + ".weight";
    std::vector<TensorSlice> candidates;
    candidates.push_back(down ? Matrix(own, hidden, width) : Matrix(own, width, hidden));
    if (down) {
      candidates.push_back(
          FusedPart(block + "mlp.experts.down_proj", experts, hidden, width, expert, 0, hidden));
    } else {
      const int64_t first_row = role == TensorRole::kExpertUp ? width : 0;
      candidates.push_back(FusedPart(block + "mlp.experts.gate_up_proj", experts, 2 * width, hidden,
                                     expert, first_row, width));
    }
    return candidates;
  };

  switch (role) {
    case TensorRole::kEmbedding:
      return {Matrix("model.embed_tokens.weight", config.vocab, hidden)};
    case TensorRole::kFinalNorm:
      return {Vector("model.norm.weight", hidden)};
    case TensorRole::kLmHead:
      return {Matrix(config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                     config.vocab, hidden)};
    case TensorRole::kAttentionNorm:
      return {Vector(block + "input_layernorm.weight", hidden)};
    case TensorRole::kQ:
      return {Matrix(attention + "q_proj.weight", q_width, hidden)};
    case TensorRole::kK:
      return {Matrix(attention + "k_proj.weight", kv_width, hidden)};
    case TensorRole::kV:
      return {Matrix(attention + "v_proj.weight", kv_width, hidden)};
    case TensorRole::kO:
      return {Matrix(attention + "o_proj.weight", hidden, q_width)};
    case TensorRole::kQBias:
      return {Vector(attention + "q_proj.bias", q_width)};
    case TensorRole::kKBias:
      return {Vector(attention + "k_proj.bias", kv_width)};
    case TensorRole::kVBias:
      return {Vector(attention + "v_proj.bias", kv_width)};
    case TensorRole::kOBias:
      return {Vector(attention + "o_proj.bias", hidden)};
    case TensorRole::kQNorm:
      return {Vector(attention + "q_norm.weight", full_norm ? q_width : config.head_dim)};
    case TensorRole::kKNorm:
      return {Vector(attention + "k_norm.weight", full_norm ? kv_width : config.head_dim)};
    case TensorRole::kMoeNorm:
      return {Vector(block + "post_attention_layernorm.weight", hidden)};
    case TensorRole::kRouter: {
      const std::string published = block + std::string(arch->moe_module) + ".gate.weight";
      std::vector<TensorSlice> candidates = {Matrix(published, config.router.num_experts, hidden)};
      if (arch->moe_module != "mlp") {
        candidates.push_back(Matrix(dense + "gate.weight", config.router.num_experts, hidden));
      }
      return candidates;
    }
    case TensorRole::kExpertGate:
      return expert_matrix(arch->expert_gate);
    case TensorRole::kExpertUp:
      return expert_matrix(arch->expert_up);
    case TensorRole::kExpertDown:
      return expert_matrix(arch->expert_down);
    case TensorRole::kSharedGate:
      return {Matrix(shared + "gate_proj.weight", config.shared_intermediate, hidden)};
    case TensorRole::kSharedUp:
      return {Matrix(shared + "up_proj.weight", config.shared_intermediate, hidden)};
    case TensorRole::kSharedDown:
      return {Matrix(shared + "down_proj.weight", hidden, config.shared_intermediate)};
    case TensorRole::kSharedGateWeight:
      return {Matrix(dense + "shared_expert_gate.weight", 1, hidden)};
    case TensorRole::kDenseGate:
      return {Matrix(dense + "gate_proj.weight", config.dense_intermediate, hidden)};
    case TensorRole::kDenseUp:
      return {Matrix(dense + "up_proj.weight", config.dense_intermediate, hidden)};
    case TensorRole::kDenseDown:
      return {Matrix(dense + "down_proj.weight", hidden, config.dense_intermediate)};
  }
  SLUICE_CHECK(false, "an unknown tensor role");
}

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  std::vector<ExpectedTensor> expected = {{TensorRole::kEmbedding}};
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const auto add = [&](std::initializer_list<TensorRole> roles, int expert = -1) {
      for (const TensorRole role : roles) expected.push_back({role, layer, expert});
    };
    add({TensorRole::kAttentionNorm, TensorRole::kQ, TensorRole::kK, TensorRole::kV,
         TensorRole::kO});
    if (config.qkv_bias) add({TensorRole::kQBias, TensorRole::kKBias, TensorRole::kVBias});
    if (config.o_bias) add({TensorRole::kOBias});
    if (config.qk_norm != QkNorm::kNone) add({TensorRole::kQNorm, TensorRole::kKNorm});
    add({TensorRole::kMoeNorm});
    if (!config.layers[static_cast<size_t>(layer)].sparse) {
      add({TensorRole::kDenseGate, TensorRole::kDenseUp, TensorRole::kDenseDown});
      continue;
    }
    add({TensorRole::kRouter});
    for (int expert = 0; expert < config.router.num_experts; ++expert) {
      add({TensorRole::kExpertGate, TensorRole::kExpertUp, TensorRole::kExpertDown}, expert);
    }
    if (config.shared_intermediate > 0) {
      add({TensorRole::kSharedGate, TensorRole::kSharedUp, TensorRole::kSharedDown});
      if (config.shared_gate) add({TensorRole::kSharedGateWeight});
    }
  }
  expected.push_back({TensorRole::kFinalNorm});
  if (!config.tied_embeddings) expected.push_back({TensorRole::kLmHead});
  return expected;
}

Result<TensorSlice> FindTensor(const ModelConfig& config, const TensorLookup& lookup,
                               TensorRole role, int layer, int expert) {
  std::vector<TensorSlice> candidates = TensorCandidates(config, role, layer, expert);
  for (TensorSlice& candidate : candidates) {
    const std::vector<int64_t>* shape = lookup(candidate.name);
    if (shape == nullptr) continue;
    if (*shape != candidate.shape) {
      return Corrupt("tensor " + candidate.name + " has shape " + ShapeText(*shape) +
                     ", but config.json asks for " + ShapeText(candidate.shape));
    }
    return std::move(candidate);
  }
  std::string message = "tensor " + candidates[0].name;
  if (candidates.size() > 1) message += " (or " + candidates[1].name + ")";
  return NotFound(message + " is missing; config.json asks for it with shape " +
                  ShapeText(candidates[0].shape));
}

Result<void> CheckTensors(const ModelConfig& config, const TensorLookup& lookup) {
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    Result<TensorSlice> found =
        FindTensor(config, lookup, expected.role, expected.layer, expected.expert);
    if (!found) return found.error();
  }
  return {};
}

}  // namespace sluice
