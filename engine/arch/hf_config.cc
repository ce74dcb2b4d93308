#include "engine/arch/hf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/arch/arch_table.h"
#include "engine/base/json.h"

namespace sluice {
namespace {

using nlohmann::json;

constexpr JsonLimits kConfigLimits{.max_bytes = 4 << 20, .max_values = 1 << 18, .max_depth = 32};
constexpr int kMaxVocab = 1 << 22;
constexpr int kMaxHidden = 1 << 16;
constexpr int kMaxIntermediate = 1 << 18;
constexpr int kMaxLayers = 1024;
constexpr int kMaxHeads = 1024;
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxExperts = 4096;
// Positions are exact in float32 up to here, and the rotary angles are float32.
constexpr int kMaxPositions = 1 << 24;
// Rope scalings outside these bounds would make frequencies that are not finite in float32.
constexpr double kMinScale = 1e-6;
constexpr double kMaxScale = 1e6;

std::string Printable(std::string_view text) {
  std::string result = "\"";
  for (const char c : text.substr(0, 60)) result += c >= 0x20 && c < 0x7f ? c : '?';
  return result + "\"";
}

std::string NumberText(double value) { return json(value).dump(); }

// Typed access to one JSON object. The first fault is kept and later reads return defaults, so a
// parser reads straight through and asks once at the end. A null counts as absent.
class Fields {
 public:
  explicit Fields(const json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  const json* Get(std::string_view name) const {
    const auto position = object_.find(name);
    return position == object_.end() || position->is_null() ? nullptr : &*position;
  }
  bool Has(std::string_view name) const { return Get(name) != nullptr; }
  // Present, even as null.
  bool Mentions(std::string_view name) const { return object_.contains(name); }

  int Int(std::string_view name, int fallback, int low, int high) {
    const json* value = Get(name);
    if (value == nullptr) return fallback;
    if (!value->is_number_integer()) {
      Fail(InvalidArgument(Name(name) + " is not a whole number"));
      return fallback;
    }
    // An unsigned value beyond int64 wraps to a negative one; both are out of every range here.
    const int64_t number = value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX
                               ? INT64_MAX
                               : value->get<int64_t>();
    if (number < low || number > high) {
      Fail(InvalidArgument(Name(name) + " is " + value->dump() + "; it must be between " +
                           std::to_string(low) + " and " + std::to_string(high)));
      return fallback;
    }
    return static_cast<int>(number);
  }

  // A finite number in (low, high], or zero where `zero_is_fine`.
  double Number(std::string_view name, double fallback, double low, double high,
                bool zero_is_fine = false) {
    const json* value = Get(name);
    if (value == nullptr) return fallback;
    if (!value->is_number()) {
      Fail(InvalidArgument(Name(name) + " is not a number"));
      return fallback;
    }
    const double number = value->get<double>();
    if (!(number > low && number <= high) && !(zero_is_fine && number == 0.0)) {
      Fail(InvalidArgument(Name(name) + " is " + value->dump() + "; it must be above " +
                           NumberText(low) + " and at most " + NumberText(high)));
      return fallback;
    }
    return number;
  }

  bool Bool(std::string_view name, bool fallback) {
    const json* value = Get(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      Fail(InvalidArgument(Name(name) + " is neither true nor false"));
      return fallback;
    }
    return value->get<bool>();
  }

  std::string String(std::string_view name, std::string fallback) {
    const json* value = Get(name);
    if (value == nullptr) return fallback;
    if (!value->is_string()) {
      Fail(InvalidArgument(Name(name) + " is not a string"));
      return fallback;
    }
    return value->get<std::string>();
  }

  void Fail(Error error) {
    if (!error_) error_ = std::move(error);
  }
  const std::optional<Error>& error() const { return error_; }
  std::string Name(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  const json& object_;
  std::string prefix_;
  std::optional<Error> error_;
};

// eos_token_id or bos_token_id: an integer, a list of integers, or null. Ids that the model cannot
// produce are dropped.
std::vector<int32_t> ReadIds(Fields& fields, std::string_view name, int vocab) {
  std::vector<int32_t> ids;
  const json* value = fields.Get(name);
  if (value == nullptr) return ids;
  const auto add = [&](const json& id) {
    if (!id.is_number_unsigned()) {
      fields.Fail(InvalidArgument(fields.Name(name) + " is neither a token id nor a list of ids"));
    } else if (id.get<uint64_t>() < static_cast<uint64_t>(vocab)) {
      const auto token = static_cast<int32_t>(id.get<uint64_t>());
      if (std::find(ids.begin(), ids.end(), token) == ids.end()) ids.push_back(token);
    }
  };
  if (!value->is_array()) {
    add(*value);
  } else if (value->size() > 256) {
    fields.Fail(InvalidArgument(fields.Name(name) + " lists more than 256 tokens"));
  } else {
    for (const json& id : *value) add(id);
  }
  return ids;
}

void ReadSpecialIds(const Architecture& arch, Fields& fields, Fields& generation,
                    ModelConfig& config) {
  const auto read = [&](std::string_view name, int class_default) {
    if (generation.Has(name)) return ReadIds(generation, name, config.vocab);
    if (fields.Mentions(name)) return ReadIds(fields, name, config.vocab);
    std::vector<int32_t> ids;
    if (class_default >= 0 && class_default < config.vocab) ids.push_back(class_default);
    return ids;
  };
  config.eos_ids = read("eos_token_id", arch.eos_id);
  const std::vector<int32_t> bos = read("bos_token_id", arch.bos_id);
  config.bos_id = bos.empty() ? -1 : bos[0];
}

// `rope_parameters` (transformers 5) or `rope_scaling` with `rope_theta` beside it (before).
void ReadRope(const Architecture& arch, Fields& fields, ModelConfig& config) {
  config.rotary_dim = config.head_dim;
  const json absent = json::object();
  const json* object = &absent;
  std::string prefix;
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const json* candidate = fields.Get(name);
    if (candidate == nullptr || candidate->empty()) continue;
    if (!candidate->is_object()) {
      return fields.Fail(InvalidArgument(std::string(name) + " is not an object"));
    }
    object = candidate;
    prefix = std::string(name) + ".";
    break;
  }
  for (const auto& [key, value] : object->items()) {
    if (value.is_object()) {
      return fields.Fail(Unsupported(prefix + Printable(key) +
                                     " holds rope parameters for one layer type; " + config.family +
                                     " has one rope for all layers"));
    }
  }

  Fields rope(*object, prefix);
  Fields& theta_source = rope.Has("rope_theta") ? rope : fields;
  config.rope_theta = theta_source.Number("rope_theta", arch.rope_theta, 1.001, 1e15);
  Fields& partial_source = rope.Has("partial_rotary_factor") ? rope : fields;
  if (partial_source.Number("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
    fields.Fail(Unsupported("partial_rotary_factor below 1 is not part of " + config.family));
  }

  RopeScaling& scaling = config.rope_scaling;
  const std::string type = rope.String("rope_type", rope.String("type", "default"));
  if (type == "default") {
    scaling.kind = RopeScalingKind::kNone;
  } else if (type == "linear") {
    scaling.kind = RopeScalingKind::kLinear;
  } else if (type == "dynamic") {
    scaling.kind = RopeScalingKind::kDynamic;
  } else if (type == "yarn") {
    scaling.kind = RopeScalingKind::kYarn;
  } else if (type == "llama3") {
    scaling.kind = RopeScalingKind::kLlama3;
  } else {
    fields.Fail(Unsupported(rope.Name("rope_type") + " " + Printable(type) +
                            " is not served; served types are default, linear, dynamic, yarn and "
                            "llama3"));
  }
  const auto require = [&](std::string_view name) {
    if (!rope.Has(name)) {
      rope.Fail(
          InvalidArgument(rope.Name(name) + " is missing, but rope type " + type + " needs it"));
    }
  };

  if (scaling.kind != RopeScalingKind::kNone) {
    scaling.factor = rope.Number("factor", 1.0, kMinScale, kMaxScale);
    scaling.original_max_position = config.max_positions;
  }
  if (scaling.kind == RopeScalingKind::kYarn || scaling.kind == RopeScalingKind::kLlama3) {
    // A value beside the rope object goes before the one inside it, as in the reference.
    Fields& source = fields.Has("original_max_position_embeddings") ? fields : rope;
    scaling.original_max_position =
        source.Int("original_max_position_embeddings", config.max_positions, 1, kMaxPositions);
  }
  switch (scaling.kind) {
    case RopeScalingKind::kNone:
      break;
    case RopeScalingKind::kLinear:
      require("factor");
      break;
    case RopeScalingKind::kDynamic: {
      require("factor");
      if (config.head_dim < 4) {
        rope.Fail(Unsupported("head_dim must be at least 4 with rope type dynamic"));
      }
      // max_position_embeddings is the trained length here, and the base grows with the sequence:
      // what can be served is that times the factor.
      const double stretched = std::floor(config.max_positions * std::max(1.0, scaling.factor));
      config.max_positions = static_cast<int>(std::min<double>(stretched, kMaxPositions));
      break;
    }
    case RopeScalingKind::kYarn:
      if (!rope.Has("factor")) {
        scaling.factor = static_cast<double>(config.max_positions) / scaling.original_max_position;
      }
      scaling.attention_factor = rope.Number("attention_factor", 0.0, 0.0, kMaxScale);
      scaling.mscale = rope.Number("mscale", 0.0, 0.0, kMaxScale, true);
      scaling.mscale_all_dim = rope.Number("mscale_all_dim", 0.0, 0.0, kMaxScale, true);
      scaling.beta_fast = rope.Number("beta_fast", 32.0, 0.0, kMaxScale, true);
      scaling.beta_slow = rope.Number("beta_slow", 1.0, 0.0, kMaxScale, true);
      if (scaling.beta_fast == 0.0) scaling.beta_fast = 32.0;  // the reference's `or 32`
      if (scaling.beta_slow == 0.0) scaling.beta_slow = 1.0;
      scaling.truncate = rope.Bool("truncate", true);
      break;
    case RopeScalingKind::kLlama3:
      for (const char* name : {"factor", "low_freq_factor", "high_freq_factor"}) require(name);
      scaling.low_freq_factor = rope.Number("low_freq_factor", 1.0, kMinScale, kMaxScale);
      scaling.high_freq_factor = rope.Number("high_freq_factor", 4.0, kMinScale, kMaxScale);
      if (scaling.high_freq_factor <= scaling.low_freq_factor) {
        rope.Fail(
            InvalidArgument(rope.Name("high_freq_factor") + " must be above low_freq_factor"));
      }
      break;
  }
  if (rope.error()) fields.Fail(*rope.error());
}

// Which layers are sparse (`decoder_sparse_step`, `mlp_only_layers`).
void ReadSparsity(const Architecture& arch, Fields& fields, ModelConfig& config) {
  if (!arch.has_dense_layers) return;
  const int step = fields.Int("decoder_sparse_step", 1, 1, kMaxLayers);
  for (int i = 0; i < config.num_layers(); ++i) {
    config.layers[static_cast<size_t>(i)].sparse = (i + 1) % step == 0;
  }
  const json* dense = fields.Get("mlp_only_layers");
  if (dense == nullptr) return;
  const auto fail = [&] {
    fields.Fail(InvalidArgument("mlp_only_layers is not a list of layer numbers below " +
                                std::to_string(config.num_layers())));
  };
  if (!dense->is_array()) return fail();
  for (const json& layer : *dense) {
    if (!layer.is_number_unsigned() || layer.get<uint64_t>() >= config.layers.size()) return fail();
    config.layers[layer.get<size_t>()].sparse = false;
  }
}

// `layer_types` as one flag per layer, true where it says "sliding_attention"; nullopt when absent.
std::optional<std::vector<bool>> ReadLayerTypes(Fields& fields, const ModelConfig& config) {
  const json* types = fields.Get("layer_types");
  if (types == nullptr) return std::nullopt;
  if (!types->is_array() || types->size() != config.layers.size()) {
    fields.Fail(InvalidArgument("layer_types does not list one type for each of the " +
                                std::to_string(config.num_layers()) + " layers"));
    return std::nullopt;
  }
  std::vector<bool> sliding;
  for (const json& type : *types) {
    const std::string name = type.is_string() ? type.get<std::string>() : "(not a string)";
    if (name != "sliding_attention" && name != "full_attention" && name != "attention") {
      fields.Fail(Unsupported("layer_types holds " + Printable(name) +
                              "; served are full_attention and sliding_attention"));
      return std::nullopt;
    }
    sliding.push_back(name == "sliding_attention");
  }
  return sliding;
}

void ReadSlidingWindow(const Architecture& arch, Fields& fields, ModelConfig& config) {
  const bool by_type = arch.sliding_window == SlidingWindowRule::kByLayerType;
  bool used = false;
  switch (arch.sliding_window) {
    case SlidingWindowRule::kNone:
      if (fields.Has("sliding_window")) {
        fields.Fail(Unsupported("sliding_window is set, but " + config.family +
                                " attends to everything; remove the field"));
      }
      break;
    case SlidingWindowRule::kAllLayers:
      used = fields.Has("sliding_window");
      break;
    case SlidingWindowRule::kAllLayersIf:
      // An explicit null means no window; an absent field means the class's default.
      used = fields.Bool("use_sliding_window", false) &&
             (fields.Has("sliding_window") || !fields.Mentions("sliding_window"));
      break;
    case SlidingWindowRule::kByLayerType:
      used = fields.Bool("use_sliding_window", false);
      if (used && fields.Mentions("sliding_window") && !fields.Has("sliding_window")) {
        fields.Fail(InvalidArgument("use_sliding_window is true, but sliding_window is null"));
      }
      break;
  }
  // An unused width may be anything: published files hold 0 there.
  const int window = used ? fields.Int("sliding_window", 4096, 1, kMaxPositions) : 0;
  const int window_layers = fields.Int("max_window_layers", 28, 0, kMaxPositions);
  const std::optional<std::vector<bool>> types = ReadLayerTypes(fields, config);
  for (int i = 0; i < config.num_layers(); ++i) {
    const auto at = static_cast<size_t>(i);
    bool sliding = used;
    if (by_type) sliding = types ? (*types)[at] : used && i % 2 == 0 && i < window_layers;
    if (by_type && sliding && !used) {
      return fields.Fail(InvalidArgument(
          "layer_types holds sliding_attention, but use_sliding_window is not true"));
    }
    if (!by_type && types && (*types)[at] != sliding) {
      return fields.Fail(Unsupported("layer_types contradicts sliding_window: " + config.family +
                                     " has one kind of attention in all layers"));
    }
    config.layers[at].sliding_window = sliding ? window : 0;
  }
}

void ReadAttention(const Architecture& arch, Fields& fields, ModelConfig& config) {
  config.heads = fields.Int("num_attention_heads", arch.heads, 1, kMaxHeads);
  const int kv_default = arch.kv_heads == 0 ? config.heads : arch.kv_heads;
  config.kv_heads = fields.Int("num_key_value_heads", kv_default, 1, kMaxHeads);
  if (config.heads % config.kv_heads != 0) {
    fields.Fail(InvalidArgument("num_attention_heads (" + std::to_string(config.heads) +
                                ") is not a multiple of num_key_value_heads (" +
                                std::to_string(config.kv_heads) + ")"));
  }
  if (!fields.Has("head_dim") && config.hidden % config.heads != 0) {
    fields.Fail(InvalidArgument("hidden_size (" + std::to_string(config.hidden) +
                                ") is not a multiple of num_attention_heads (" +
                                std::to_string(config.heads) + "), and head_dim is not given"));
  }
  config.head_dim = fields.Int("head_dim", config.hidden / config.heads, 2, kMaxHeadDim);
  if (config.head_dim < 2 || config.head_dim > kMaxHeadDim || config.head_dim % 2 != 0) {
    fields.Fail(InvalidArgument("head_dim is " + std::to_string(config.head_dim) +
                                "; it must be even and between 2 and " +
                                std::to_string(kMaxHeadDim)));
  }
  if (arch.qk_norm == QkNorm::kFullWidth && config.head_dim * config.heads != config.hidden) {
    fields.Fail(InvalidArgument("head_dim times num_attention_heads must be hidden_size in " +
                                config.family + ", whose query norm spans the hidden width"));
  }
  config.qk_norm = arch.qk_norm;
  switch (arch.bias) {
    case AttentionBiasRule::kNone:
      break;
    case AttentionBiasRule::kQkvBias:
      config.qkv_bias = fields.Bool("qkv_bias", arch.qkv_bias);
      break;
    case AttentionBiasRule::kAttentionBias:
      config.qkv_bias = config.o_bias = fields.Bool("attention_bias", false);
      break;
  }
  if (arch.has_clip_qkv) config.clip_qkv = fields.Number("clip_qkv", 0.0, 0.0, 1e30);
}

void ReadExperts(const Architecture& arch, Fields& fields, ModelConfig& config) {
  // transformers writes either name, by version and family, and reads both.
  int experts = fields.Int("num_experts", arch.experts, 1, kMaxExperts);
  const int local = fields.Int("num_local_experts", experts, 1, kMaxExperts);
  if (fields.Has("num_experts") && local != experts) {
    fields.Fail(InvalidArgument("num_experts and num_local_experts differ"));
  }
  experts = local;
  config.router.num_experts = experts;
  config.router.experts_per_token =
      fields.Int("num_experts_per_tok", arch.experts_per_token, 1, kMaxExperts);
  if (config.router.experts_per_token > experts) {
    fields.Fail(
        InvalidArgument("num_experts_per_tok (" + std::to_string(config.router.experts_per_token) +
                        ") exceeds the number of experts (" + std::to_string(experts) + ")"));
  }
  config.router.renormalize = arch.always_renormalizes || fields.Bool("norm_topk_prob", false);
  const int intermediate = fields.Int("intermediate_size", arch.intermediate, 1, kMaxIntermediate);
  config.expert_intermediate =
      arch.expert_intermediate == 0
          ? intermediate
          : fields.Int("moe_intermediate_size", arch.expert_intermediate, 1, kMaxIntermediate);
  if (arch.has_dense_layers) config.dense_intermediate = intermediate;
  if (arch.shared_intermediate != 0) {
    config.shared_intermediate = fields.Int("shared_expert_intermediate_size",
                                            arch.shared_intermediate, 1, kMaxIntermediate);
    config.shared_gate = true;
  }
}

void RefuseWhatIsNotServed(Fields& fields) {
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.Fail(
        Unsupported("hidden_act " + Printable(activation) + " is not served; only silu is"));
  }
  for (const char* name : {"quantization_config", "compression_config"}) {
    const json* value = fields.Get(name);
    if (value == nullptr) continue;
    std::string method = "unnamed";
    if (value->is_object() && value->contains("quant_method") &&
        (*value)["quant_method"].is_string()) {
      method = (*value)["quant_method"].get<std::string>();
    }
    fields.Fail(Unsupported(std::string(name) + " says that the weights are quantized (" +
                            Printable(method) + "); use a checkpoint in F32, F16 or BF16"));
  }
}

}  // namespace

Result<ModelConfig> ParseHfConfig(std::string_view config_json,
                                  std::string_view generation_config_json) {
  Result<json> parsed = ParseJson(config_json, "config.json", kConfigLimits);
  if (!parsed) return parsed.error();
  if (!parsed->is_object()) return InvalidArgument("config.json: is not a JSON object");
  Fields fields(*parsed);
  const std::string family = fields.String("model_type", "");
  if (fields.error()) return WithContext("config.json", *fields.error());
  const Architecture* arch = FindArchitecture(family);
  if (arch == nullptr) {
    const std::string what = family.empty() ? "model_type is missing"
                                            : "model_type " + Printable(family) + " is not served";
    return Unsupported("config.json: " + what + "; served are " + SupportedFamilies());
  }

  ModelConfig config;
  config.family = family;
  RefuseWhatIsNotServed(fields);
  config.vocab = fields.Int("vocab_size", arch->vocab, 1, kMaxVocab);
  config.hidden = fields.Int("hidden_size", arch->hidden, 1, kMaxHidden);
  config.max_positions =
      fields.Int("max_position_embeddings", arch->max_positions, 1, kMaxPositions);
  config.norm_eps = fields.Number("rms_norm_eps", arch->norm_eps, 0.0, 1.0);
  config.tied_embeddings = fields.Bool("tie_word_embeddings", false);
  config.layers.resize(
      static_cast<size_t>(fields.Int("num_hidden_layers", arch->layers, 1, kMaxLayers)));
  ReadAttention(*arch, fields, config);
  ReadExperts(*arch, fields, config);
  ReadSparsity(*arch, fields, config);
  ReadSlidingWindow(*arch, fields, config);
  ReadRope(*arch, fields, config);

  json generation_object = json::object();
  if (!generation_config_json.empty()) {
    Result<json> generation =
        ParseJson(generation_config_json, "generation_config.json", kConfigLimits);
    if (!generation) return generation.error();
    if (!generation->is_object()) {
      return InvalidArgument("generation_config.json: is not a JSON object");
    }
    generation_object = std::move(*generation);
  }
  Fields generation(generation_object);
  ReadSpecialIds(*arch, fields, generation, config);
  if (fields.error()) return WithContext("config.json", *fields.error());
  if (generation.error()) return WithContext("generation_config.json", *generation.error());
  return config;
}

Result<ModelConfig> LoadHfConfig(const ModelFiles& files) {
  const Result<const std::string*> config = files.Require(ModelFiles::kConfig);
  if (!config) return config.error();
  const std::string* generation = files.Find(ModelFiles::kGenerationConfig);
  Result<ModelConfig> parsed =
      ParseHfConfig(**config, generation == nullptr ? std::string_view() : *generation);
  if (!parsed) return WithContext(files.source().string(), parsed.error());
  return parsed;
}

Result<ModelConfig> LoadHfConfig(const std::filesystem::path& directory) {
  constexpr std::array kNames = {ModelFiles::kConfig, ModelFiles::kGenerationConfig};
  const Result<ModelFiles> files = ModelFiles::Read(directory, kNames);
  if (!files) return files.error();
  return LoadHfConfig(*files);
}

}  // namespace sluice
