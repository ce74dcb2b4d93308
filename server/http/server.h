// The HTTP/1.1 server: many connections on a few threads. Each connection is one coroutine on its
// own strand; handlers are plain functions (message.h).
//
// Keep-alive and pipelining (requests of a connection are answered one after the other), chunked
// bodies, Expect: 100-continue, limits on headers, bodies, connections and time. While a reply is
// pending the connection keeps reading, so a client that goes away is noticed at once; a client
// that shuts down its sending side while it waits for an answer counts as gone. A client that does
// not take 256 KiB of what it is sent in `write_timeout`, or whose machine is gone for so long, is
// disconnected. When `max_connections` are open, a new one takes the place of the one that has
// waited longest for a request or for the rest of a request's head; if none does, it is answered
// 503.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.h"
#include "server/http/message.h"

namespace sluice {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;
  int threads = 2;         // I/O
  int worker_threads = 1;  // for bodies above kLargeBodyBytes
  int max_connections = 1024;
  size_t body_limit_bytes = 8 << 20;
  size_t header_limit_bytes = 16 << 10;
  std::chrono::milliseconds read_timeout{30000};
  std::chrono::milliseconds write_timeout{30000};
  std::chrono::milliseconds idle_timeout{75000};
  std::chrono::milliseconds ping_interval{15000};
};

// Bodies above this are handled on a worker thread: parsing and tokenizing them takes milliseconds.
inline constexpr size_t kLargeBodyBytes = 16 << 10;

class HttpServer {
 public:
  // Binds and listens; nothing is accepted before Run. `handler` must outlive the server. Errors
  // name the address.
  static Result<std::unique_ptr<HttpServer>> Listen(const HttpServerOptions& options,
                                                    HttpHandler& handler);
  // Stops and joins.
  ~HttpServer();

  int port() const;
  std::string url() const;  // "http://127.0.0.1:8080"; IPv6 hosts in brackets

  // Starts the threads; returns at once.
  void Run();

  // Calls `on_signal` (on an I/O thread) for every SIGTERM and SIGINT.
  void OnSignal(std::function<void()> on_signal);
  // Calls `tick` on an I/O thread every `period` until it returns false.
  void Every(std::chrono::milliseconds period, std::function<bool()> tick);
  // Calls `done` on an I/O thread once, after `delay`.
  void After(std::chrono::milliseconds delay, std::function<void()> done);

  // From now on responses close their connections; `idle` is called (on an I/O thread) when no
  // request is in progress, at once if none is. New connections are still answered.
  void BeginDrain(std::function<void()> idle);
  // Ends every pending reply through PendingReply::Abort.
  void AbortReplies();
  // Stops the threads and joins them. Connections stay open until the destructor. Not from an I/O
  // thread.
  void Stop();

  int open_connections() const;
  int requests_in_progress() const;

  struct Impl;

 private:
  struct Context;
  HttpServer(std::unique_ptr<Context> context, std::shared_ptr<Impl> impl);
  std::unique_ptr<Context> context_;
  std::shared_ptr<Impl> impl_;
};

}  // namespace sluice
