#include "engine/arch/hf_config.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/arch/arch_table.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A small configuration of the family with these fields added or replaced.
std::string Config(const std::string& family, const std::string& fields = "") {
  std::string text = R"({"model_type":")" + family + "\"";
  for (const std::string field :
       {R"("hidden_size":64)", R"("num_attention_heads":4)", R"("num_key_value_heads":2)",
        R"("num_hidden_layers":4)", R"("vocab_size":100)"}) {
    if (!Contains(fields, field.substr(0, field.find(':')))) text += "," + field;
  }
  return text + (fields.empty() ? "" : "," + fields) + "}";
}

ModelConfig Parse(const std::string& family, const std::string& fields = "",
                  const std::string& generation = "") {
  const Result<ModelConfig> config = ParseHfConfig(Config(family, fields), generation);
  INFO(fields);
  REQUIRE(config);
  return *config;
}

void Refuses(const std::string& family, const std::string& fields, const std::string& expected,
             ErrorCode code = ErrorCode::kInvalidArgument) {
  const Result<ModelConfig> config = ParseHfConfig(Config(family, fields), "");
  INFO(fields);
  REQUIRE(!config);
  INFO(config.error().message);
  CHECK(config.error().code == code);
  CHECK(Contains(config.error().message, "config.json: "));
  CHECK(Contains(config.error().message, expected));
}

std::vector<bool> Sparse(const ModelConfig& config) {
  std::vector<bool> sparse;
  for (const LayerConfig& layer : config.layers) sparse.push_back(layer.sparse);
  return sparse;
}

std::vector<int> Windows(const ModelConfig& config) {
  std::vector<int> windows;
  for (const LayerConfig& layer : config.layers) windows.push_back(layer.sliding_window);
  return windows;
}

}  // namespace

TEST_CASE("Absent fields take the defaults of the family's configuration class", "[arch]") {
  const Result<ModelConfig> mixtral = ParseHfConfig(R"({"model_type":"mixtral"})", "");
  REQUIRE(mixtral);
  CHECK(mixtral->hidden == 4096);
  CHECK(mixtral->vocab == 32000);
  CHECK(mixtral->num_layers() == 32);
  CHECK(mixtral->heads == 32);
  CHECK(mixtral->kv_heads == 8);
  CHECK(mixtral->head_dim == 128);
  CHECK(mixtral->rotary_dim == 128);
  CHECK(mixtral->max_positions == 131072);
  CHECK(mixtral->norm_eps == 1e-5);
  CHECK(mixtral->rope_theta == 1e6);
  CHECK(mixtral->router.num_experts == 8);
  CHECK(mixtral->router.experts_per_token == 2);
  CHECK(mixtral->router.renormalize);
  CHECK(mixtral->expert_intermediate == 14336);
  CHECK(mixtral->shared_intermediate == 0);
  CHECK(mixtral->qk_norm == QkNorm::kNone);
  CHECK(!mixtral->qkv_bias);
  CHECK(mixtral->eos_ids == std::vector<int32_t>{2});
  CHECK(mixtral->bos_id == 1);
  CHECK(Windows(*mixtral) == std::vector<int>(32, 0));

  const Result<ModelConfig> olmoe = ParseHfConfig(R"({"model_type":"olmoe"})", "");
  REQUIRE(olmoe);
  CHECK(olmoe->kv_heads == 16);
  CHECK(olmoe->router.num_experts == 64);
  CHECK(olmoe->router.experts_per_token == 8);
  CHECK(!olmoe->router.renormalize);
  CHECK(olmoe->expert_intermediate == 2048);
  CHECK(olmoe->qk_norm == QkNorm::kFullWidth);
  CHECK(olmoe->clip_qkv == 0.0);
  CHECK(olmoe->eos_ids == std::vector<int32_t>{50279});
  CHECK(olmoe->bos_id == -1);

  const Result<ModelConfig> qwen2 = ParseHfConfig(R"({"model_type":"qwen2_moe"})", "");
  REQUIRE(qwen2);
  CHECK(qwen2->qkv_bias);
  CHECK(!qwen2->o_bias);
  CHECK(qwen2->shared_intermediate == 5632);
  CHECK(qwen2->shared_gate);
  CHECK(qwen2->dense_intermediate == 5632);
  CHECK(qwen2->expert_intermediate == 1408);
  CHECK(qwen2->router.num_experts == 60);
  CHECK(qwen2->norm_eps == 1e-6);
  CHECK(qwen2->eos_ids.empty());

  const Result<ModelConfig> qwen3 = ParseHfConfig(R"({"model_type":"qwen3_moe"})", "");
  REQUIRE(qwen3);
  CHECK(qwen3->qk_norm == QkNorm::kPerHead);
  CHECK(qwen3->kv_heads == 4);
  CHECK(qwen3->head_dim == 64);
  CHECK(qwen3->router.num_experts == 128);
  CHECK(qwen3->expert_intermediate == 768);
  CHECK(qwen3->dense_intermediate == 6144);
  CHECK(qwen3->rope_theta == 1e4);
}

TEST_CASE("An unsupported model type is refused with the list of supported ones", "[arch]") {
  for (const char* text : {R"({"model_type":"llama"})", R"({})", R"({"model_type":null})"}) {
    const Result<ModelConfig> config = ParseHfConfig(text, "");
    REQUIRE(!config);
    CHECK(config.error().code == ErrorCode::kUnsupported);
    CHECK(Contains(config.error().message, "model_type"));
    CHECK(Contains(config.error().message, "mixtral, olmoe, qwen2_moe, qwen3_moe"));
  }
  CHECK(Contains(ParseHfConfig(R"({"model_type":"llama"})", "").error().message, "\"llama\""));
}

TEST_CASE("Text that is no JSON object is refused", "[arch]") {
  for (const char* text : {"", "{", "[]", "3", "{\"model_type\":\"olmoe\",}", "{} {}"}) {
    CHECK(!ParseHfConfig(text, ""));
    CHECK(!ParseHfConfig(R"({"model_type":"olmoe"})", std::string(text) + " ["));
  }
  CHECK(!ParseHfConfig(std::string(200000, '['), ""));
  const std::string twice = R"({"model_type":"olmoe","vocab_size":9,"vocab_size":9})";
  CHECK(Contains(ParseHfConfig(twice, "").error().message, "\"vocab_size\" appears twice"));
}

TEST_CASE("Router switches are read", "[arch]") {
  CHECK(Parse("mixtral", R"("norm_topk_prob":false)").router.renormalize);
  CHECK(Parse("olmoe", R"("norm_topk_prob":true)").router.renormalize);
  CHECK(Parse("qwen3_moe", R"("num_local_experts":6,"num_experts_per_tok":3)").router.num_experts ==
        6);
  CHECK(Parse("mixtral", R"("num_experts":6)").router.num_experts == 6);
  Refuses("olmoe", R"("num_experts":6,"num_local_experts":7)", "differ");
  Refuses("olmoe", R"("num_experts":6,"num_experts_per_tok":7)", "num_experts_per_tok");
  Refuses("olmoe", R"("num_experts":0)", "num_experts");
}

TEST_CASE("Dense layers among sparse ones follow decoder_sparse_step and mlp_only_layers",
          "[arch]") {
  CHECK(Sparse(Parse("qwen2_moe")) == std::vector<bool>{true, true, true, true});
  CHECK(Sparse(Parse("qwen2_moe", R"("decoder_sparse_step":2)")) ==
        std::vector<bool>{false, true, false, true});
  CHECK(Sparse(Parse("qwen3_moe", R"("mlp_only_layers":[0,3])")) ==
        std::vector<bool>{false, true, true, false});
  CHECK(Sparse(Parse("qwen3_moe", R"("decoder_sparse_step":3,"mlp_only_layers":[2])")) ==
        std::vector<bool>{false, false, false, false});
  CHECK(Sparse(Parse("mixtral", R"("decoder_sparse_step":2)")) ==
        std::vector<bool>{true, true, true, true});
  Refuses("qwen2_moe", R"("decoder_sparse_step":0)", "decoder_sparse_step");
  Refuses("qwen2_moe", R"("mlp_only_layers":[4])", "mlp_only_layers");
  Refuses("qwen2_moe", R"("mlp_only_layers":[-1])", "mlp_only_layers");
  Refuses("qwen2_moe", R"("mlp_only_layers":2)", "mlp_only_layers");
}

TEST_CASE("Sliding windows follow each family's own rule", "[arch]") {
  CHECK(Windows(Parse("mixtral", R"("sliding_window":null)")) == std::vector<int>{0, 0, 0, 0});
  CHECK(Windows(Parse("mixtral", R"("sliding_window":7)")) == std::vector<int>{7, 7, 7, 7});
  CHECK(Windows(Parse("qwen3_moe", R"("sliding_window":7)")) == std::vector<int>{0, 0, 0, 0});
  CHECK(Windows(Parse("qwen3_moe", R"("sliding_window":7,"use_sliding_window":true)")) ==
        std::vector<int>{7, 7, 7, 7});
  CHECK(Windows(Parse("qwen3_moe", R"("use_sliding_window":true)")) ==
        std::vector<int>{4096, 4096, 4096, 4096});
  CHECK(Windows(Parse("qwen3_moe", R"("sliding_window":null,"use_sliding_window":true)")) ==
        std::vector<int>{0, 0, 0, 0});

  const std::string on = R"("sliding_window":7,"use_sliding_window":true)";
  CHECK(Windows(Parse("qwen2_moe", R"("sliding_window":0)")) == std::vector<int>{0, 0, 0, 0});
  CHECK(Windows(Parse("qwen2_moe", on)) == std::vector<int>{7, 0, 7, 0});
  CHECK(Windows(Parse("qwen2_moe", on + R"(,"max_window_layers":2)")) ==
        std::vector<int>{7, 0, 0, 0});
  CHECK(Windows(Parse("qwen2_moe", on + R"(,"layer_types":["full_attention","sliding_attention",)"
                                        R"("sliding_attention","attention"])")) ==
        std::vector<int>{0, 7, 7, 0});

  const std::string sliding_types = R"("layer_types":["full_attention","sliding_attention",)"
                                    R"("full_attention","full_attention"])";
  Refuses("qwen2_moe", sliding_types, "use_sliding_window");
  Refuses("qwen2_moe", on + R"(,"layer_types":["full_attention"])", "layer_types");
  Refuses("qwen2_moe", on + R"(,"layer_types":["full_attention","x","x","x"])", "\"x\"",
          ErrorCode::kUnsupported);
  Refuses("qwen2_moe", R"("sliding_window":null,"use_sliding_window":true)", "sliding_window");
  Refuses("mixtral", sliding_types, "layer_types", ErrorCode::kUnsupported);
  Refuses("mixtral", R"("sliding_window":0)", "sliding_window");
  Refuses("olmoe", R"("sliding_window":5)", "sliding_window", ErrorCode::kUnsupported);
}

TEST_CASE("Attention switches are read", "[arch]") {
  CHECK(Parse("qwen3_moe", R"("head_dim":32)").head_dim == 32);
  CHECK(Parse("mixtral", R"("head_dim":null)").head_dim == 16);
  CHECK(Parse("olmoe", R"("num_key_value_heads":null)").kv_heads == 4);
  CHECK(Parse("olmoe", R"("clip_qkv":2.5)").clip_qkv == 2.5);
  CHECK(Parse("mixtral", R"("clip_qkv":2.5)").clip_qkv == 0.0);
  CHECK(!Parse("qwen2_moe", R"("qkv_bias":false)").qkv_bias);
  CHECK(!Parse("mixtral", R"("attention_bias":true)").qkv_bias);
  const ModelConfig biased = Parse("qwen3_moe", R"("attention_bias":true)");
  CHECK(biased.qkv_bias);
  CHECK(biased.o_bias);
  CHECK(Parse("qwen3_moe", R"("tie_word_embeddings":true)").tied_embeddings);
  Refuses("mixtral", R"("num_key_value_heads":3)", "num_key_value_heads");
  Refuses("mixtral", R"("head_dim":15)", "head_dim");
  Refuses("mixtral", R"("head_dim":0)", "head_dim");
  Refuses("mixtral", R"("hidden_size":66)", "hidden_size");
  Refuses("mixtral", R"("hidden_size":4)", "head_dim");
  Refuses("olmoe", R"("head_dim":32)", "head_dim");
  Refuses("olmoe", R"("clip_qkv":-1)", "clip_qkv");
  Refuses("olmoe", R"("clip_qkv":0)", "clip_qkv");
}

TEST_CASE("Rope parameters are read in the form of transformers 5 and in the one before",
          "[arch]") {
  const ModelConfig now = Parse(
      "qwen3_moe", R"("rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":5000.0})");
  CHECK(now.rope_theta == 5000.0);
  CHECK(now.rope_scaling.kind == RopeScalingKind::kLinear);
  CHECK(now.rope_scaling.factor == 2.0);
  const ModelConfig before =
      Parse("qwen3_moe", R"("rope_theta":5000.0,"rope_scaling":{"type":"linear","factor":2})");
  CHECK(before.rope_theta == 5000.0);
  CHECK(before.rope_scaling.kind == RopeScalingKind::kLinear);
  CHECK(before.rope_scaling.factor == 2.0);
  CHECK(Parse("qwen3_moe", R"("rope_theta":500,"rope_scaling":null)").rope_scaling.kind ==
        RopeScalingKind::kNone);
  CHECK(Parse("qwen3_moe", R"("rope_scaling":{"rope_type":"default"})").rope_scaling.kind ==
        RopeScalingKind::kNone);

  const ModelConfig dynamic =
      Parse("mixtral",
            R"("max_position_embeddings":40,"rope_scaling":{"rope_type":"dynamic","factor":2.6})");
  CHECK(dynamic.rope_scaling.kind == RopeScalingKind::kDynamic);
  CHECK(dynamic.rope_scaling.original_max_position == 40);
  CHECK(dynamic.max_positions == 104);

  const ModelConfig yarn =
      Parse("mixtral", R"("max_position_embeddings":128,"rope_scaling":{"type":"yarn","factor":4,)"
                       R"("original_max_position_embeddings":32,"truncate":false,"beta_fast":0,)"
                       R"("mscale":0.5,"attention_factor":1.5})");
  CHECK(yarn.rope_scaling.kind == RopeScalingKind::kYarn);
  CHECK(yarn.rope_scaling.original_max_position == 32);
  CHECK(yarn.rope_scaling.beta_fast == 32.0);
  CHECK(yarn.rope_scaling.mscale == 0.5);
  CHECK(yarn.rope_scaling.attention_factor == 1.5);
  CHECK(!yarn.rope_scaling.truncate);
  CHECK(yarn.max_positions == 128);
  CHECK(Parse("mixtral", R"("max_position_embeddings":128,"original_max_position_embeddings":16,)"
                         R"("rope_scaling":{"type":"yarn"})")
            .rope_scaling.factor == 8.0);

  const std::string llama3 = R"("rope_scaling":{"rope_type":"llama3","factor":8,)"
                             R"("low_freq_factor":1,"high_freq_factor":)";
  CHECK(Parse("mixtral", llama3 + "4}").rope_scaling.high_freq_factor == 4.0);
  Refuses("mixtral", llama3 + "1}", "high_freq_factor");
  Refuses("mixtral", llama3 + "null}", "rope_scaling.high_freq_factor is missing");
  Refuses("mixtral", R"("rope_scaling":{"type":"linear"})", "factor is missing");
  Refuses("mixtral", R"("rope_scaling":{"type":"linear","factor":0})", "rope_scaling.factor");
  Refuses("mixtral", R"("rope_scaling":{"type":"linear","factor":"2"})", "rope_scaling.factor");
  Refuses("mixtral", R"("rope_scaling":{"type":"longrope","factor":2})", "\"longrope\"",
          ErrorCode::kUnsupported);
  Refuses("mixtral", R"("rope_scaling":{"type":5})", "rope_scaling.type");
  Refuses("mixtral", R"("rope_scaling":[1])", "rope_scaling");
  Refuses("mixtral", R"("rope_theta":0)", "rope_theta");
  Refuses("mixtral", R"("partial_rotary_factor":0.5)", "partial_rotary_factor",
          ErrorCode::kUnsupported);
  Refuses("qwen2_moe", R"("rope_parameters":{"full_attention":{"rope_type":"default"}})",
          "full_attention", ErrorCode::kUnsupported);
}

TEST_CASE("What would change results and is not served is refused by name", "[arch]") {
  Refuses("olmoe", R"("hidden_act":"gelu")", "hidden_act \"gelu\"", ErrorCode::kUnsupported);
  CHECK(Parse("olmoe", R"("hidden_act":"silu")").activation == Activation::kSilu);
  Refuses("olmoe", R"("quantization_config":{"quant_method":"gptq","bits":4})", "\"gptq\"",
          ErrorCode::kUnsupported);
  Refuses("olmoe", R"("quantization_config":{})", "quantization_config", ErrorCode::kUnsupported);
}

TEST_CASE("Every number is range-checked with a sentence that names the field", "[arch]") {
  const std::vector<std::string> fields = {"vocab_size",
                                           "hidden_size",
                                           "num_hidden_layers",
                                           "num_attention_heads",
                                           "num_key_value_heads",
                                           "max_position_embeddings",
                                           "num_experts",
                                           "num_experts_per_tok",
                                           "moe_intermediate_size",
                                           "intermediate_size",
                                           "shared_expert_intermediate_size",
                                           "head_dim"};
  const std::vector<std::string> values = {"0",    "-1",    "1e30",    "4294967296",
                                           "1.5",  "\"8\"", "true",    "9223372036854775808",
                                           "[64]", "{}",    "99999999"};
  for (const std::string& field : fields) {
    for (const std::string& value : values) {
      const std::string text = R"({"model_type":"qwen2_moe",")" + field + "\":" + value + "}";
      const Result<ModelConfig> config = ParseHfConfig(text, "");
      INFO(text);
      REQUIRE(!config);
      CHECK(Contains(config.error().message, field));
    }
  }
  Refuses("olmoe", R"("rms_norm_eps":0)", "rms_norm_eps");
  Refuses("olmoe", R"("rms_norm_eps":-1e-6)", "rms_norm_eps");
  Refuses("olmoe", R"("tie_word_embeddings":1)", "tie_word_embeddings");
  CHECK(!ParseHfConfig(Config("olmoe", R"("rms_norm_eps":1e999)"), ""));
}

TEST_CASE("Special ids come from generation_config.json first, then from config.json", "[arch]") {
  const std::string both = R"("eos_token_id":7,"bos_token_id":1)";
  CHECK(Parse("olmoe", both).eos_ids == std::vector<int32_t>{7});
  CHECK(Parse("olmoe", both, R"({"eos_token_id":[9,8,9]})").eos_ids == std::vector<int32_t>{9, 8});
  CHECK(Parse("olmoe", both, R"({"eos_token_id":[9]})").bos_id == 1);
  CHECK(Parse("olmoe", both, R"({"bos_token_id":3})").bos_id == 3);
  CHECK(Parse("olmoe", both, R"({"eos_token_id":null})").eos_ids == std::vector<int32_t>{7});
  CHECK(Parse("olmoe", R"("eos_token_id":[3,4])").eos_ids == std::vector<int32_t>{3, 4});
  // The class's default, 50279, is outside this vocabulary and can never be sampled.
  CHECK(Parse("olmoe").eos_ids.empty());
  CHECK(Parse("mixtral").eos_ids == std::vector<int32_t>{2});
  CHECK(Parse("mixtral", R"("eos_token_id":null)").eos_ids.empty());
  CHECK(Parse("mixtral", R"("eos_token_id":100)").eos_ids.empty());
  Refuses("olmoe", R"("eos_token_id":-1)", "eos_token_id");
  Refuses("olmoe", R"("eos_token_id":"</s>")", "eos_token_id");
  const Result<ModelConfig> wrong =
      ParseHfConfig(Config("olmoe"), R"({"eos_token_id":[1,"</s>"]})");
  REQUIRE(!wrong);
  CHECK(Contains(wrong.error().message, "generation_config.json: eos_token_id"));
}

TEST_CASE("A directory without a configuration is refused with the file's name", "[arch]") {
  namespace fs = std::filesystem;
  std::string pattern = (fs::temp_directory_path() / "sluice_arch_XXXXXX").string();
  REQUIRE(mkdtemp(pattern.data()) != nullptr);
  const fs::path directory = pattern;
  const Result<ModelConfig> absent = LoadHfConfig(directory);
  REQUIRE(!absent);
  CHECK(absent.error().code == ErrorCode::kNotFound);
  CHECK(Contains(absent.error().message, (directory / "config.json").string()));

  const std::string whole = Config("qwen2_moe", R"("eos_token_id":3)");
  for (size_t length = 0; length <= whole.size(); ++length) {
    std::ofstream(directory / "config.json") << whole.substr(0, length);
    CHECK(LoadHfConfig(directory).has_value() == (length == whole.size()));
  }
  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id":)";
  const Result<ModelConfig> damaged = LoadHfConfig(directory);
  REQUIRE(!damaged);
  CHECK(Contains(damaged.error().message, "generation_config.json"));
  CHECK(Contains(damaged.error().message, directory.string()));
  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id":4})";
  CHECK(LoadHfConfig(directory)->eos_ids == std::vector<int32_t>{4});
  fs::remove_all(directory);
}

}  // namespace sluice
