#include "server/api/service.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/base/utf8.h"
#include "server/api/admin_memory.h"
#include "server/version.h"

namespace sluice {
namespace {

using openai::ApiError;
using openai::Json;

HttpResponse JsonResponse(const Json& body) {
  HttpResponse response;
  response.body = openai::Dump(body);
  return response;
}

bool IsJsonMediaType(std::string_view type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && type.back() == ' ') type.remove_suffix(1);
  std::string lower(type);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return lower.empty() || lower == "application/json" || lower.ends_with("+json");
}

std::optional<ApiError> CheckModelName(const std::string& name, const ServedModel& model) {
  if (name.empty() || name == model.id) return std::nullopt;
  return openai::ModelNotFound(name);
}

Json ModelJson(const ServedModel& model) {
  return Json{{"id", model.id},
              {"object", "model"},
              {"created", model.created},
              {"owned_by", "sluice"},
              {"max_model_len", model.max_context}};
}

HttpReply Tokenize(const HttpRequest& request, ServedModel& model) {
  const auto parsed = openai::ParseTokenize(request.body);
  if (!parsed) return ErrorResponse(parsed.error());
  if (auto error = CheckModelName(parsed->model, model)) return ErrorResponse(*error);
  const std::vector<int32_t> ids =
      model.codec->Encode(parsed->text, parsed->add_special, parsed->parse_special);
  Json tokens = Json::array();
  for (const int32_t id : ids) {
    if (!parsed->with_pieces) {
      tokens.push_back(id);
      continue;
    }
    const std::string bytes = model.codec->TokenBytes(id);
    Json piece = bytes;
    if (!IsValidUtf8(bytes)) {
      piece = Json::array();
      for (const char c : bytes) piece.push_back(static_cast<unsigned char>(c));
    }
    tokens.push_back(Json{{"id", id}, {"piece", std::move(piece)}});
  }
  return JsonResponse(Json{
      {"tokens", std::move(tokens)}, {"count", ids.size()}, {"max_model_len", model.max_context}});
}

HttpReply Detokenize(const HttpRequest& request, ServedModel& model) {
  const auto parsed = openai::ParseDetokenize(request.body);
  if (!parsed) return ErrorResponse(parsed.error());
  if (auto error = CheckModelName(parsed->model, model)) return ErrorResponse(*error);
  std::string text;
  const auto stream = model.codec->OpenStream(false);
  for (const int32_t id : parsed->tokens) {
    if (id >= model.vocab) {
      return ErrorResponse(openai::BadRequest("tokens", "`tokens` holds id " + std::to_string(id) +
                                                            "; this model's ids are 0 to " +
                                                            std::to_string(model.vocab - 1) + "."));
    }
    text += stream->Push(id);
  }
  text += stream->Finish();
  return JsonResponse(Json{{"content", text}, {"prompt", text}});
}

HttpReply ApplyTemplate(const HttpRequest& request, ServedModel& model) {
  auto parsed = openai::ParseApplyTemplate(request.body);
  if (!parsed) return ErrorResponse(parsed.error());
  if (auto error = CheckModelName(parsed->generation.model, model)) return ErrorResponse(*error);
  if (!model.codec->has_chat_template()) {
    return ErrorResponse(openai::BadRequest({}, "The model has no chat template."));
  }
  const Result<std::string> text = model.codec->RenderChat(
      *parsed->messages(), *parsed->template_arguments(), parsed->add_generation_prompt);
  if (!text) {
    return ErrorResponse(openai::BadRequest(
        "messages", "The chat template refused the messages: " + text.error().message));
  }
  return JsonResponse(Json{{"prompt", *text}});
}

}  // namespace

Service::Service(ServiceOptions options, ApiKeys keys, std::shared_ptr<Metrics> metrics,
                 Logger& log)
    : options_(std::move(options)),
      keys_(std::move(keys)),
      gate_(keys_.limits()),
      metrics_(std::move(metrics)),
      log_(log) {
  AddRoutes();
}

void Service::SetModel(std::shared_ptr<ServedModel> model) {
  std::lock_guard lock(mutex_);
  model_ = std::move(model);
}

std::shared_ptr<ServedModel> Service::model() const {
  std::lock_guard lock(mutex_);
  return model_;
}

void Service::StopEngine() {
  if (const auto served = model()) served->engine.reset();
}

// ---- Routes ----

void Service::AddWork(const char* path, ModelHandler handler) {
  routes_.Add("POST", path,
              [this, handler = std::move(handler)](const HttpRequest& request, std::string_view,
                                                   Waker waker) -> HttpReply {
                if (draining_) {
                  return ErrorResponse(openai::UnavailableError(
                      "The server is shutting down and takes no new work."));
                }
                const auto served = model();
                if (!served) {
                  return ErrorResponse(
                      openai::UnavailableError("The model is still loading; try again soon.", 1));
                }
                if (!IsJsonMediaType(request.Header("content-type"))) {
                  return ErrorResponse({.status = 415,
                                        .message = "The body must be JSON: send Content-Type: "
                                                   "application/json.",
                                        .param = {},
                                        .code = {}});
                }
                return handler(request, *served, std::move(waker));
              });
}

void Service::AddRoutes() {
  const auto get = [this](const char* path, auto handler) {
    routes_.Add("GET", path, [handler](const HttpRequest&, std::string_view rest, Waker) {
      return handler(rest);
    });
  };
  get("/health", [](std::string_view) -> HttpReply { return JsonResponse({{"status", "ok"}}); });
  get("/ready", [this](std::string_view) -> HttpReply {
    if (draining_) return ErrorResponse(openai::UnavailableError("The server is shutting down."));
    if (!model()) return ErrorResponse(openai::UnavailableError("The model is still loading.", 1));
    return JsonResponse({{"status", "ready"}});
  });
  routes_.Add(
      "GET", "/metrics", [this](const HttpRequest& request, std::string_view, Waker) -> HttpReply {
        const auto served = model();
        HttpResponse response;
        response.content_type = "text/plain; version=0.0.4; charset=utf-8";
        // What `sluice top` asks for.
        const bool per_expert = request.query == "experts=1";
        response.body =
            metrics_->Render(served ? std::optional(served->Stats()) : std::nullopt, per_expert);
        return response;
      });
  get("/props", [this](std::string_view) { return Props(); });
  get("/admin/memory", [this](std::string_view) -> HttpReply {
    const auto served = model();
    if (!served) {
      return ErrorResponse(
          openai::UnavailableError("The model is still loading; try again soon.", 1));
    }
    return ShowMemory(*served);
  });
  AddWork("/admin/memory", [this](const HttpRequest& request, ServedModel&, Waker waker) {
    return ChangeMemory(request, model(), log_, std::move(waker));
  });
  get("/v1/models", [this](std::string_view) { return Models({}); });
  get("/v1/models/*", [this](std::string_view rest) { return Models(rest); });
  AddWork("/v1/completions", [this](const HttpRequest& request, ServedModel&, Waker waker) {
    return Completions(request, model(), std::move(waker));
  });
  AddWork("/v1/chat/completions", [this](const HttpRequest& request, ServedModel&, Waker waker) {
    return Chat(request, model(), std::move(waker));
  });
  AddWork("/tokenize", [](const HttpRequest& request, ServedModel& served, Waker) {
    return Tokenize(request, served);
  });
  AddWork("/detokenize", [](const HttpRequest& request, ServedModel& served, Waker) {
    return Detokenize(request, served);
  });
  AddWork("/apply-template", [](const HttpRequest& request, ServedModel& served, Waker) {
    return ApplyTemplate(request, served);
  });
}

HttpReply Service::Completions(const HttpRequest& request, std::shared_ptr<ServedModel> served,
                               Waker waker) {
  ApiError refusal;
  auto pass = Enter(request, &refusal);
  if (!pass) return ErrorResponse(refusal);
  auto parsed = openai::ParseCompletion(request.body);
  if (!parsed) return ErrorResponse(parsed.error());
  if (auto error = CheckModelName(parsed->generation.model, *served)) return ErrorResponse(*error);
  return Generate(PlanCompletion(std::move(*parsed), *served, request.id), served, std::move(pass),
                  std::move(waker));
}

HttpReply Service::Chat(const HttpRequest& request, std::shared_ptr<ServedModel> served,
                        Waker waker) {
  ApiError refusal;
  auto pass = Enter(request, &refusal);
  if (!pass) return ErrorResponse(refusal);
  auto parsed = openai::ParseChat(request.body);
  if (!parsed) return ErrorResponse(parsed.error());
  if (auto error = CheckModelName(parsed->generation.model, *served)) return ErrorResponse(*error);
  return Generate(PlanChat(std::move(*parsed), *served, request.id), served, std::move(pass),
                  std::move(waker));
}

ApiError Service::TooMany(const KeyGate::Refusal& refusal) const {
  metrics_->ObserveRefusal(refusal.reason);
  constexpr double kLeast = 1, kMost = 600;
  return {.status = 429,
          .type = "rate_limit_error",
          .message = refusal.message,
          .param = {},
          .code = "rate_limit_exceeded",
          .retry_after_seconds =
              static_cast<int>(std::ceil(std::clamp(refusal.retry_after_seconds, kLeast, kMost)))};
}

std::optional<ApiError> Service::Overload(const HttpRequest& head) const {
  const size_t key = keys_.Find(head.Header("authorization")).value_or(0);
  if (const auto refusal = gate_.Check(key, std::chrono::steady_clock::now())) {
    return TooMany(*refusal);
  }
  const auto served = model();
  if (!served || draining_) return std::nullopt;
  const EngineStats stats = served->engine->Stats();
  if (stats.queued_requests < served->max_queue) return std::nullopt;
  metrics_->ObserveRefusal("queue");
  ApiError error = openai::FromEngineError(
      ResourceExhausted("the queue is full: " + std::to_string(stats.queued_requests) +
                        " requests wait already; try again later"));
  error.retry_after_seconds = RetryAfterSeconds(stats);
  return error;
}

std::shared_ptr<KeyGate::Pass> Service::Enter(const HttpRequest& request, ApiError* refusal) {
  const size_t key = keys_.Find(request.Header("authorization")).value_or(0);
  KeyGate::Refusal refused;
  auto pass = gate_.Enter(key, std::chrono::steady_clock::now(), &refused);
  if (!pass) *refusal = TooMany(refused);
  return pass;
}

HttpReply Service::Generate(openai::Parsed<GenerationPlan> plan,
                            std::shared_ptr<ServedModel> served,
                            std::shared_ptr<KeyGate::Pass> pass, Waker waker) {
  if (!plan) return ErrorResponse(plan.error());
  auto reply = StartGeneration(
      std::move(*plan),
      {std::move(served), metrics_, &log_, options_.stream_buffer_bytes, std::move(pass)},
      std::move(waker));
  if (!reply) return ErrorResponse(reply.error());
  return std::move(*reply);
}

HttpReply Service::Models(std::string_view id) {
  const auto served = model();
  if (!served) {
    return ErrorResponse(
        openai::UnavailableError("The model is still loading; try again soon.", 1));
  }
  if (id.empty()) {
    return JsonResponse({{"object", "list"}, {"data", Json::array({ModelJson(*served)})}});
  }
  if (id != served->id) return ErrorResponse(openai::ModelNotFound(std::string(id)));
  return JsonResponse(ModelJson(*served));
}

HttpReply Service::Props() {
  const auto served = model();
  if (!served) {
    return ErrorResponse(
        openai::UnavailableError("The model is still loading; try again soon.", 1));
  }
  return JsonResponse({{"model_alias", served->id},
                       {"model_family", served->family},
                       {"build_info", std::string("sluice ") + kVersion},
                       {"total_slots", served->max_running},
                       {"max_queue", served->max_queue},
                       {"default_generation_settings", {{"n_ctx", served->max_context}}},
                       {"has_chat_template", served->codec->has_chat_template()},
                       {"memory", MemoryJson(served->engine->Stats())}});
}

// ---- Before and after handlers ----

bool Service::OriginAllowed(std::string_view origin) const {
  return std::any_of(
      options_.cors_origins.begin(), options_.cors_origins.end(),
      [&](const std::string& allowed) { return allowed == "*" || allowed == origin; });
}

bool Service::LocalProgram(const HttpRequest& head) const {
  std::string_view peer = head.peer;
  if (peer.starts_with("::ffff:")) peer.remove_prefix(7);
  if (peer != "::1" && !peer.starts_with("127.")) return false;
  // A proxy on this machine speaks for others, and a browser for whoever made the page.
  if (!head.Header("forwarded").empty() || !head.Header("x-forwarded-for").empty()) return false;
  const std::string_view origin = head.Header("origin");
  return origin.empty() || OriginAllowed(origin);
}

void Service::Decorate(const HttpRequest& request, HttpResponse& response) const {
  response.headers.emplace_back("x-request-id", request.id);
  if (options_.cors_origins.empty()) return;
  response.headers.emplace_back("Vary", "Origin");
  const std::string_view origin = request.Header("origin");
  if (origin.empty() || !OriginAllowed(origin)) return;
  response.headers.emplace_back("Access-Control-Allow-Origin", std::string(origin));
  response.headers.emplace_back("Access-Control-Expose-Headers", "x-request-id, Retry-After");
}

HttpResponse Service::Preflight(const HttpRequest& request, const RouteTable::Match& match) const {
  HttpResponse response;
  response.status = 204;
  response.headers.emplace_back("Allow", match.allow);
  const std::string_view origin = request.Header("origin");
  if (!origin.empty() && OriginAllowed(origin)) {
    response.headers.emplace_back("Access-Control-Allow-Methods", match.allow);
    response.headers.emplace_back("Access-Control-Allow-Headers",
                                  "Authorization, Content-Type, x-request-id, OpenAI-Organization, "
                                  "OpenAI-Project, x-stainless-arch, x-stainless-lang, "
                                  "x-stainless-os, x-stainless-package-version, "
                                  "x-stainless-retry-count, x-stainless-runtime, "
                                  "x-stainless-runtime-version, x-stainless-timeout");
    response.headers.emplace_back("Access-Control-Max-Age", "600");
  }
  return response;
}

bool Service::Admit(const HttpRequest& head, HttpResponse* refusal) {
  const auto refuse = [&](HttpResponse response) {
    *refusal = std::move(response);
    Decorate(head, *refusal);
    return false;
  };
  RouteTable::Match match = routes_.Find(head.method, head.path);
  if (head.method == "OPTIONS" && head.path == "*") match.allow = "GET, HEAD, POST, OPTIONS";
  if (match.allow.empty()) {
    return refuse(ErrorResponse(
        openai::NotFoundError("Nothing is served at " + head.path.substr(0, 200) + ".")));
  }
  if (head.method == "OPTIONS") return refuse(Preflight(head, match));
  const bool open = head.path == "/health" || head.path == "/ready" ||
                    (head.path == "/metrics" && !options_.metrics_require_key);
  if (!open && !keys_.Accepts(head.Header("authorization"))) {
    HttpResponse response = ErrorResponse(openai::AuthenticationError());
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return refuse(std::move(response));
  }
  if (head.path.starts_with("/admin/") && !keys_.required() && !LocalProgram(head)) {
    return refuse(ErrorResponse({.status = 403,
                                 .type = "permission_error",
                                 .message = "Without API keys (server.api_keys_file) only programs "
                                            "on the server's own machine may use this path.",
                                 .param = {},
                                 .code = {}}));
  }
  if (!match.handler) {
    HttpResponse response = ErrorResponse({.status = 405,
                                           .message = "This path takes " + match.allow + ".",
                                           .param = {},
                                           .code = {}});
    response.headers.emplace_back("Allow", match.allow);
    return refuse(std::move(response));
  }
  // Before its body is read, let alone tokenized.
  if (match.pattern == "/v1/completions" || match.pattern == "/v1/chat/completions") {
    if (const auto overload = Overload(head)) return refuse(ErrorResponse(*overload));
  }
  return true;
}

HttpReply Service::Handle(const HttpRequest& request, Waker waker) {
  const RouteTable::Match match = routes_.Find(request.method, request.path);
  HttpReply reply = (*match.handler)(request, match.rest, std::move(waker));
  Decorate(request, reply.response);
  return reply;
}

HttpResponse Service::ProtocolError(int status, std::string_view message,
                                    const HttpRequest& request) {
  ApiError error;
  error.status = status;
  switch (status) {
    case 413:
      error.message = "The body is longer than " + std::to_string(options_.body_limit_bytes) +
                      " bytes (server.body_limit).";
      break;
    case 431:
      error.message =
          "The request line and headers (or the trailers or extensions of a chunked body) are too "
          "long (server.header_limit).";
      break;
    case 408:
      error.message = "The request did not arrive in time (server.read_timeout).";
      break;
    case 500:
      error = openai::ServerError("The request failed inside the server.");
      log_.Error("handler failed", {{"error", message}});
      break;
    case 503:
      error = openai::UnavailableError(std::string(message), 1);
      break;
    case 501:
      error.message = message;
      break;
    default:
      error.message = "The request is not valid HTTP: " + std::string(message);
  }
  HttpResponse response = ErrorResponse(error);
  // Without CORS headers a page would see a network error instead of the reason.
  if (!request.id.empty()) Decorate(request, response);
  return response;
}

void Service::OnExchange(const HttpRequest& request, int status, size_t sent_bytes, double seconds,
                         ExchangeEnd end) {
  const RouteTable::Match match = routes_.Find(request.method, request.path);
  metrics_->ObserveHttp(match.pattern.empty() ? "other" : match.pattern, status, sent_bytes);
  const char* outcome = end == ExchangeEnd::kComplete     ? "complete"
                        : end == ExchangeEnd::kClientGone ? "client_gone"
                                                          : "write_timeout";
  const Logger::Fields fields = {{"request_id", request.id}, {"peer", request.peer},
                                 {"method", request.method}, {"path", request.path},
                                 {"status", status},         {"sent_bytes", sent_bytes},
                                 {"seconds", seconds},       {"outcome", outcome}};
  // Probes and scrapes come every few seconds.
  const bool routine = status == 200 && (request.path == "/health" || request.path == "/ready" ||
                                         request.path == "/metrics");
  if (routine) {
    log_.Debug("request", fields);
  } else {
    log_.Info("request", fields);
  }
}

void Service::OnConnections(int open) { metrics_->SetConnections(open); }

}  // namespace sluice
