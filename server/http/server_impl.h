// What the listener and the connections share. Included by server/http/*.cc only: it brings Asio.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

#include "server/http/server.h"

namespace sluice {

class Connection;

// Where coroutines run. It is no part of Impl: coroutines share Impl, and destroying the context
// destroys them.
struct HttpServer::Context {
  explicit Context(const HttpServerOptions& options)
      : io(options.threads), workers(static_cast<size_t>(options.worker_threads)) {}

  boost::asio::io_context io;
  boost::asio::thread_pool workers;
  std::vector<std::thread> threads;
};

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  Impl(const HttpServerOptions& o, HttpHandler& h, Context& context)
      : options(o), handler(h), io(context.io), workers(context.workers), acceptor(io) {}

  const HttpServerOptions options;
  HttpHandler& handler;
  boost::asio::io_context& io;
  boost::asio::thread_pool& workers;
  boost::asio::ip::tcp::acceptor acceptor;

  std::atomic<int> open = 0;
  std::atomic<int> in_progress = 0;
  std::atomic<bool> draining = false;
  std::atomic<bool> aborting = false;
  std::atomic<uint64_t> next_request = 1;
  uint64_t run_tag = 0;  // makes request ids differ between runs

  std::mutex mutex;
  std::function<void()> on_idle;                // guarded by mutex; taken when it is called
  std::unordered_set<Connection*> connections;  // guarded by mutex

  boost::asio::awaitable<void> Accept();
  void RequestStarted() { in_progress.fetch_add(1); }
  void RequestFinished();
  void CallIdle();
};

// Serves one accepted socket until it closes.
void StartConnection(std::shared_ptr<HttpServer::Impl> server, boost::asio::ip::tcp::socket socket,
                     bool too_many);
// Wakes the connection so that it sees `aborting`.
void WakeConnection(Connection& connection);
// Closes the connection that has waited longest for a request; false when none waits.
bool CloseIdlest(HttpServer::Impl& server);

}  // namespace sluice
