// Request bodies as structs. Parsing is independent of HTTP, model and tokenizer: it checks types
// and ranges, and refuses with the field's name. What depends on the model (vocabulary, context) is
// checked by the handler. Unknown fields are ignored.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/experts/quality.h"
#include "engine/sampling/params.h"
#include "server/openai/error.h"
#include "server/openai/json.h"

namespace sluice::openai {

inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxStops = 4;
inline constexpr int kMaxChoices = 128;   // n and best_of
inline constexpr int kMaxPrompts = 2048;  // prompts in one request

// What completions and chat have in common.
struct GenerationFields {
  std::string model;              // empty: whatever is served
  std::optional<int> max_tokens;  // absent: the endpoint's default
  int min_tokens = 0;
  int n = 1;
  SamplingParams sampling;  // seed is set only with has_seed
  bool has_seed = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int priority = 0;
  bool stream = false;
  bool include_usage = false;
  // The `sluice` object; absent: the server's default.
  std::optional<Quality> quality;
  std::optional<float> expert_mass, expert_prune;
  std::optional<int> experts_per_token;
};

struct CompletionRequest {
  GenerationFields generation;
  // Texts or token id lists; at least one, each id list non-empty.
  std::vector<std::variant<std::string, std::vector<int32_t>>> prompts;
  int best_of = 1;    // >= n
  int logprobs = -1;  // -1: none
  bool echo = false;
};

struct ChatRequest {
  GenerationFields generation;
  // What the chat template gets: an array of messages, in the client's key order, with text parts
  // joined into one string and "developer" renamed to "system"; then the client's
  // chat_template_kwargs (an object) and add_generation_prompt.
  Json* messages() const { return messages_.get(); }
  Json* template_arguments() const { return template_arguments_.get(); }
  bool add_generation_prompt = true;
  int top_logprobs = -1;  // -1: no logprobs

  ChatRequest();
  ChatRequest(ChatRequest&&) noexcept;
  ChatRequest& operator=(ChatRequest&&) noexcept;
  ~ChatRequest();

 private:
  std::unique_ptr<Json> messages_;
  std::unique_ptr<Json> template_arguments_;
};

struct TokenizeRequest {
  std::string model;
  std::string text;
  bool add_special = false;
  bool parse_special = true;
  bool with_pieces = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

Parsed<CompletionRequest> ParseCompletion(std::string_view body);
Parsed<ChatRequest> ParseChat(std::string_view body);
// Only `messages` and what the template needs.
Parsed<ChatRequest> ParseApplyTemplate(std::string_view body);
// `content` as llama.cpp names it (add_special false by default), or `prompt` as vLLM does
// (add_special_tokens true by default).
Parsed<TokenizeRequest> ParseTokenize(std::string_view body);
Parsed<DetokenizeRequest> ParseDetokenize(std::string_view body);

}  // namespace sluice::openai
