#include "engine/arch/tensor_names.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "engine/arch/hf_config.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

ModelConfig Small(const std::string& family, const std::string& fields = "") {
  const Result<ModelConfig> config = ParseHfConfig(
      R"({"model_type":")" + family +
          R"(","hidden_size":8,"num_attention_heads":2,"num_key_value_heads":1,)" +
          R"("num_hidden_layers":2,"vocab_size":10,"intermediate_size":6,)" +
          R"("moe_intermediate_size":4,"shared_expert_intermediate_size":5,"num_experts":3,)" +
          R"("num_experts_per_tok":2)" + (fields.empty() ? "" : "," + fields) + "}",
      "");
  REQUIRE(config);
  return *config;
}

using Shapes = std::map<std::string, std::vector<int64_t>, std::less<>>;

TensorLookup In(const Shapes& shapes) {
  return [&shapes](std::string_view name) -> const std::vector<int64_t>* {
    const auto found = shapes.find(name);
    return found == shapes.end() ? nullptr : &found->second;
  };
}

// Every expected weight at its first (published) or last (fused) place.
Shapes AllShapes(const ModelConfig& config, bool fused) {
  Shapes shapes;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    const auto candidates =
        TensorCandidates(config, expected.role, expected.layer, expected.expert);
    const TensorSlice& chosen = fused ? candidates.back() : candidates.front();
    shapes[chosen.name] = chosen.shape;
  }
  return shapes;
}

}  // namespace

TEST_CASE("Weights have the names that are published for each family", "[arch]") {
  const Shapes mixtral = AllShapes(Small("mixtral"), false);
  CHECK(mixtral.at("model.layers.1.block_sparse_moe.experts.2.w1.weight") ==
        std::vector<int64_t>{6, 8});
  CHECK(mixtral.at("model.layers.1.block_sparse_moe.experts.2.w2.weight") ==
        std::vector<int64_t>{8, 6});
  CHECK(mixtral.at("model.layers.0.block_sparse_moe.gate.weight") == std::vector<int64_t>{3, 8});
  CHECK(mixtral.at("lm_head.weight") == std::vector<int64_t>{10, 8});
  CHECK(mixtral.count("model.layers.0.self_attn.q_norm.weight") == 0);

  const Shapes olmoe = AllShapes(Small("olmoe", R"("attention_bias":true)"), false);
  CHECK(olmoe.at("model.layers.0.self_attn.q_norm.weight") == std::vector<int64_t>{8});
  CHECK(olmoe.at("model.layers.0.self_attn.k_norm.weight") == std::vector<int64_t>{4});
  CHECK(olmoe.at("model.layers.0.self_attn.o_proj.bias") == std::vector<int64_t>{8});
  CHECK(olmoe.at("model.layers.0.self_attn.k_proj.bias") == std::vector<int64_t>{4});

  const Shapes qwen2 = AllShapes(Small("qwen2_moe", R"("mlp_only_layers":[0])"), false);
  CHECK(qwen2.at("model.layers.0.mlp.gate_proj.weight") == std::vector<int64_t>{6, 8});
  CHECK(qwen2.at("model.layers.1.mlp.shared_expert.down_proj.weight") ==
        std::vector<int64_t>{8, 5});
  CHECK(qwen2.at("model.layers.1.mlp.shared_expert_gate.weight") == std::vector<int64_t>{1, 8});
  CHECK(qwen2.at("model.layers.1.mlp.experts.0.gate_proj.weight") == std::vector<int64_t>{4, 8});
  CHECK(qwen2.at("model.layers.1.self_attn.v_proj.bias") == std::vector<int64_t>{4});
  CHECK(qwen2.count("model.layers.1.self_attn.o_proj.bias") == 0);
  CHECK(qwen2.count("model.layers.0.mlp.gate.weight") == 0);

  const Shapes qwen3 =
      AllShapes(Small("qwen3_moe", R"("tie_word_embeddings":true,"head_dim":6)"), false);
  CHECK(qwen3.at("model.layers.0.self_attn.q_norm.weight") == std::vector<int64_t>{6});
  CHECK(qwen3.at("model.layers.0.self_attn.q_proj.weight") == std::vector<int64_t>{12, 8});
  CHECK(qwen3.at("model.layers.0.self_attn.o_proj.weight") == std::vector<int64_t>{8, 12});
  CHECK(qwen3.count("lm_head.weight") == 0);
  CHECK(
      TensorCandidates(Small("qwen3_moe", R"("tie_word_embeddings":true)"), TensorRole::kLmHead)[0]
          .name == "model.embed_tokens.weight");
}

TEST_CASE("An expert's rows are found in a fused tensor", "[arch]") {
  const ModelConfig config = Small("mixtral");
  const Shapes fused = AllShapes(config, true);
  CHECK(fused.at("model.layers.0.mlp.experts.gate_up_proj") == std::vector<int64_t>{3, 12, 8});
  CHECK(fused.at("model.layers.0.mlp.experts.down_proj") == std::vector<int64_t>{3, 8, 6});
  CHECK(fused.count("model.layers.0.mlp.gate.weight") == 1);
  REQUIRE(CheckTensors(config, In(fused)));

  const Result<TensorSlice> gate = FindTensor(config, In(fused), TensorRole::kExpertGate, 0, 2);
  REQUIRE(gate);
  CHECK(gate->first_row == 24);
  CHECK(gate->rows == 6);
  CHECK(gate->columns == 8);
  CHECK(gate->first_element() == 192);
  CHECK(gate->elements() == 48);
  const Result<TensorSlice> up = FindTensor(config, In(fused), TensorRole::kExpertUp, 0, 2);
  REQUIRE(up);
  CHECK(up->first_row == 30);
  CHECK(up->first_element() + up->elements() == 3 * 12 * 8);
  const Result<TensorSlice> down = FindTensor(config, In(fused), TensorRole::kExpertDown, 1, 1);
  REQUIRE(down);
  CHECK(down->name == "model.layers.1.mlp.experts.down_proj");
  CHECK(down->first_row == 8);
  CHECK(down->rows == 8);
  CHECK(down->columns == 6);
}

TEST_CASE("Every missing tensor and every wrong shape is named", "[arch]") {
  for (const char* family : {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}) {
    const ModelConfig config = Small(family);
    for (const bool fused : {false, true}) {
      const Shapes whole = AllShapes(config, fused);
      REQUIRE(CheckTensors(config, In(whole)));
      for (const auto& [name, shape] : whole) {
        INFO(name);
        Shapes damaged = whole;
        damaged.erase(name);
        const Result<void> missing = CheckTensors(config, In(damaged));
        REQUIRE(!missing);
        CHECK(missing.error().code == ErrorCode::kNotFound);
        CHECK(missing.error().message.find(name) != std::string::npos);
        for (const auto& wrong : {std::vector<int64_t>{}, std::vector<int64_t>{shape[0] + 1},
                                  std::vector<int64_t>{1, shape[0], 2}}) {
          damaged[name] = wrong;
          const Result<void> reshaped = CheckTensors(config, In(damaged));
          REQUIRE(!reshaped);
          CHECK(reshaped.error().code == ErrorCode::kCorrupt);
          CHECK(reshaped.error().message.find(name) != std::string::npos);
        }
      }
    }
  }
}

}  // namespace sluice
