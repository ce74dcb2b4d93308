#include "engine/convert/gguf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/base/utf8.h"
#include "engine/convert/gguf_fields.h"

namespace sluice {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = 1 << 24;
constexpr int64_t kMaxExperts = 4096;

struct GgufFamily {
  std::string_view architecture;  // general.architecture
  std::string_view family;        // model_type
  std::string_view class_name;
  bool renormalizes;      // where the file does not say
  bool has_norm_setting;  // norm_topk_prob; otherwise always as `renormalizes`
  bool is_qwen;           // moe_intermediate_size, dense layers, use_sliding_window
};

constexpr std::array<GgufFamily, 4> kFamilies = {{
    {"llama", "mixtral", "MixtralForCausalLM", true, false, false},
    {"olmoe", "olmoe", "OlmoeForCausalLM", false, true, false},
    {"qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM", false, true, true},
    {"qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", true, true, true},
}};

// What changes results and is not served, unless it says so itself: a number that does nothing.
struct Neutral {
  std::string_view key;
  double value;
};
constexpr std::array<Neutral, 20> kMustBeNeutral = {{
    {"expert_gating_func", 1},  // 1: softmax
    {"expert_weights_scale", 1},
    {"expert_group_count", 1},
    {"expert_group_scale", 1},
    {"moe_every_n_layers", 1},
    {"interleave_moe_layer_step", 1},
    {"leading_dense_block_count", 0},
    {"nextn_predict_layers", 0},
    {"logit_scale", 1},
    {"residual_scale", 1},
    {"embedding_scale", 1},
    {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0},
    {"router_logit_softcapping", 0},
    {"attention.max_alibi_bias", 0},
    {"attention.temperature_scale", 0},
    {"attention.scale", 0},
    {"rope.scaling.attn_factor", 1},
    {"rope.scaling.yarn_ext_factor", 1},
    {"rope.scaling.yarn_log_multiplier", 0},
}};

class ConfigWriter {
 public:
  ConfigWriter(const GgufReader& reader, const GgufFamily& family)
      : reader_(reader), fields_(reader), family_(family) {}

  Result<GgufConfigTexts> Write() {
    config_["architectures"] = ordered_json::array({std::string(family_.class_name)});
    config_["model_type"] = std::string(family_.family);
    config_["hidden_act"] = "silu";
    RefuseWhatIsNotServed();
    WriteSizes();
    if (fields_.error()) return *fields_.error();
    WriteExperts();
    WriteSlidingWindow();
    WriteRope();
    ordered_json generation = ordered_json::object();
    WriteSpecialIds(&generation);
    if (fields_.error()) return *fields_.error();
    return GgufConfigTexts{config_.dump(2) + "\n", generation.dump(2) + "\n"};
  }

 private:
  std::string Key(std::string_view key) const {
    return std::string(family_.architecture) + "." + std::string(key);
  }
  static std::string Block(int64_t layer, std::string_view name) {
    return "blk." + std::to_string(layer) + "." + std::string(name);
  }
  const std::vector<int64_t>* Shape(const std::string& tensor) const {
    const GgufTensor* found = reader_.Find(tensor);
    return found == nullptr ? nullptr : &found->shape;
  }

  void RefuseWhatIsNotServed() {
    for (const Neutral& neutral : kMustBeNeutral) {
      const GgufValue* value = reader_.FindMetadata(Key(neutral.key));
      if (value == nullptr) continue;
      double number = NAN;
      if (const auto* real = std::get_if<double>(value)) number = *real;
      if (const auto* whole = std::get_if<uint64_t>(value)) number = static_cast<double>(*whole);
      if (const auto* whole = std::get_if<int64_t>(value)) number = static_cast<double>(*whole);
      if (number != neutral.value && number != 0.0) {
        fields_.Refuse(Key(neutral.key) + " asks for something that is not part of " +
                       std::string(family_.family) + " as served");
      }
    }
    if (!fields_.Bool(Key("attention.causal"), true)) {
      fields_.Refuse(Key("attention.causal") + " is false; only causal models are served");
    }
    for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
      if (reader_.Find(name) != nullptr) {
        fields_.Refuse("the tensor " + std::string(name) + " belongs to rope scaling longrope, " +
                       "which is not served");
      }
    }
  }

  void WriteSizes() {
    const std::vector<int64_t>* embedding = Shape("token_embd.weight");
    if (embedding == nullptr || embedding->size() != 2) {
      return fields_.Fail(Corrupt(reader_.path().string() +
                                  ": the tensor token_embd.weight, a matrix, is missing"));
    }
    config_["vocab_size"] = (*embedding)[0];
    hidden_ = fields_.Int(Key("embedding_length"), {}, 1, kMaxWidth);
    layers_ = fields_.Int(Key("block_count"), {}, 1, kMaxLayers);
    // Bounds everything that loops over layers by what the file holds.
    if (static_cast<uint64_t>(layers_) > reader_.tensors().size()) {
      return fields_.Fail(Corrupt(reader_.path().string() + ": " + Key("block_count") + " is " +
                                  std::to_string(layers_) + ", but the file has only " +
                                  std::to_string(reader_.tensors().size()) + " tensors"));
    }
    const int64_t heads = fields_.Int(Key("attention.head_count"), {}, 1, kMaxLayers);
    const int64_t kv_heads = fields_.Int(Key("attention.head_count_kv"), heads, 1, kMaxLayers);
    config_["hidden_size"] = hidden_;
    config_["num_hidden_layers"] = layers_;
    config_["num_attention_heads"] = heads;
    config_["num_key_value_heads"] = kv_heads;
    head_dim_ = fields_.Int(Key("attention.key_length"), hidden_ / heads, 1, kMaxWidth);
    if (fields_.Has(Key("attention.key_length"))) config_["head_dim"] = head_dim_;
    for (const char* same : {"attention.value_length", "rope.dimension_count"}) {
      const int64_t value = fields_.Int(Key(same), head_dim_, 0, kMaxWidth);
      if (value != head_dim_) {
        fields_.Refuse(Key(same) + " is " + std::to_string(value) + ", but heads are " +
                       std::to_string(head_dim_) + " wide; " + std::string(family_.family) +
                       " has one width for both");
      }
    }
    config_["max_position_embeddings"] = fields_.Int(Key("context_length"), {}, 1, 1 << 24);
    config_["rms_norm_eps"] = fields_.Number(Key("attention.layer_norm_rms_epsilon"), {});
    config_["tie_word_embeddings"] = Shape("output.weight") == nullptr;
    const GgufTensor* q = reader_.Find("blk.0.attn_q.weight");
    const GgufType type = q != nullptr && q->type ? q->type->type : GgufType::kF16;
    config_["torch_dtype"] = type == GgufType::kF32    ? "float32"
                             : type == GgufType::kBF16 ? "bfloat16"
                                                       : "float16";
    WriteBiases();
    const double clip = fields_.Number(Key("attention.clamp_kqv"), 0.0);
    if (clip != 0.0) {
      if (family_.family == "olmoe") {
        config_["clip_qkv"] = clip;
      } else {
        fields_.Refuse(Key("attention.clamp_kqv") + " is not part of " +
                       std::string(family_.family));
      }
    }
  }

  void WriteBiases() {
    const bool qkv =
        Shape("blk.0.attn_q.bias") != nullptr || Shape("blk.0.attn_qkv.bias") != nullptr;
    if (family_.family == "mixtral") return;  // a bias is refused as a tensor that is not known
    config_[family_.family == "qwen2_moe" ? "qkv_bias" : "attention_bias"] = qkv;
  }

  // The experts' width: a key, or the shape of the first layer's.
  int64_t ExpertWidth(int64_t fallback) {
    for (int64_t layer = 0; layer < layers_; ++layer) {
      const std::vector<int64_t>* down = Shape(Block(layer, "ffn_down_exps.weight"));
      if (down != nullptr && down->size() == 3) return (*down)[2];
    }
    return fallback;
  }

  void WriteExperts() {
    const int64_t experts = fields_.Int(Key("expert_count"), 0, 0, kMaxExperts);
    if (experts == 0) {
      fields_.Refuse("it is a dense model (" + Key("expert_count") + " is absent or 0); Sluice " +
                     "serves models with experts");
      return;
    }
    // Unstacked experts are three tensors each.
    const std::vector<int64_t>* router = nullptr;
    for (int64_t layer = 0; layer < layers_ && router == nullptr; ++layer) {
      router = Shape(Block(layer, "ffn_gate_inp.weight"));
    }
    if (router == nullptr || router->size() != 2 || (*router)[0] != experts) {
      return fields_.Fail(
          Corrupt(reader_.path().string() + ": no tensor blk.N.ffn_gate_inp.weight has the " +
                  std::to_string(experts) + " rows that " + Key("expert_count") + " asks for"));
    }
    config_["num_experts"] = experts;
    config_["num_experts_per_tok"] = fields_.Int(Key("expert_used_count"), {}, 1, experts);
    const bool renormalize = fields_.Bool(Key("expert_weights_norm"), family_.renormalizes);
    if (family_.has_norm_setting) {
      config_["norm_topk_prob"] = renormalize;
    } else if (renormalize != family_.renormalizes) {
      fields_.Refuse(Key("expert_weights_norm") + " contradicts " + std::string(family_.family) +
                     ", which always renormalises");
    }
    const int64_t width = fields_.Int(Key("feed_forward_length"), ExpertWidth(1), 1, kMaxWidth);
    config_["intermediate_size"] = width;
    if (!family_.is_qwen) return;
    config_["moe_intermediate_size"] =
        fields_.Int(Key("expert_feed_forward_length"), ExpertWidth(width), 1, kMaxWidth);
    if (family_.family == "qwen2_moe") {
      config_["shared_expert_intermediate_size"] =
          fields_.Int(Key("expert_shared_feed_forward_length"), width, 1, kMaxWidth);
    }
    ordered_json dense = ordered_json::array();
    for (int64_t layer = 0; layer < layers_; ++layer) {
      if (Shape(Block(layer, "ffn_gate_inp.weight")) == nullptr &&
          Shape(Block(layer, "ffn_gate.weight")) != nullptr) {
        dense.push_back(layer);
      }
    }
    config_["decoder_sparse_step"] = 1;
    config_["mlp_only_layers"] = std::move(dense);
  }

  void WriteSlidingWindow() {
    const int64_t window = fields_.Int(Key("attention.sliding_window"), 0, 0, kMaxWidth);
    if (window == 0) return;
    const GgufValue* pattern = reader_.FindMetadata(Key("attention.sliding_window_pattern"));
    config_["sliding_window"] = window;
    if (family_.family == "mixtral" && pattern == nullptr) return;
    config_["use_sliding_window"] = true;
    if (family_.family == "qwen3_moe" && pattern == nullptr) return;
    const auto* slides = pattern == nullptr ? nullptr : std::get_if<std::vector<bool>>(pattern);
    if (family_.family != "qwen2_moe" || slides == nullptr ||
        slides->size() != static_cast<size_t>(layers_)) {
      fields_.Refuse(Key("attention.sliding_window") + " is " + std::to_string(window) +
                     ", but which layers of " + std::string(family_.family) +
                     " it holds for cannot be told");
      return;
    }
    ordered_json types = ordered_json::array();
    for (const bool slide : *slides) {
      types.push_back(slide ? "sliding_attention" : "full_attention");
    }
    config_["layer_types"] = std::move(types);
  }

  void WriteRope() {
    const double theta = fields_.Number(Key("rope.freq_base"), 10000.0);
    config_["rope_theta"] = theta;
    const std::string type = fields_.Text(Key("rope.scaling.type"));
    double factor = fields_.Number(Key("rope.scaling.factor"), 0.0);
    if (factor == 0.0) factor = fields_.Number(Key("rope.scale_linear"), 0.0);
    ordered_json scaling;
    // A factor without a type scales linearly.
    if (type == "linear" || (type.empty() && factor != 0.0 && factor != 1.0)) {
      scaling["rope_type"] = "linear";
      scaling["factor"] = factor;
    } else if (type == "yarn") {
      scaling["rope_type"] = "yarn";
      scaling["factor"] = factor;
      scaling["original_max_position_embeddings"] =
          fields_.Int(Key("rope.scaling.original_context_length"), {}, 1, 1 << 24);
      for (const auto& [key, name] :
           {std::pair{"yarn_attn_factor", "attention_factor"},
            std::pair{"yarn_beta_fast", "beta_fast"}, std::pair{"yarn_beta_slow", "beta_slow"}}) {
        const std::string full = Key("rope.scaling." + std::string(key));
        if (fields_.Has(full)) scaling[name] = fields_.Number(full, {});
      }
    } else if (!type.empty() && type != "none") {
      fields_.Refuse(Key("rope.scaling.type") + " \"" + ReplaceInvalidUtf8(type.substr(0, 40)) +
                     "\" is not served; served are none, linear and yarn");
    }
    const GgufTensor* factors = reader_.Find("rope_freqs.weight");
    if (factors != nullptr) {
      if (!scaling.is_null()) {
        fields_.Refuse("the tensor rope_freqs.weight and " + Key("rope.scaling.type") +
                       " both scale the rope");
        return;
      }
      scaling = ScalingFromFactors(*factors, theta);
    }
    config_["rope_scaling"] = std::move(scaling);
  }

  // Factors that the llama3 scaling gives: 1 for short wave lengths, `factor` for long ones, and a
  // smooth passage between, set by the number of waves in the original context.
  struct Llama3 {
    double factor;
    double context;
    double low;
    double high;
    double At(double wave_length) const {
      if (wave_length < context / high) return 1.0;
      if (wave_length > context / low) return factor;
      const double smooth = (context / wave_length - low) / (high - low);
      return 1.0 / ((1.0 - smooth) / factor + smooth);
    }
  };

  // The file has llama3 scaling as its outcome, a factor for each frequency; the parameters follow
  // from it, up to a common scale of context, low and high, which changes nothing.
  ordered_json ScalingFromFactors(const GgufTensor& tensor, double theta) {
    const auto refuse = [&] {
      fields_.Refuse(
          "the tensor rope_freqs.weight holds factors that are not those of rope "
          "scaling llama3");
      return ordered_json();
    };
    if (head_dim_ > kMaxLayers || tensor.values() != head_dim_ / 2 || !tensor.type ||
        tensor.type->block_values != 1) {
      return refuse();
    }
    std::vector<float> factors(static_cast<size_t>(tensor.values()));
    if (factors.empty()) return refuse();
    if (Result<void> read = reader_.ReadF32(tensor, 0, factors); !read) {
      fields_.Fail(read.error());
      return {};
    }
    std::vector<double> waves;
    for (size_t i = 0; i < factors.size(); ++i) {
      const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim_);
      waves.push_back(2.0 * M_PI * std::pow(theta, exponent));
      if (!(factors[i] >= 1.0f && factors[i] <= 1e6f)) return refuse();
    }
    const double factor = *std::max_element(factors.begin(), factors.end());
    if (factor == 1.0) return {};
    const auto fits = [&](const Llama3& guess) {
      for (size_t i = 0; i < factors.size(); ++i) {
        if (!(std::abs(guess.At(waves[i]) / factors[i] - 1.0) < 2e-5)) return false;
      }
      return true;
    };
    // As published (Llama 3.1 and its relatives): low 1, high 4, a power of two.
    for (int64_t context = 16; context <= 1 << 20; context *= 2) {
      const Llama3 guess = {factor, static_cast<double>(context), 1.0, 4.0};
      if (fits(guess)) return Llama3Json(guess);
    }
    // 1/factor is linear in 1/wave length between the two ends: two inner points give the line.
    std::vector<size_t> inner;
    for (size_t i = 0; i < factors.size(); ++i) {
      if (factors[i] > 1.0f && factors[i] < factor) inner.push_back(i);
    }
    if (inner.size() < 2) return refuse();
    const auto smooth = [&](size_t i) {
      return (1.0 / static_cast<double>(factors[i]) - 1.0 / factor) / (1.0 - 1.0 / factor);
    };
    const size_t a = inner.front(), b = inner.back();
    const double slope = (smooth(a) - smooth(b)) / (1.0 / waves[a] - 1.0 / waves[b]);
    const double offset = smooth(a) - slope / waves[a];
    const double high = 1.0 - 1.0 / offset;  // for low = 1
    const double exact = slope * (high - 1.0);
    const double context = std::round(exact);
    if (!(context >= 1.0 && context <= 1 << 24)) return refuse();
    const Llama3 guess = {factor, context, context / exact, high * context / exact};
    return fits(guess) ? Llama3Json(guess) : refuse();
  }

  static ordered_json Llama3Json(const Llama3& scaling) {
    return {{"rope_type", "llama3"},
            {"factor", scaling.factor},
            {"low_freq_factor", scaling.low},
            {"high_freq_factor", scaling.high},
            {"original_max_position_embeddings", static_cast<int64_t>(scaling.context)}};
  }

  void WriteSpecialIds(ordered_json* generation) {
    const auto* tokens = [&]() -> const std::vector<std::string>* {
      const GgufValue* value = reader_.FindMetadata("tokenizer.ggml.tokens");
      return value == nullptr ? nullptr : std::get_if<std::vector<std::string>>(value);
    }();
    const int64_t count = tokens == nullptr ? config_["vocab_size"].get<int64_t>()
                                            : static_cast<int64_t>(tokens->size());
    const auto bos = fields_.TokenId("tokenizer.ggml.bos_token_id", count);
    config_["bos_token_id"] = bos ? ordered_json(*bos) : ordered_json();
    std::vector<int64_t> ends;
    const auto add = [&ends](int64_t id) {
      if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
    };
    for (const char* name : {"eos", "eot", "eom"}) {
      const auto id = fields_.TokenId("tokenizer.ggml." + std::string(name) + "_token_id", count);
      if (id) add(*id);
    }
    // The file has one end of text; chat models end their turns with others too. llama.cpp knows
    // them by their spelling (src/llama-vocab.cpp), and so does generation_config.json as
    // published.
    const GgufValue* kinds = reader_.FindMetadata("tokenizer.ggml.token_type");
    const auto* types = kinds == nullptr ? nullptr : std::get_if<std::vector<int64_t>>(kinds);
    if (tokens != nullptr && types != nullptr && types->size() == tokens->size()) {
      constexpr int64_t kControl = 3;
      for (size_t id = 0; id < tokens->size(); ++id) {
        const std::string& text = (*tokens)[id];
        if ((*types)[id] == kControl && (text == "<|im_end|>" || text == "<|eot_id|>" ||
                                         text == "<|eom_id|>" || text == "<|endoftext|>")) {
          add(static_cast<int64_t>(id));
        }
      }
    }
    ordered_json end;
    if (ends.size() == 1) {
      end = ends[0];
    } else if (!ends.empty()) {
      end = ends;
    }
    config_["eos_token_id"] = end;
    if (bos) (*generation)["bos_token_id"] = *bos;
    if (!ends.empty()) (*generation)["eos_token_id"] = std::move(end);
  }

  const GgufReader& reader_;
  GgufFields fields_;
  const GgufFamily& family_;
  ordered_json config_ = ordered_json::object();
  int64_t hidden_ = 0;
  int64_t layers_ = 0;
  int64_t head_dim_ = 0;
};

}  // namespace

std::string ServedGgufArchitectures() {
  std::string names;
  for (const GgufFamily& family : kFamilies) {
    if (!names.empty()) names += ", ";
    names += family.architecture;
    if (family.architecture == "llama") names += " (with experts)";
  }
  return names;
}

Result<GgufConfigTexts> WriteGgufConfig(const GgufReader& reader) {
  GgufFields fields(reader);
  const std::string kind = fields.Text("general.type");
  if (!kind.empty() && kind != "model") {
    fields.Refuse("general.type is \"" + ReplaceInvalidUtf8(kind.substr(0, 40)) +
                  "\", not a model");
  }
  const std::string architecture = fields.Text("general.architecture");
  if (fields.error()) return *fields.error();
  for (const GgufFamily& family : kFamilies) {
    if (family.architecture == architecture) return ConfigWriter(reader, family).Write();
  }
  return Unsupported(reader.path().string() + ": general.architecture " +
                     (architecture.empty() ? "is missing"
                                           : "\"" + ReplaceInvalidUtf8(architecture.substr(0, 40)) +
                                                 "\" is not served") +
                     "; served are " + ServedGgufArchitectures());
}

}  // namespace sluice
