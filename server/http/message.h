// HTTP requests and responses as the handlers see them: plain data, no sockets.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;     // without the query, percent-decoded
  std::string query;    // after '?', as sent
  HttpHeaders headers;  // names in lower case
  std::string body;
  std::string id;    // the client's x-request-id when it is sane, otherwise ours
  std::string peer;  // address, for logs

  // The first header of that (lower-case) name, or empty.
  std::string_view Header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return {};
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
};

// Tells the connection that its PendingReply has news. Safe from any thread, never blocks, and may
// outlive the connection.
using Waker = std::function<void()>;

// A response that takes time. The connection calls it on its own executor; destroying it before it
// is complete withdraws the work behind it.
class PendingReply {
 public:
  virtual ~PendingReply() = default;

  // True: the head goes out at once and every Poll's body is sent as it comes. False: nothing is
  // sent before Poll returns true.
  virtual bool streamed() const = 0;

  // Moves on with what has happened. Streamed: appends what can be sent now to `response.body`,
  // which the caller takes away. Otherwise fills `response` when complete. Returns true when the
  // response is complete; then it is not called again.
  virtual bool Poll(HttpResponse& response) = 0;

  // The server must stop: completes the response with an error as Poll would. Called instead of
  // the next Poll.
  virtual void Abort(HttpResponse& response) = 0;
};

struct HttpReply {
  HttpResponse response;
  std::unique_ptr<PendingReply> pending;  // null: `response` is complete

  HttpReply() = default;
  HttpReply(HttpResponse r) : response(std::move(r)) {}  // NOLINT: implicit
  HttpReply(HttpResponse r, std::unique_ptr<PendingReply> p)
      : response(std::move(r)), pending(std::move(p)) {}
};

enum class ExchangeEnd { kComplete, kClientGone, kWriteTimeout };

// What the server does with requests; implemented by the API service and by test fakes. Called from
// several threads at once.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // Looks at a request whose body has not been read. Returns false and the answer to refuse it
  // without reading the body.
  virtual bool Admit(const HttpRequest& head, HttpResponse* refusal) = 0;

  // Must not block. Large bodies arrive on a worker thread, small ones on an I/O thread.
  virtual HttpReply Handle(const HttpRequest& request, Waker waker) = 0;

  // The answer to a request that cannot be read or handled: 400, 408, 413, 431, 500, 501, or 503
  // (too many connections). `request`: what is known of it; without an id where nothing is.
  virtual HttpResponse ProtocolError(int status, std::string_view message,
                                     const HttpRequest& request) = 0;

  // After each answered request, for logs and metrics.
  virtual void OnExchange(const HttpRequest& request, int status, size_t sent_bytes, double seconds,
                          ExchangeEnd end) = 0;
  virtual void OnConnections(int open) = 0;
};

}  // namespace sluice
