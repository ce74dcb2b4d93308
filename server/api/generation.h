// One completion or chat request on its way through the engine: prompts times candidates become
// sequences; their tokens become text, log-probabilities, stop matches, and a body or a stream of
// events.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/log.h"
#include "server/api/key_gate.h"
#include "server/api/mailbox.h"
#include "server/api/served_model.h"
#include "server/http/message.h"
#include "server/openai/requests.h"
#include "server/openai/responses.h"

namespace sluice {

struct PlannedPrompt {
  std::vector<int32_t> tokens;
  int max_tokens = 16;
  std::string echo_text;    // what `echo` puts in front
  bool hidden_bos = false;  // tokens[0] was added by us and is no part of echo_text
};

// A request whose every check has passed.
struct GenerationPlan {
  bool chat = false;
  std::string request_id;
  openai::ResponseIdentity identity;
  openai::GenerationFields fields;
  std::vector<PlannedPrompt> prompts;
  int best_of = 1;
  int logprobs = -1;  // for clients; -1: none
  bool echo = false;
  uint64_t seed = 0;
  QualitySettings quality;
};

// Tokenizes and checks against the model's vocabulary and context.
openai::Parsed<GenerationPlan> PlanCompletion(openai::CompletionRequest request,
                                              const ServedModel& model, std::string request_id);
openai::Parsed<GenerationPlan> PlanChat(openai::ChatRequest request, const ServedModel& model,
                                        std::string request_id);

struct GenerationContext {
  std::shared_ptr<ServedModel> model;
  std::shared_ptr<Metrics> metrics;  // may be null
  Logger* log = nullptr;
  size_t stream_buffer_bytes = 1 << 20;
  std::shared_ptr<KeyGate::Pass> pass;  // of the key whose request it is
};

// Submits the first sequences. The error is what the engine refused, as an answer.
openai::Parsed<HttpReply> StartGeneration(GenerationPlan plan, const GenerationContext& context,
                                          Waker waker);

// The response that carries an ApiError.
HttpResponse ErrorResponse(const openai::ApiError& error);

}  // namespace sluice
