// The pending reply of a generation: submits sequences, turns their tokens into choices, and writes
// the body or the events.
#include <algorithm>
#include <numeric>
#include <unordered_set>

#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "server/api/generation.h"
#include "server/metrics/metrics.h"
#include "server/openai/stop_matcher.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;
using openai::ApiError;
using openai::TokenEntry;

constexpr int kMaxInFlight = 64;  // sequences of one request in the engine at the same time
constexpr size_t kPrimeTokens = 16;

double SecondsSince(Clock::time_point start, Clock::time_point now = Clock::now()) {
  return std::chrono::duration<double>(now - start).count();
}

int64_t Characters(std::string_view text) { return static_cast<int64_t>(CountCharacters(text)); }

// One candidate of one prompt.
struct Choice {
  int prompt = 0;
  int candidate = 0;
  std::optional<RequestId> id;   // submitted
  bool ended_in_engine = false;  // OnFinish has come, or was never needed
  std::string finish_reason;     // set when the choice is complete
  std::unique_ptr<TextStream> stream;
  std::optional<openai::StopMatcher> stops;
  int64_t text_offset = 0;  // characters so far
  int completion_tokens = 0;
  int cached_tokens = 0;
  ExpertCounts experts;
  double logprob_sum = 0;
  std::optional<Clock::time_point> last_token_time;

  // Not sent yet (streamed), or everything (otherwise).
  std::string text;
  std::vector<TokenEntry> entries;
  bool touched = false;    // has news for the stream
  bool role_sent = false;  // chat
  bool finish_sent = false;
};

class GenerationReply final : public PendingReply {
 public:
  GenerationReply(GenerationPlan plan, const GenerationContext& context, Waker waker)
      : plan_(std::move(plan)),
        context_(context),
        mailbox_(std::make_shared<Mailbox>(context.stream_buffer_bytes, std::move(waker))),
        arrival_(Clock::now()) {
    for (size_t prompt = 0; prompt < plan_.prompts.size(); ++prompt) {
      for (int candidate = 0; candidate < plan_.best_of; ++candidate) {
        Choice choice;
        choice.prompt = static_cast<int>(prompt);
        choice.candidate = candidate;
        choices_.push_back(std::move(choice));
      }
    }
    for (const PlannedPrompt& prompt : plan_.prompts) {
      context_.pass->Spend(static_cast<int64_t>(prompt.tokens.size()));
    }
    terminal_.insert(plan_.fields.stop_token_ids.begin(), plan_.fields.stop_token_ids.end());
    if (!plan_.fields.ignore_eos) {
      terminal_.insert(context_.model->eos_ids.begin(), context_.model->eos_ids.end());
    }
  }

  ~GenerationReply() override {
    Withdraw();
    context_.pass->Spend(Usage().completion_tokens);
    LogEnd();
  }

  bool streamed() const override { return plan_.fields.stream; }
  bool Poll(HttpResponse& response) override;
  void Abort(HttpResponse& response) override;

  // Submits as many sequences as may be in flight. Sets failure_ when none of them can ever be.
  void SubmitMore();
  const std::optional<ApiError>& failure() const { return failure_; }

 private:
  GenerationRequest EngineRequest(const Choice& choice) const;
  void Receive(Mail& mail);
  void OnPrompt(Choice& choice, const std::vector<TokenOutput>& prompt);
  void OnToken(Choice& choice, const TokenOutput& token, Clock::time_point time);
  void OnFinish(Choice& choice, const Finish& finish);
  void Complete(Choice& choice, std::string reason);
  void Observe(const Choice& choice, std::string_view reason);
  TokenEntry Entry(const TokenOutput& token, int64_t offset) const;
  bool Complete() const { return completed_ == choices_.size(); }
  bool CompleteWith(const ApiError& error, HttpResponse& response);
  void WriteEvents(std::string& out);
  void WriteChoice(Choice& choice, std::string& out);
  std::string Body();
  std::vector<size_t> Best(size_t first) const;
  openai::UsageCounts Usage() const;
  void Withdraw();
  void LogEnd();

  const GenerationPlan plan_;
  const GenerationContext context_;
  const std::shared_ptr<Mailbox> mailbox_;
  const Clock::time_point arrival_;
  std::unordered_set<int32_t> terminal_;  // tokens that end a sequence and are not text
  std::vector<Choice> choices_;           // prompt-major
  size_t next_ = 0;                       // first choice that was not submitted
  int in_flight_ = 0;
  size_t completed_ = 0;
  std::optional<ApiError> failure_;
  bool first_token_seen_ = false;
};

// ---- Submitting ----

GenerationRequest GenerationReply::EngineRequest(const Choice& choice) const {
  const PlannedPrompt& prompt = plan_.prompts[static_cast<size_t>(choice.prompt)];
  GenerationRequest request;
  request.name = plan_.request_id;
  request.prompt = prompt.tokens;
  request.max_tokens = prompt.max_tokens;
  request.min_tokens = plan_.fields.min_tokens;
  request.sampling = plan_.fields.sampling;
  // A given seed repeats per prompt, so that a batch gives what its prompts give alone.
  request.sampling.seed = plan_.seed + static_cast<uint64_t>(choice.candidate) +
                          (plan_.fields.has_seed ? 0 : static_cast<uint64_t>(choice.prompt) << 32);
  request.stop_token_ids = plan_.fields.stop_token_ids;
  request.ignore_eos = plan_.fields.ignore_eos;
  request.logprobs = plan_.logprobs;
  // Ranking candidates needs the chosen tokens' log-probabilities.
  if (plan_.best_of > plan_.fields.n) request.logprobs = std::max(request.logprobs, 0);
  if (plan_.echo && plan_.logprobs >= 0) request.prompt_logprobs = plan_.logprobs;
  request.priority = plan_.fields.priority;
  request.account = static_cast<int>(context_.pass->key());
  request.quality = plan_.quality;
  return request;
}

void GenerationReply::SubmitMore() {
  while (next_ < choices_.size() && in_flight_ < kMaxInFlight && !failure_) {
    Choice& choice = choices_[next_];
    const PlannedPrompt& prompt = plan_.prompts[static_cast<size_t>(choice.prompt)];
    choice.stops.emplace(plan_.fields.stop);
    choice.stream = context_.model->codec->OpenStream(true);
    if (!plan_.chat) {
      // The completion continues the prompt: a word's leading space or half a character must not
      // be taken for the start of a text.
      const std::span<const int32_t> tokens = prompt.tokens;
      choice.stream->Continue(tokens.last(std::min(tokens.size(), kPrimeTokens)));
    }
    if (plan_.echo && plan_.logprobs < 0) {
      choice.text = prompt.echo_text;
      choice.touched = true;
    }
    if (plan_.echo) choice.text_offset = Characters(prompt.echo_text);
    if (prompt.max_tokens == 0 && plan_.logprobs < 0) {
      // Only the prompt was asked for: there is nothing to compute.
      ++next_;
      choice.ended_in_engine = true;
      Complete(choice, "length");
      continue;
    }
    auto sink = std::make_shared<MailboxSink>(mailbox_, static_cast<int>(next_),
                                              context_.model->engine.get(), context_.metrics);
    const Result<RequestId> id = context_.model->engine->Submit(EngineRequest(choice), sink);
    if (!id) {
      // A full queue is no failure while sequences of ours are still running: their end wakes us.
      if (id.error().code == ErrorCode::kResourceExhausted && in_flight_ > 0) {
        choice.text.clear();
        return;
      }
      failure_ = openai::FromEngineError(id.error());
      if (id.error().code == ErrorCode::kResourceExhausted) {
        failure_->retry_after_seconds = RetryAfterSeconds(context_.model->engine->Stats());
        if (context_.metrics) context_.metrics->ObserveRefusal("queue");
      }
      return;
    }
    sink->SetId(*id);
    choice.id = *id;
    ++in_flight_;
    ++next_;
  }
}

// ---- Receiving ----

TokenEntry GenerationReply::Entry(const TokenOutput& token, int64_t offset) const {
  const TextCodec& codec = *context_.model->codec;
  TokenEntry entry;
  entry.bytes = codec.TokenBytes(token.token);
  entry.logprob = token.logprob;
  entry.text_offset = offset;
  entry.top.reserve(token.top.size());
  for (const TokenLogprob& top : token.top) {
    entry.top.emplace_back(codec.TokenBytes(top.token), top.logprob);
  }
  return entry;
}

void GenerationReply::OnPrompt(Choice& choice, const std::vector<TokenOutput>& prompt) {
  const PlannedPrompt& planned = plan_.prompts[static_cast<size_t>(choice.prompt)];
  const auto stream = context_.model->codec->OpenStream(false);
  int64_t offset = 0;
  for (size_t i = 0; i < prompt.size(); ++i) {
    TokenEntry entry = Entry(prompt[i], offset);
    if (i == 0) {
      entry.logprob.reset();
      entry.top.clear();
    }
    choice.entries.push_back(std::move(entry));
    const std::string text = stream->Push(prompt[i].token);
    if (i > 0 || !planned.hidden_bos) offset += Characters(text);
  }
  choice.text = planned.echo_text + choice.text;
  choice.touched = true;
}

void GenerationReply::OnToken(Choice& choice, const TokenOutput& token, Clock::time_point time) {
  ++choice.completion_tokens;
  choice.experts = token.experts;
  choice.logprob_sum += token.logprob;
  if (context_.metrics) {
    if (!first_token_seen_) context_.metrics->ObserveFirstToken(SecondsSince(arrival_, time));
    if (choice.last_token_time) {
      context_.metrics->ObserveInterToken(SecondsSince(*choice.last_token_time, time));
    }
  }
  first_token_seen_ = true;
  choice.last_token_time = time;
  const bool terminal = terminal_.contains(token.token);
  // Completions list every token that counts; chat lists those of the message.
  if (plan_.logprobs >= 0 && !(terminal && plan_.chat)) {
    choice.entries.push_back(Entry(token, choice.text_offset));
  }
  if (terminal) return;
  const std::string text = choice.stream->Push(token.token);
  choice.text_offset += Characters(text);
  choice.text += choice.stops->Push(text);
  choice.touched = true;
  if (choice.stops->matched()) {
    context_.model->Cancel(*choice.id);
    Complete(choice, "stop");
  }
}

void GenerationReply::OnFinish(Choice& choice, const Finish& finish) {
  choice.ended_in_engine = true;
  --in_flight_;
  choice.cached_tokens = finish.usage.cached_tokens;
  choice.experts = finish.usage.experts;
  if (!choice.finish_reason.empty()) return;  // a stop string ended it before
  switch (finish.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength: {
      choice.text += choice.stops->Push(choice.stream->Finish());
      choice.text += choice.stops->Finish();
      const bool stop = finish.reason == FinishReason::kStop || choice.stops->matched();
      Complete(choice, stop ? "stop" : "length");
      break;
    }
    case FinishReason::kCancelled:
      Observe(choice, "abort");
      failure_ = openai::UnavailableError("The request was cancelled: the server is stopping.");
      break;
    case FinishReason::kError:
      Observe(choice, "error");
      failure_ = openai::ServerError(finish.error.message);
      break;
  }
}

void GenerationReply::Complete(Choice& choice, std::string reason) {
  choice.finish_reason = std::move(reason);
  choice.touched = true;
  ++completed_;
  Observe(choice, choice.finish_reason);
}

void GenerationReply::Observe(const Choice& choice, std::string_view reason) {
  if (!context_.metrics) return;
  const PlannedPrompt& prompt = plan_.prompts[static_cast<size_t>(choice.prompt)];
  context_.metrics->ObserveRequest(reason, SecondsSince(arrival_),
                                   static_cast<int>(prompt.tokens.size()),
                                   choice.completion_tokens);
}

void GenerationReply::Receive(Mail& mail) {
  Choice& choice = choices_[static_cast<size_t>(mail.choice)];
  if (auto* finish = std::get_if<Finish>(&mail.content)) {
    OnFinish(choice, *finish);
  } else if (!choice.finish_reason.empty()) {
    return;  // tokens that the engine made before it saw our cancel
  } else if (auto* prompt = std::get_if<std::vector<TokenOutput>>(&mail.content)) {
    OnPrompt(choice, *prompt);
  } else {
    OnToken(choice, std::get<TokenOutput>(mail.content), mail.time);
  }
}

bool GenerationReply::Poll(HttpResponse& response) {
  std::vector<Mail> mail;
  if (mailbox_->Drain(mail)) {
    failure_ = openai::UnavailableError(
        "The response was not read fast enough and the request was cancelled.");
  }
  for (Mail& item : mail) {
    if (failure_) break;
    Receive(item);
  }
  if (!failure_) SubmitMore();
  if (failure_) return CompleteWith(*failure_, response);
  if (streamed()) {
    WriteEvents(response.body);
  } else if (Complete()) {
    response.body = Body();
  }
  return Complete();
}

void GenerationReply::Abort(HttpResponse& response) {
  CompleteWith(openai::UnavailableError("The server is stopping."), response);
}

// ---- Writing ----

// Ends everything with an error: as an event when the head is out, otherwise as the response.
bool GenerationReply::CompleteWith(const ApiError& error, HttpResponse& response) {
  failure_ = error;
  Withdraw();
  if (streamed()) {
    response.body += openai::SseEvent(error.ToJson());
    response.body += openai::kSseDone;
  } else {
    HttpResponse failed = ErrorResponse(error);
    for (auto& header : response.headers) failed.headers.push_back(std::move(header));
    response = std::move(failed);
  }
  return true;
}

void GenerationReply::WriteChoice(Choice& choice, std::string& out) {
  const bool usage_follows = plan_.fields.include_usage;
  const bool complete = !choice.finish_reason.empty();
  if (choice.text.empty() && !complete) return;
  openai::ChoiceDelta delta;
  delta.index = static_cast<int>(&choice - choices_.data());
  delta.text = std::exchange(choice.text, {});
  if (plan_.logprobs >= 0) delta.logprobs = std::exchange(choice.entries, {});
  if (!plan_.chat) {
    delta.finish_reason = choice.finish_reason;
    out += openai::SseEvent(openai::CompletionChunk(plan_.identity, delta, usage_follows));
  } else {
    if (!choice.role_sent) {
      choice.role_sent = true;
      out += openai::SseEvent(openai::ChatRoleChunk(plan_.identity, delta.index, usage_follows));
    }
    if (!delta.text.empty() || (delta.logprobs && !delta.logprobs->empty())) {
      out += openai::SseEvent(openai::ChatChunk(plan_.identity, delta, usage_follows));
    }
    if (complete) {
      openai::ChoiceDelta last;
      last.index = delta.index;
      last.finish_reason = choice.finish_reason;
      out += openai::SseEvent(openai::ChatChunk(plan_.identity, last, usage_follows));
    }
  }
  choice.finish_sent = complete;
}

void GenerationReply::WriteEvents(std::string& out) {
  for (Choice& choice : choices_) {
    if (choice.touched && !choice.finish_sent) WriteChoice(choice, out);
    choice.touched = false;
  }
  if (!Complete()) return;
  if (plan_.fields.include_usage) {
    out += openai::SseEvent(plan_.chat ? openai::ChatUsageChunk(plan_.identity, Usage())
                                       : openai::CompletionUsageChunk(plan_.identity, Usage()));
  }
  out += openai::kSseDone;
}

// The n candidates of a prompt (whose first choice is `first`) with the best mean log-probability,
// best first; in order when nothing is to be chosen.
std::vector<size_t> GenerationReply::Best(size_t first) const {
  std::vector<size_t> order(static_cast<size_t>(plan_.best_of));
  std::iota(order.begin(), order.end(), first);
  if (plan_.best_of > plan_.fields.n) {
    const auto mean = [&](size_t i) {
      return choices_[i].logprob_sum / std::max(choices_[i].completion_tokens, 1);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return mean(a) > mean(b); });
    order.resize(static_cast<size_t>(plan_.fields.n));
  }
  return order;
}

std::string GenerationReply::Body() {
  std::vector<openai::ChoiceDelta> out;
  for (size_t first = 0; first < choices_.size(); first += static_cast<size_t>(plan_.best_of)) {
    for (const size_t i : Best(first)) {
      openai::ChoiceDelta delta;
      delta.index = static_cast<int>(out.size());
      delta.text = std::move(choices_[i].text);
      if (plan_.logprobs >= 0) delta.logprobs = std::move(choices_[i].entries);
      delta.finish_reason = choices_[i].finish_reason;
      out.push_back(std::move(delta));
    }
  }
  return plan_.chat ? openai::ChatBody(plan_.identity, out, Usage())
                    : openai::CompletionBody(plan_.identity, out, Usage());
}

openai::UsageCounts GenerationReply::Usage() const {
  openai::UsageCounts usage;
  usage.quality = plan_.quality.quality;
  for (const PlannedPrompt& prompt : plan_.prompts) {
    usage.prompt_tokens += static_cast<int64_t>(prompt.tokens.size());
  }
  for (const Choice& choice : choices_) {
    usage.completion_tokens += choice.completion_tokens;
    if (choice.candidate == 0) usage.cached_tokens += choice.cached_tokens;
    usage.experts += choice.experts;
  }
  return usage;
}

// ---- Ending ----

void GenerationReply::Withdraw() {
  for (Choice& choice : choices_) {
    if (!choice.id || choice.ended_in_engine) continue;
    context_.model->Cancel(*choice.id);
    choice.ended_in_engine = true;
    if (choice.finish_reason.empty()) Observe(choice, "abort");
  }
}

void GenerationReply::LogEnd() {
  if (!context_.log) return;
  const openai::UsageCounts usage = Usage();
  context_.log->Info("generation ended",
                     {{"request_id", plan_.request_id},
                      {"kind", plan_.chat ? "chat" : "completion"},
                      {"outcome", failure_     ? "error"
                                  : Complete() ? "complete"
                                               : "abandoned"},
                      {"error", failure_ ? std::string_view(failure_->message) : "none"},
                      {"choices", choices_.size()},
                      {"prompt_tokens", usage.prompt_tokens},
                      {"completion_tokens", usage.completion_tokens},
                      {"seconds", SecondsSince(arrival_)}});
}

}  // namespace

HttpResponse ErrorResponse(const ApiError& error) {
  HttpResponse response;
  response.status = error.status;
  response.body = error.ToJson();
  if (error.retry_after_seconds > 0) {
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_seconds));
  }
  return response;
}

openai::Parsed<HttpReply> StartGeneration(GenerationPlan plan, const GenerationContext& context,
                                          Waker waker) {
  const bool streamed = plan.fields.stream;
  // Best-of is ranked before anything is shown.
  SLUICE_CHECK(!streamed || plan.best_of == plan.fields.n);
  auto reply = std::make_unique<GenerationReply>(std::move(plan), context, std::move(waker));
  reply->SubmitMore();
  if (reply->failure()) return *reply->failure();
  HttpResponse head;
  if (streamed) {
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers.emplace_back("Cache-Control", "no-cache");
    head.headers.emplace_back("X-Accel-Buffering", "no");
  }
  return HttpReply(std::move(head), std::move(reply));
}

}  // namespace sluice
