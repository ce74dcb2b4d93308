#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "server/api/generation.h"

namespace sluice {
namespace {

using openai::ApiError;
using openai::BadRequest;

constexpr int kDefaultCompletionTokens = 16;

std::string RandomHex() {
  std::random_device source;
  std::string text;
  for (int i = 0; i < 3; ++i) {
    char part[9];
    std::snprintf(part, sizeof part, "%08x", source());
    text += part;
  }
  return text;
}

int64_t UnixNow() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::optional<ApiError> CheckIds(std::span<const int32_t> ids, const ServedModel& model,
                                 const char* param) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= model.vocab) {
      return BadRequest(param, "`" + std::string(param) + "` holds token id " + std::to_string(id) +
                                   "; this model's ids are 0 to " +
                                   std::to_string(model.vocab - 1) + ".");
    }
  }
  return std::nullopt;
}

// Settles max_tokens, or says that the context does not hold the request.
std::optional<ApiError> FitContext(PlannedPrompt& prompt, std::optional<int> max_tokens,
                                   int fallback, const ServedModel& model, const char* param) {
  const int64_t length = static_cast<int64_t>(prompt.tokens.size());
  const int64_t context = model.max_context;
  const int64_t wanted = max_tokens.value_or(1);
  if (length + wanted <= context) {
    prompt.max_tokens =
        max_tokens ? *max_tokens : static_cast<int>(std::min<int64_t>(fallback, context - length));
    return std::nullopt;
  }
  std::string message = "This model's maximum context length is " + std::to_string(context) +
                        " tokens, but the request needs " + std::to_string(length + wanted) + ": " +
                        std::to_string(length) + " in the prompt and ";
  message += (max_tokens ? "" : "at least ") + std::to_string(wanted) +
             " for the completion. Shorten one of them.";
  ApiError error = BadRequest(param, std::move(message));
  error.code = "context_length_exceeded";
  return error;
}

// What completions and chat share. `max_tokens` was settled by FitContext.
std::optional<ApiError> Complete(GenerationPlan& plan, openai::GenerationFields fields,
                                 const ServedModel& model, std::string request_id) {
  for (const auto& [id, bias] : fields.sampling.logit_bias) {
    if (auto error = CheckIds({&id, 1}, model, "logit_bias")) return error;
  }
  if (auto error = CheckIds(fields.stop_token_ids, model, "stop_token_ids")) return error;
  plan.seed = fields.has_seed ? fields.sampling.seed
                              : uint64_t{std::random_device{}()} << 32 | std::random_device{}();
  plan.quality = model.quality;
  if (fields.quality) plan.quality.quality = *fields.quality;
  if (fields.expert_mass) plan.quality.expert_mass = *fields.expert_mass;
  if (fields.expert_prune) plan.quality.prune_ratio = *fields.expert_prune;
  if (fields.experts_per_token) plan.quality.experts_per_token = *fields.experts_per_token;
  plan.fields = std::move(fields);
  plan.request_id = std::move(request_id);
  plan.identity = {(plan.chat ? "chatcmpl-" : "cmpl-") + RandomHex(), UnixNow(), model.id};
  return std::nullopt;
}

}  // namespace

openai::Parsed<GenerationPlan> PlanCompletion(openai::CompletionRequest request,
                                              const ServedModel& model, std::string request_id) {
  GenerationPlan plan;
  plan.best_of = request.best_of;
  plan.logprobs = request.logprobs;
  plan.echo = request.echo;
  for (auto& source : request.prompts) {
    PlannedPrompt prompt;
    if (auto* text = std::get_if<std::string>(&source)) {
      prompt.tokens = model.codec->Encode(*text, true, true);
      // Specials that encoding put in front do not belong to the client's text.
      prompt.hidden_bos = !prompt.tokens.empty() && model.codec->IsSpecial(prompt.tokens[0]) &&
                          !text->starts_with(model.codec->TokenBytes(prompt.tokens[0]));
      prompt.echo_text = std::move(*text);
    } else {
      prompt.tokens = std::move(std::get<std::vector<int32_t>>(source));
      if (auto error = CheckIds(prompt.tokens, model, "prompt")) return *error;
      if (plan.echo) {
        const auto stream = model.codec->OpenStream(false);
        for (const int32_t id : prompt.tokens) prompt.echo_text += stream->Push(id);
        prompt.echo_text += stream->Finish();
      }
    }
    if (prompt.tokens.empty()) {
      return BadRequest("prompt", "`prompt` has no tokens; give at least one character.");
    }
    if (auto error = FitContext(prompt, request.generation.max_tokens, kDefaultCompletionTokens,
                                model, "prompt")) {
      return *error;
    }
    plan.prompts.push_back(std::move(prompt));
  }
  if (auto error = Complete(plan, std::move(request.generation), model, std::move(request_id))) {
    return *error;
  }
  return plan;
}

openai::Parsed<GenerationPlan> PlanChat(openai::ChatRequest request, const ServedModel& model,
                                        std::string request_id) {
  if (!model.codec->has_chat_template()) {
    return BadRequest({}, "The model has no chat template; use /v1/completions.");
  }
  const Result<std::string> text = model.codec->RenderChat(
      *request.messages(), *request.template_arguments(), request.add_generation_prompt);
  if (!text) {
    return BadRequest("messages",
                      "The chat template refused the messages: " + text.error().message);
  }
  GenerationPlan plan;
  plan.chat = true;
  plan.best_of = request.generation.n;
  plan.logprobs = request.top_logprobs;
  PlannedPrompt prompt;
  // The template writes the special tokens itself.
  prompt.tokens = model.codec->Encode(*text, false, true);
  if (prompt.tokens.empty()) return BadRequest("messages", "The chat template gave no text.");
  if (auto error =
          FitContext(prompt, request.generation.max_tokens, model.max_context, model, "messages")) {
    return *error;
  }
  plan.prompts.push_back(std::move(prompt));
  if (auto error = Complete(plan, std::move(request.generation), model, std::move(request_id))) {
    return *error;
  }
  return plan;
}

}  // namespace sluice
