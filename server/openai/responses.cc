#include "server/openai/responses.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/base/utf8.h"

namespace sluice::openai {
namespace {

// JSON has no infinity; clients compare and add, so a number must stand there.
double Finite(float logprob) { return logprob > -9999.0f ? double{logprob} : -9999.0; }

Json OrNull(const std::string& text) { return text.empty() ? Json() : Json(text); }

Json Envelope(const ResponseIdentity& identity, const char* object) {
  return Json{{"id", identity.id},
              {"object", object},
              {"created", identity.created},
              {"model", identity.model}};
}

Json UsageJson(const UsageCounts& usage) {
  return Json{{"prompt_tokens", usage.prompt_tokens},
              {"completion_tokens", usage.completion_tokens},
              {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
              {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
              {"sluice",
               {{"quality", QualityName(usage.quality)},
                {"expert_assignments", usage.experts.assignments},
                {"degraded_assignments", usage.experts.degraded},
                {"skipped_assignments", usage.experts.skipped}}}};
}

// With include_usage, OpenAI puts "usage": null into every chunk before the usage chunk.
std::string Chunk(Json envelope, Json choices, bool usage_follows) {
  envelope["choices"] = std::move(choices);
  if (usage_follows) envelope["usage"] = nullptr;
  return Dump(envelope);
}

std::string UsageChunk(Json envelope, const UsageCounts& usage) {
  envelope["choices"] = Json::array();
  envelope["usage"] = UsageJson(usage);
  return Dump(envelope);
}

Json CompletionChoice(const ChoiceDelta& choice) {
  return Json{{"index", choice.index},
              {"text", choice.text},
              {"logprobs", choice.logprobs ? CompletionLogprobs(*choice.logprobs) : Json()},
              {"finish_reason", OrNull(choice.finish_reason)}};
}

Json ChatChunkChoice(int index, Json delta, Json logprobs, const std::string& finish_reason) {
  return Json::array({Json{{"index", index},
                           {"delta", std::move(delta)},
                           {"logprobs", std::move(logprobs)},
                           {"finish_reason", OrNull(finish_reason)}}});
}

Json ByteList(std::string_view bytes) {
  Json list = Json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

Json ChatToken(std::string_view bytes, float logprob) {
  return Json{{"token", bytes}, {"logprob", Finite(logprob)}, {"bytes", ByteList(bytes)}};
}

}  // namespace

Json CompletionLogprobs(std::span<const TokenEntry> entries) {
  Json tokens = Json::array(), logprobs = Json::array(), tops = Json::array(),
       offsets = Json::array();
  for (const TokenEntry& entry : entries) {
    const std::string name = TokenName(entry.bytes);
    tokens.push_back(name);
    offsets.push_back(entry.text_offset);
    if (!entry.logprob) {
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    logprobs.push_back(Finite(*entry.logprob));
    // The chosen token is always among them. Tokens that print alike share an entry: the likelier.
    std::vector<std::pair<std::string, float>> named;
    const auto add = [&](std::string key, float value) {
      for (const auto& existing : named) {
        if (existing.first == key) return;
      }
      named.emplace_back(std::move(key), value);
    };
    for (const auto& [bytes, logprob] : entry.top) add(TokenName(bytes), logprob);
    add(name, *entry.logprob);
    Json top = Json::object();
    for (auto& [key, value] : named) top.emplace(key, Finite(value));
    tops.push_back(std::move(top));
  }
  return Json{{"tokens", std::move(tokens)},
              {"token_logprobs", std::move(logprobs)},
              {"top_logprobs", std::move(tops)},
              {"text_offset", std::move(offsets)}};
}

Json ChatLogprobs(std::span<const TokenEntry> entries) {
  Json content = Json::array();
  for (const TokenEntry& entry : entries) {
    Json token = ChatToken(entry.bytes, entry.logprob.value_or(0));
    Json tops = Json::array();
    for (const auto& [bytes, logprob] : entry.top) tops.push_back(ChatToken(bytes, logprob));
    token["top_logprobs"] = std::move(tops);
    content.push_back(std::move(token));
  }
  return Json{{"content", std::move(content)}, {"refusal", nullptr}};
}

std::string CompletionBody(const ResponseIdentity& identity, std::span<const ChoiceDelta> choices,
                           const UsageCounts& usage) {
  Json body = Envelope(identity, "text_completion");
  Json list = Json::array();
  for (const ChoiceDelta& choice : choices) list.push_back(CompletionChoice(choice));
  body["choices"] = std::move(list);
  body["usage"] = UsageJson(usage);
  return Dump(body);
}

std::string CompletionChunk(const ResponseIdentity& identity, const ChoiceDelta& choice,
                            bool usage_follows) {
  return Chunk(Envelope(identity, "text_completion"), Json::array({CompletionChoice(choice)}),
               usage_follows);
}

std::string CompletionUsageChunk(const ResponseIdentity& identity, const UsageCounts& usage) {
  return UsageChunk(Envelope(identity, "text_completion"), usage);
}

std::string ChatBody(const ResponseIdentity& identity, std::span<const ChoiceDelta> choices,
                     const UsageCounts& usage) {
  Json body = Envelope(identity, "chat.completion");
  Json list = Json::array();
  for (const ChoiceDelta& choice : choices) {
    list.push_back(
        Json{{"index", choice.index},
             {"message", {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}}},
             {"logprobs", choice.logprobs ? ChatLogprobs(*choice.logprobs) : Json()},
             {"finish_reason", OrNull(choice.finish_reason)}});
  }
  body["choices"] = std::move(list);
  body["usage"] = UsageJson(usage);
  return Dump(body);
}

std::string ChatRoleChunk(const ResponseIdentity& identity, int index, bool usage_follows) {
  return Chunk(Envelope(identity, "chat.completion.chunk"),
               ChatChunkChoice(index, Json{{"role", "assistant"}, {"content", ""}}, nullptr, {}),
               usage_follows);
}

std::string ChatChunk(const ResponseIdentity& identity, const ChoiceDelta& choice,
                      bool usage_follows) {
  Json delta = Json::object();
  if (!choice.text.empty() || choice.finish_reason.empty()) delta["content"] = choice.text;
  return Chunk(Envelope(identity, "chat.completion.chunk"),
               ChatChunkChoice(choice.index, std::move(delta),
                               choice.logprobs ? ChatLogprobs(*choice.logprobs) : Json(),
                               choice.finish_reason),
               usage_follows);
}

std::string ChatUsageChunk(const ResponseIdentity& identity, const UsageCounts& usage) {
  return UsageChunk(Envelope(identity, "chat.completion.chunk"), usage);
}

std::string TokenName(std::string_view bytes) {
  if (IsValidUtf8(bytes)) return std::string(bytes);
  constexpr char kHex[] = "0123456789abcdef";
  std::string name = "bytes:";
  for (const char c : bytes) {
    name += "\\x";
    name += kHex[static_cast<unsigned char>(c) >> 4];
    name += kHex[static_cast<unsigned char>(c) & 15];
  }
  return name;
}

std::string SseEvent(std::string_view json) {
  std::string event = "data: ";
  event += json;
  event += "\n\n";
  return event;
}

}  // namespace sluice::openai
