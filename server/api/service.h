// The HTTP API: which path does what, who may call it, and in which state the daemon is. Everything
// that is not a socket: the HttpServer calls it, tests call it directly.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/base/log.h"
#include "server/api/generation.h"
#include "server/api/key_gate.h"
#include "server/api/served_model.h"
#include "server/config/api_keys.h"
#include "server/http/message.h"
#include "server/http/route_table.h"
#include "server/metrics/metrics.h"

namespace sluice {

struct ServiceOptions {
  std::vector<std::string> cors_origins;  // "*": any
  bool metrics_require_key = false;
  size_t body_limit_bytes = 8 << 20;  // what the 413 message names
  size_t stream_buffer_bytes = 1 << 20;
};

class Service final : public HttpHandler {
 public:
  // `log` outlives the service.
  Service(ServiceOptions options, ApiKeys keys, std::shared_ptr<Metrics> metrics, Logger& log);

  // Loading until then: /ready and everything that needs the model answer 503.
  void SetModel(std::shared_ptr<ServedModel> model);
  // From now on new work is answered 503.
  void BeginDrain() { draining_ = true; }
  // Stops the engine; only when no thread runs handlers any more.
  void StopEngine();

  bool Admit(const HttpRequest& head, HttpResponse* refusal) override;
  HttpReply Handle(const HttpRequest& request, Waker waker) override;
  HttpResponse ProtocolError(int status, std::string_view message,
                             const HttpRequest& request) override;
  void OnExchange(const HttpRequest& request, int status, size_t sent_bytes, double seconds,
                  ExchangeEnd end) override;
  void OnConnections(int open) override;

 private:
  using ModelHandler = std::function<HttpReply(const HttpRequest&, ServedModel&, Waker)>;

  void AddRoutes();
  // A POST route that needs the model and takes new work.
  void AddWork(const char* path, ModelHandler handler);
  std::shared_ptr<ServedModel> model() const;
  HttpReply Completions(const HttpRequest& request, std::shared_ptr<ServedModel> model,
                        Waker waker);
  HttpReply Chat(const HttpRequest& request, std::shared_ptr<ServedModel> model, Waker waker);
  HttpReply Generate(openai::Parsed<GenerationPlan> plan, std::shared_ptr<ServedModel> model,
                     std::shared_ptr<KeyGate::Pass> pass, Waker waker);
  // Null, with the refusal, when the request's key is over a limit or the queue is full.
  std::shared_ptr<KeyGate::Pass> Enter(const HttpRequest& request, openai::ApiError* refusal);
  // The same for a request whose body was not read; takes nothing.
  std::optional<openai::ApiError> Overload(const HttpRequest& head) const;
  openai::ApiError TooMany(const KeyGate::Refusal& refusal) const;
  HttpReply Models(std::string_view id);
  HttpReply Props();
  HttpResponse Preflight(const HttpRequest& request, const RouteTable::Match& match) const;
  void Decorate(const HttpRequest& request, HttpResponse& response) const;
  bool OriginAllowed(std::string_view origin) const;
  // Whether /admin may be used without a key: by programs of this machine only, not by the web
  // pages that its browsers show.
  bool LocalProgram(const HttpRequest& head) const;

  const ServiceOptions options_;
  const ApiKeys keys_;
  KeyGate gate_;
  const std::shared_ptr<Metrics> metrics_;
  Logger& log_;
  RouteTable routes_;
  std::atomic<bool> draining_ = false;
  mutable std::mutex mutex_;
  std::shared_ptr<ServedModel> model_;  // guarded by mutex_
};

}  // namespace sluice
