// Request bodies: whatever the bytes, parsing gives a struct within its promised ranges or a
// 4xx/501 with a message, and responses built from what was parsed are valid JSON.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

#include "engine/base/check.h"
#include "server/openai/requests.h"
#include "server/openai/responses.h"
#include "server/openai/stop_matcher.h"

namespace {

using namespace sluice::openai;

void CheckRefusal(const ApiError& error) {
  SLUICE_CHECK(error.status == 400 || error.status == 501);
  const auto json = nlohmann::json::parse(error.ToJson());
  SLUICE_CHECK(!json["error"]["message"].get<std::string>().empty());
  SLUICE_CHECK(json["error"]["type"] == "invalid_request_error");
}

// What may be given up for speed, on a token whose gate is anything.
void CheckQuality(const GenerationFields& fields) {
  sluice::QualitySettings settings;
  settings.quality = fields.quality.value_or(settings.quality);
  settings.expert_mass = fields.expert_mass.value_or(settings.expert_mass);
  settings.prune_ratio = fields.expert_prune.value_or(settings.prune_ratio);
  settings.experts_per_token = fields.experts_per_token.value_or(settings.experts_per_token);
  SLUICE_CHECK(settings.expert_mass >= 0 && settings.expert_mass <= 1);
  SLUICE_CHECK(settings.prune_ratio >= 0 && settings.prune_ratio <= 1);
  SLUICE_CHECK(settings.experts_per_token >= 0);
  SLUICE_CHECK((sluice::QualityKey(settings) == 0) == settings.exact());
  const float weights[] = {0.5f, 0.25f, 0.125f, 0.0625f};
  int8_t bits[4];
  sluice::GradeExperts(settings, sluice::DefaultQualityRules(), weights, bits);
  SLUICE_CHECK(bits[0] >= 2);
  for (const int8_t each : bits) {
    SLUICE_CHECK(each == sluice::kDropped || each == sluice::kSkippable || each >= 2);
    SLUICE_CHECK(each == sluice::kAllBits || !settings.exact());
  }
}

void CheckGeneration(const GenerationFields& fields) {
  const sluice::SamplingParams& sampling = fields.sampling;
  SLUICE_CHECK(fields.n >= 1 && fields.n <= kMaxChoices);
  SLUICE_CHECK(fields.max_tokens.value_or(0) >= 0 && fields.min_tokens >= 0);
  SLUICE_CHECK(sampling.temperature >= 0 && sampling.temperature <= 2);
  SLUICE_CHECK(sampling.top_p > 0 && sampling.top_p <= 1);
  SLUICE_CHECK(sampling.typical_p > 0 && sampling.typical_p <= 1);
  SLUICE_CHECK(sampling.min_p >= 0 && sampling.min_p <= 1);
  SLUICE_CHECK(sampling.top_k >= 0 && sampling.repetition_penalty > 0);
  SLUICE_CHECK(fields.stop.size() <= static_cast<size_t>(kMaxStops));
  SLUICE_CHECK(fields.stream || !fields.include_usage);
  for (const auto& [id, bias] : sampling.logit_bias) {
    SLUICE_CHECK(id >= 0 && bias >= -100 && bias <= 100);
  }
  CheckQuality(fields);
}

// The body itself, cut into tokens, as the text that a model might have generated.
void CheckResponses(const GenerationFields& fields, std::string_view body) {
  StopMatcher stops(fields.stop);
  std::string all;
  ChoiceDelta choice;
  choice.logprobs.emplace();
  const ResponseIdentity identity = {"cmpl-1", 1, fields.model};
  for (size_t at = 0; at < body.size() && at < 256; at += 3) {
    const std::string piece(body.substr(at, 3));
    choice.text = stops.Push(piece);
    all += choice.text;
    choice.logprobs->push_back({piece, -0.5f, {{piece, -0.5f}}, static_cast<int64_t>(at)});
    SLUICE_CHECK(nlohmann::json::accept(CompletionChunk(identity, choice, false)));
    SLUICE_CHECK(nlohmann::json::accept(ChatChunk(identity, choice, true)));
  }
  all += stops.Finish();
  for (const std::string& stop : fields.stop) SLUICE_CHECK(all.find(stop) == std::string::npos);
  choice.text = all;
  SLUICE_CHECK(nlohmann::json::accept(CompletionBody(identity, {&choice, 1}, {})));
  SLUICE_CHECK(nlohmann::json::accept(ChatBody(identity, {&choice, 1}, {})));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  if (const auto request = ParseCompletion(body)) {
    CheckGeneration(request->generation);
    SLUICE_CHECK(!request->prompts.empty());
    SLUICE_CHECK(request->best_of >= request->generation.n && request->best_of <= kMaxChoices);
    SLUICE_CHECK(request->logprobs >= -1 && request->logprobs <= kMaxLogprobs);
    CheckResponses(request->generation, body);
  } else {
    CheckRefusal(request.error());
  }
  if (const auto request = ParseChat(body)) {
    CheckGeneration(request->generation);
    for (const auto& message : *request->messages()) {
      SLUICE_CHECK(message["role"].is_string() && message["content"].is_string());
    }
    SLUICE_CHECK(request->template_arguments()->is_object());
    CheckResponses(request->generation, body);
  } else {
    CheckRefusal(request.error());
  }
  if (const auto request = ParseApplyTemplate(body); !request) CheckRefusal(request.error());
  if (const auto request = ParseTokenize(body); !request) CheckRefusal(request.error());
  if (const auto request = ParseDetokenize(body); !request) CheckRefusal(request.error());
  return 0;
}
