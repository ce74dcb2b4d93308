// Response bodies and stream chunks, exactly as OpenAI clients parse them. Text may hold any bytes;
// what is not UTF-8 becomes U+FFFD on serialization.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/experts/quality.h"
#include "server/openai/json.h"

namespace sluice::openai {

// One token with its log-probability, ready to print.
struct TokenEntry {
  std::string bytes;             // the token's own bytes; may be part of a character
  std::optional<float> logprob;  // absent for the first prompt token
  std::vector<std::pair<std::string, float>> top;  // descending
  int64_t text_offset = 0;                         // in characters of the returned text
};

struct UsageCounts {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  Quality quality = Quality::kExact;
  ExpertCounts experts = {};
};

// What every body and chunk of one response repeats.
struct ResponseIdentity {
  std::string id;       // "cmpl-..." or "chatcmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;
};

// A finished choice, or in a stream the news of one. finish_reason empty: not finished (null).
struct ChoiceDelta {
  int index = 0;
  std::string text;
  std::optional<std::vector<TokenEntry>> logprobs;  // absent: not asked for
  std::string finish_reason;
};

// `choices` in ascending index. The chunk form takes one choice, or none for the usage chunk.
std::string CompletionBody(const ResponseIdentity& identity, std::span<const ChoiceDelta> choices,
                           const UsageCounts& usage);
std::string CompletionChunk(const ResponseIdentity& identity, const ChoiceDelta& choice,
                            bool usage_follows);
std::string CompletionUsageChunk(const ResponseIdentity& identity, const UsageCounts& usage);

std::string ChatBody(const ResponseIdentity& identity, std::span<const ChoiceDelta> choices,
                     const UsageCounts& usage);
// The first delta of a choice: {"role": "assistant", "content": ""}.
std::string ChatRoleChunk(const ResponseIdentity& identity, int index, bool usage_follows);
// With finish_reason set and no text: the last, empty delta.
std::string ChatChunk(const ResponseIdentity& identity, const ChoiceDelta& choice,
                      bool usage_follows);
std::string ChatUsageChunk(const ResponseIdentity& identity, const UsageCounts& usage);

Json CompletionLogprobs(std::span<const TokenEntry> entries);
Json ChatLogprobs(std::span<const TokenEntry> entries);

// "data: {json}\n\n".
std::string SseEvent(std::string_view json);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
inline constexpr std::string_view kSsePing = ": ping\n\n";

// How completions name a token: its text, or "bytes:\xe2\x82" when that is not UTF-8.
std::string TokenName(std::string_view bytes);

}  // namespace sluice::openai
