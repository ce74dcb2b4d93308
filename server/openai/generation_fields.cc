#include "server/openai/generation_fields.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

namespace sluice::openai {
namespace {

constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxStopTokens = 64;
constexpr int64_t kMaxExpertsPerToken = 1024;

std::vector<std::string> ReadStop(Fields& fields) {
  std::vector<std::string> stops;
  const Json* value = fields.Find("stop");
  if (!value) return stops;
  const auto add = [&](const Json& item) {
    if (!item.is_string() || item.get_ref<const std::string&>().empty() ||
        item.get_ref<const std::string&>().size() > kMaxStopBytes) {
      fields.Fail("stop",
                  "`stop` must be a string or up to 4 strings, none of them empty or "
                  "longer than 1024 bytes.");
      return;
    }
    stops.push_back(item.get<std::string>());
  };
  if (!value->is_array()) {
    add(*value);
  } else if (value->size() > static_cast<size_t>(kMaxStops)) {
    fields.Fail("stop",
                "`stop` has " + std::to_string(value->size()) + " strings; at most 4 are allowed.");
  } else {
    for (const Json& item : *value) add(item);
  }
  return stops;
}

std::vector<std::pair<int32_t, float>> ReadLogitBias(Fields& fields) {
  std::vector<std::pair<int32_t, float>> bias;
  const Json* value = fields.Find("logit_bias");
  if (!value) return bias;
  if (!value->is_object()) {
    fields.Fail("logit_bias",
                "`logit_bias` must be an object from token ids to numbers from -100 to 100.");
    return bias;
  }
  for (const auto& [key, entry] : value->items()) {
    int32_t id = -1;
    const auto [end, status] = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool known = status == std::errc() && end == key.data() + key.size() && id >= 0;
    const double amount =
        entry.is_number() ? entry.get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!known || !(amount >= -100 && amount <= 100)) {
      fields.Fail("logit_bias",
                  "`logit_bias` must be an object from token ids to numbers from -100 to 100; the "
                  "entry \"" +
                      key.substr(0, 40) + "\" is not.");
      return bias;
    }
    bias.emplace_back(id, static_cast<float>(amount));
  }
  return bias;
}

void ReadSeed(Fields& fields, GenerationFields& out) {
  const Json* value = fields.Find("seed");
  if (!value) return;
  if (!value->is_number_integer()) {
    fields.Fail("seed", "`seed` must be an integer of 64 bits.");
    return;
  }
  out.has_seed = true;
  out.sampling.seed = value->is_number_unsigned() ? value->get<uint64_t>()
                                                  : static_cast<uint64_t>(value->get<int64_t>());
}

void ReadStream(Fields& fields, GenerationFields& out) {
  out.stream = fields.Boolean("stream", false);
  const Json* options = fields.Find("stream_options");
  if (!options) return;
  if (!options->is_object()) {
    fields.Fail("stream_options", "`stream_options` must be an object.");
    return;
  }
  if (!out.stream) {
    fields.Fail("stream_options", "`stream_options` is only allowed when `stream` is true.");
    return;
  }
  Fields inner(*options, "stream_options.");
  out.include_usage = inner.Boolean("include_usage", false);
  if (inner.failed()) fields.Fail(*inner.error());
}

// Our own extensions. Members that we do not know are refused: ignoring a quality setting would be
// a silent promise.
void ReadSluiceObject(Fields& fields, GenerationFields& out) {
  const Json* value = fields.Find("sluice");
  if (!value) return;
  if (!value->is_object()) {
    fields.Fail("sluice", "`sluice` must be an object.");
    return;
  }
  Fields inner(*value, "sluice.");
  if (inner.Has("quality")) {
    out.quality = ParseQuality(inner.String("quality"));
    if (!out.quality) {
      inner.Fail("quality", "`sluice.quality` must be \"exact\", \"balanced\" or \"fast\".");
    }
  }
  if (inner.Has("expert_mass")) {
    out.expert_mass = static_cast<float>(inner.Number("expert_mass", 1, 0, 1));
  }
  if (inner.Has("expert_prune")) {
    out.expert_prune = static_cast<float>(inner.Number("expert_prune", 0, 0, 1));
  }
  if (const auto most = inner.OptionalInteger("experts_per_token", 1, kMaxExpertsPerToken)) {
    out.experts_per_token = static_cast<int>(*most);
  }
  constexpr std::array<std::string_view, 4> kKnown = {"quality", "expert_mass", "expert_prune",
                                                      "experts_per_token"};
  for (const auto& [key, entry] : value->items()) {
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end()) {
      inner.Fail(key.substr(0, 64),
                 "`sluice." + key.substr(0, 64) + "` is not a setting of this server.");
    }
  }
  if (inner.failed()) fields.Fail(*inner.error());
}

}  // namespace

GenerationFields ReadGenerationFields(Fields& fields) {
  constexpr int64_t kIntMax = std::numeric_limits<int32_t>::max();
  GenerationFields out;
  SamplingParams& sampling = out.sampling;
  out.model = fields.String("model");
  out.n = static_cast<int>(fields.Integer("n", 1, 1, kMaxChoices));
  sampling.temperature = static_cast<float>(fields.Number("temperature", 1, 0, 2));
  // OpenAI accepts top_p 0 and means "the best token only".
  sampling.top_p = std::max(static_cast<float>(fields.Number("top_p", 1, 0, 1)), 1e-6f);
  sampling.top_k = std::max(0, static_cast<int>(fields.Integer("top_k", 0, -1, kIntMax)));
  sampling.min_p = static_cast<float>(fields.Number("min_p", 0, 0, 1));
  sampling.typical_p = std::max(static_cast<float>(fields.Number("typical_p", 1, 0, 1)), 1e-6f);
  sampling.repetition_penalty =
      static_cast<float>(fields.Number("repetition_penalty", 1, 0.01, 100));
  sampling.presence_penalty = static_cast<float>(fields.Number("presence_penalty", 0, -2, 2));
  sampling.frequency_penalty = static_cast<float>(fields.Number("frequency_penalty", 0, -2, 2));
  sampling.logit_bias = ReadLogitBias(fields);
  ReadSeed(fields, out);
  out.stop = ReadStop(fields);
  out.stop_token_ids = fields.TokenIds("stop_token_ids", kMaxStopTokens);
  out.ignore_eos = fields.Boolean("ignore_eos", false);
  out.min_tokens = static_cast<int>(fields.Integer("min_tokens", 0, 0, kIntMax));
  out.priority = static_cast<int>(fields.Integer("priority", 0, -1000000, 1000000));
  fields.String("user");
  ReadStream(fields, out);
  ReadSluiceObject(fields, out);
  return out;
}

}  // namespace sluice::openai
