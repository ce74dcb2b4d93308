#include "server/http/server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <random>

#include "server/http/server_impl.h"

namespace sluice {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

constexpr int kSendBufferBytes = 256 << 10;

Error ListenError(const HttpServerOptions& options, const std::string& what,
                  const error_code& error) {
  return IoError("cannot " + what + " " + options.host + ":" + std::to_string(options.port) + ": " +
                 error.message());
}

}  // namespace

void HttpServer::Impl::CallIdle() {
  std::function<void()> call;
  {
    std::lock_guard lock(mutex);
    if (in_progress.load() == 0) call = std::exchange(on_idle, {});
  }
  if (call) call();
}

void HttpServer::Impl::RequestFinished() {
  if (in_progress.fetch_sub(1) == 1 && draining.load()) CallIdle();
}

asio::awaitable<void> HttpServer::Impl::Accept() {
  auto self = shared_from_this();
  while (acceptor.is_open()) {
    auto [error, socket] = co_await acceptor.async_accept(asio::make_strand(io), kAwait);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      // Out of descriptors or memory: the listener must survive until some are given back.
      asio::steady_timer pause(io, std::chrono::milliseconds(50));
      co_await pause.async_wait(kAwait);
      continue;
    }
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    // The kernel would let the buffer of a client that does not read grow to megabytes.
    socket.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
    // Those over the limit are told so, as long as they are not a flood themselves.
    if (open.load() >= 2 * options.max_connections) continue;
    // Kept-alive connections are a courtesy: who comes with a request goes before who has none.
    const bool too_many = open.load() >= options.max_connections && !CloseIdlest(*this);
    StartConnection(self, std::move(socket), too_many);
  }
}

HttpServer::HttpServer(std::unique_ptr<Context> context, std::shared_ptr<Impl> impl)
    : context_(std::move(context)), impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  Stop();
  impl_.reset();
  context_.reset();
}

Result<std::unique_ptr<HttpServer>> HttpServer::Listen(const HttpServerOptions& options,
                                                       HttpHandler& handler) {
  auto context = std::make_unique<Context>(options);
  auto impl = std::make_shared<Impl>(options, handler, *context);
  impl->run_tag = std::random_device{}();
  error_code error;
  tcp::resolver resolver(impl->io);
  const auto found =
      resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
  if (error || found.empty()) return ListenError(options, "resolve", error);
  const tcp::endpoint endpoint = found.begin()->endpoint();
  tcp::acceptor& acceptor = impl->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && endpoint.address().is_v6()) {
    error_code ignored;
    acceptor.set_option(asio::ip::v6_only(false), ignored);
  }
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return ListenError(options, "listen on", error);
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(context), std::move(impl)));
}

int HttpServer::port() const {
  error_code ignored;
  return impl_->acceptor.local_endpoint(ignored).port();
}

std::string HttpServer::url() const {
  const std::string& host = impl_->options.host;
  const bool v6 = host.find(':') != std::string::npos;
  return "http://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port());
}

void HttpServer::Run() {
  asio::co_spawn(impl_->io, impl_->Accept(), asio::detached);
  for (int i = 0; i < impl_->options.threads; ++i) {
    // The acceptor is outstanding work: run returns when Stop stops the context.
    context_->threads.emplace_back([&io = context_->io] { io.run(); });
  }
}

void HttpServer::OnSignal(std::function<void()> on_signal) {
  auto signals = std::make_shared<asio::signal_set>(impl_->io, SIGTERM, SIGINT);
  asio::co_spawn(
      impl_->io,
      [signals, on_signal = std::move(on_signal)]() -> asio::awaitable<void> {
        while (true) {
          auto [error, number] = co_await signals->async_wait(kAwait);
          (void)number;
          if (error) co_return;
          on_signal();
        }
      },
      asio::detached);
}

void HttpServer::Every(std::chrono::milliseconds period, std::function<bool()> tick) {
  asio::co_spawn(
      impl_->io,
      [&io = impl_->io, period, tick = std::move(tick)]() -> asio::awaitable<void> {
        asio::steady_timer timer(io);
        while (tick()) {
          timer.expires_after(period);
          auto [error] = co_await timer.async_wait(kAwait);
          if (error) co_return;
        }
      },
      asio::detached);
}

void HttpServer::After(std::chrono::milliseconds delay, std::function<void()> done) {
  auto timer = std::make_shared<asio::steady_timer>(impl_->io, delay);
  timer->async_wait([timer, done = std::move(done)](error_code error) {
    if (!error) done();
  });
}

void HttpServer::BeginDrain(std::function<void()> idle) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->on_idle = std::move(idle);
  }
  impl_->draining = true;
  asio::post(impl_->io, [impl = impl_.get()] { impl->CallIdle(); });
}

void HttpServer::AbortReplies() {
  impl_->aborting = true;
  std::lock_guard lock(impl_->mutex);
  for (Connection* connection : impl_->connections) WakeConnection(*connection);
}

void HttpServer::Stop() {
  context_->io.stop();
  for (std::thread& thread : context_->threads) thread.join();
  context_->threads.clear();
  context_->workers.stop();
  context_->workers.join();
}

int HttpServer::open_connections() const { return impl_->open.load(); }
int HttpServer::requests_in_progress() const { return impl_->in_progress.load(); }

}  // namespace sluice
