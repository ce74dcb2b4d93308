#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "server/openai/fields.h"
#include "server/openai/generation_fields.h"
#include "server/openai/requests.h"

namespace sluice::openai {
namespace {

constexpr const char* kPromptShape =
    "`prompt` must be a string, an array of strings, an array of token ids, or an array of arrays "
    "of token ids.";

// The four shapes of `prompt`.
void ReadPrompts(Fields& fields, CompletionRequest& out) {
  const Json* value = fields.Find("prompt");
  if (!value) {
    fields.Fail("prompt", "`prompt` is required.");
    return;
  }
  if (value->is_string()) {
    out.prompts.emplace_back(value->get<std::string>());
    return;
  }
  if (!value->is_array() || value->empty()) {
    fields.Fail("prompt", kPromptShape);
    return;
  }
  if (value->front().is_number()) {
    std::vector<int32_t> ids;
    if (!ReadTokenIds(*value, &ids)) {
      fields.Fail("prompt", kPromptShape);
      return;
    }
    out.prompts.emplace_back(std::move(ids));
    return;
  }
  if (value->size() > static_cast<size_t>(kMaxPrompts)) {
    fields.Fail("prompt", "`prompt` holds " + std::to_string(value->size()) +
                              " prompts; at most 2048 are allowed.");
    return;
  }
  const bool texts = value->front().is_string();
  for (const Json& item : *value) {
    std::vector<int32_t> ids;
    if (texts && item.is_string()) {
      out.prompts.emplace_back(item.get<std::string>());
    } else if (!texts && item.is_array() && !item.empty() && ReadTokenIds(item, &ids)) {
      out.prompts.emplace_back(std::move(ids));
    } else {
      fields.Fail("prompt", kPromptShape);
      return;
    }
  }
}

}  // namespace

Parsed<CompletionRequest> ParseCompletion(std::string_view body) {
  Parsed<Json> json = ParseBody(body);
  if (!json) return json.error();
  Fields fields(*json);
  CompletionRequest out;
  out.generation = ReadGenerationFields(fields);
  ReadPrompts(fields, out);
  out.echo = fields.Boolean("echo", false);
  out.logprobs = static_cast<int>(fields.Integer("logprobs", -1, 0, kMaxLogprobs));
  if (const auto tokens =
          fields.OptionalInteger("max_tokens", 0, std::numeric_limits<int32_t>::max())) {
    out.generation.max_tokens = static_cast<int>(*tokens);
  }
  const int n = out.generation.n;
  out.best_of = static_cast<int>(fields.Integer("best_of", n, 1, kMaxChoices));
  if (!fields.failed() && out.best_of < n) {
    fields.Fail("best_of", "`best_of` must not be less than `n`.");
  }
  if (out.best_of > n && out.generation.stream) {
    fields.Fail("best_of", "`best_of` greater than `n` cannot be streamed.");
  }
  if (out.generation.max_tokens == 0 && !out.echo) {
    fields.Fail("max_tokens", "`max_tokens` must be at least 1 unless `echo` is true.");
  }
  if (out.generation.max_tokens.value_or(16) < out.generation.min_tokens) {
    fields.Fail("min_tokens", "`min_tokens` must not be greater than `max_tokens`.");
  }
  if (!fields.String("suffix").empty()) {
    fields.Fail("suffix", "`suffix` is not supported: this server does not fill in the middle.");
  }
  if (fields.failed()) return *fields.error();
  return out;
}

Parsed<TokenizeRequest> ParseTokenize(std::string_view body) {
  Parsed<Json> json = ParseBody(body);
  if (!json) return json.error();
  Fields fields(*json);
  TokenizeRequest out;
  out.model = fields.String("model");
  const bool as_vllm = fields.Has("prompt") && !fields.Has("content");
  out.text = fields.String(as_vllm ? "prompt" : "content");
  if (!as_vllm && !fields.Has("content")) {
    fields.Fail("content", "`content` (or `prompt`) is required: the text to tokenize.");
  }
  out.add_special = fields.Boolean("add_special_tokens", as_vllm);
  out.add_special = fields.Boolean("add_special", out.add_special);
  out.parse_special = fields.Boolean("parse_special", true);
  out.with_pieces = fields.Boolean("with_pieces", false);
  if (fields.failed()) return *fields.error();
  return out;
}

Parsed<DetokenizeRequest> ParseDetokenize(std::string_view body) {
  Parsed<Json> json = ParseBody(body);
  if (!json) return json.error();
  Fields fields(*json);
  DetokenizeRequest out;
  out.model = fields.String("model");
  if (!fields.Has("tokens")) fields.Fail("tokens", "`tokens` is required: an array of token ids.");
  out.tokens = fields.TokenIds("tokens", 4 << 20);
  if (fields.failed()) return *fields.error();
  return out;
}

}  // namespace sluice::openai
