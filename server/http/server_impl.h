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

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  Impl(const HttpServerOptions& o, HttpHandler& h)
      : options(o),
        handler(h),
        io(o.threads),
        acceptor(io),
        workers(static_cast<size_t>(o.worker_threads)) {}

  const HttpServerOptions options;
  HttpHandler& handler;
  boost::asio::io_context io;
  boost::asio::ip::tcp::acceptor acceptor;
  boost::asio::thread_pool workers;
  std::vector<std::thread> threads;

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

}  // namespace sluice
