// One connection: read a request, hand it to the handler, send what comes back, repeat.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <optional>

#include "server/http/route_table.h"
#include "server/http/server_impl.h"

namespace sluice {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 4096;        // asked for at a time, outside the parser
constexpr size_t kWatchBytes = 64 << 10;   // read ahead while a reply is pending
constexpr size_t kWriteBytes = 256 << 10;  // that a client may take write_timeout for
constexpr size_t kLingerBytes = 16 << 20;  // discarded after a refusal, so that it can be read
constexpr std::chrono::seconds kLingerTime{2};

using RequestParser = http::request_parser<http::string_body>;

std::string_view ReasonPhrase(int status) {
  const auto reason = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)));
  return {reason.data(), reason.size()};
}

void AppendDate(std::string& out) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  // Not strftime: its names follow the locale.
  constexpr std::array kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr std::array kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                  "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  char text[64];
  std::snprintf(text, sizeof text, "Date: %s, %02d %s %04d %02d:%02d:%02d GMT\r\n",
                kDays[static_cast<size_t>(utc.tm_wday) % 7], utc.tm_mday,
                kMonths[static_cast<size_t>(utc.tm_mon) % 12], utc.tm_year + 1900, utc.tm_hour,
                utc.tm_min, utc.tm_sec);
  out += text;
}

struct Framing {
  bool keep_alive = true;
  bool http10 = false;
  bool chunked = false;
  std::optional<size_t> content_length;
};

std::string ResponseHead(const HttpResponse& response, const Framing& framing) {
  std::string head = "HTTP/1.1 " + std::to_string(response.status) + " ";
  head += ReasonPhrase(response.status);
  head += "\r\nServer: sluice\r\n";
  AppendDate(head);
  for (const auto& [name, value] : response.headers) {
    head += name + ": " + value + "\r\n";
  }
  if (!response.content_type.empty() && response.status != 204) {
    head += "Content-Type: " + response.content_type + "\r\n";
  }
  if (framing.content_length && response.status != 204) {
    head += "Content-Length: " + std::to_string(*framing.content_length) + "\r\n";
  }
  if (framing.chunked) head += "Transfer-Encoding: chunked\r\n";
  if (!framing.keep_alive) head += "Connection: close\r\n";
  if (framing.keep_alive && framing.http10) head += "Connection: keep-alive\r\n";
  return head + "\r\n";
}

void AppendChunk(std::string& out, std::string_view bytes) {
  char size[20];
  std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
  out += size;
  out += bytes;
  out += "\r\n";
}

// 1 to 128 characters that are safe in a header and a log line.
bool SaneRequestId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

// Splits "/path?query" or "http://host/path?query". False when the path is malformed.
bool SplitTarget(std::string_view target, HttpRequest& request) {
  if (const size_t scheme = target.find("://");
      !target.starts_with('/') && scheme != std::string_view::npos) {
    const size_t path = target.find('/', scheme + 3);
    target = path == std::string_view::npos ? "/" : target.substr(path);
  }
  const size_t question = std::min(target.find('?'), target.size());
  if (question < target.size()) request.query = target.substr(question + 1);
  const std::string_view path = target.substr(0, question);
  return (path.starts_with('/') || path == "*") && PercentDecode(path, &request.path);
}

// A peer that vanished without a word (power, cable, NAT) must not hold a sequence: probes find it
// while nothing is sent, and what it does not acknowledge in `unacknowledged` ends the connection.
void NoticeDeadPeers(tcp::socket& socket, std::chrono::milliseconds unacknowledged) {
  error_code ignored;
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  const auto set = [&](int option, int value) {
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, option, &value, sizeof value);
  };
  set(TCP_KEEPIDLE, 20);
  set(TCP_KEEPINTVL, 10);
  set(TCP_KEEPCNT, 3);
  set(TCP_USER_TIMEOUT, static_cast<int>(std::max<int64_t>(unacknowledged.count(), 1000)));
}

// Whether the body's end can be told: codings other than "chunked" are not decoded, and a body that
// is taken for nothing would be read as the next request.
bool KnownTransferCoding(const HttpRequest& request) {
  std::string value;
  for (const auto& [name, text] : request.headers) {
    if (name == "transfer-encoding") value += value.empty() ? text : "," + text;
  }
  for (char& c : value) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return value.empty() || value == "chunked";
}

}  // namespace

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<HttpServer::Impl> server, tcp::socket socket)
      : server_(std::move(server)),
        socket_(std::move(socket)),
        // What the parser takes as a whole: heads, and between chunks of a body their sizes with
        // extensions and the trailers, which no other limit bounds.
        buffer_(server_->options.header_limit_bytes + kWatchBytes + kReadBytes),
        deadline_(socket_.get_executor()),
        wake_timer_(socket_.get_executor()) {
    server_->handler.OnConnections(server_->open.fetch_add(1) + 1);
    std::lock_guard lock(server_->mutex);
    server_->connections.insert(this);
  }

  ~Connection() {
    {
      std::lock_guard lock(server_->mutex);
      server_->connections.erase(this);
    }
    server_->handler.OnConnections(server_->open.fetch_sub(1) - 1);
  }

  asio::awaitable<void> Run();
  asio::awaitable<void> Refuse();
  void Wake();
  // Nanoseconds of Clock since which the connection waits for a request or for the rest of its
  // head; 0: a request is being served. From any thread.
  int64_t idle_since() const { return idle_since_.load(); }
  // Closes the connection if it still waits.
  void CloseIfIdle();

 private:
  enum class Next { kContinue, kClose };

  // What one exchange did, for OnExchange.
  struct Outcome {
    int status = 0;
    size_t sent_bytes = 0;
    ExchangeEnd end = ExchangeEnd::kComplete;
  };

  asio::awaitable<Next> ServeOne();
  asio::awaitable<Next> Serve(RequestParser& parser, HttpRequest& request, Outcome& outcome);
  asio::awaitable<HttpReply> CallHandler(const HttpRequest& request);
  asio::awaitable<void> ReadFailed(error_code error, const HttpRequest& request, Outcome& outcome);
  asio::awaitable<bool> SendWhole(HttpResponse response, bool head_only, Framing framing,
                                  Outcome& outcome);
  asio::awaitable<bool> Pump(HttpReply reply, bool head_only, Framing framing, Outcome& outcome);
  asio::awaitable<bool> Stream(HttpReply& reply, Framing framing, Outcome& outcome);
  asio::awaitable<bool> Write(std::string_view bytes, Outcome& outcome);
  asio::awaitable<void> WaitForNews(std::optional<std::chrono::milliseconds> at_most);
  asio::awaitable<void> Watch();
  asio::awaitable<void> StopWatching();
  asio::awaitable<void> Linger();

  void FillRequest(const RequestParser& parser, HttpRequest& request, bool* good);
  Waker MakeWaker();
  void Arm(std::chrono::milliseconds time, bool reading);
  void Disarm();

  const std::shared_ptr<HttpServer::Impl> server_;
  tcp::socket socket_;
  boost::beast::flat_buffer buffer_;
  asio::steady_timer deadline_;
  uint64_t deadline_turn_ = 0;  // tells a late expiry from a current one
  bool timed_out_ = false;
  asio::steady_timer wake_timer_;
  bool woken_ = false;
  bool watching_ = false;
  bool stop_watching_ = false;
  bool client_gone_ = false;
  bool waiting_ = false;  // for a request or the rest of its head
  std::atomic<int64_t> idle_since_ = 0;
};

// ---- Time and wake-ups ----

// Reading: the receiving side is shut down, so that the pending and every later read ends while an
// answer can still be sent. Writing: the socket is closed with a reset, which frees its buffers.
void Connection::Arm(std::chrono::milliseconds time, bool reading) {
  const uint64_t turn = ++deadline_turn_;
  timed_out_ = false;
  deadline_.expires_after(time);
  deadline_.async_wait([weak = weak_from_this(), turn, reading](error_code error) {
    const auto self = weak.lock();
    if (error || !self || self->deadline_turn_ != turn) return;
    self->timed_out_ = true;
    error_code ignored;
    if (reading) {
      self->socket_.shutdown(tcp::socket::shutdown_receive, ignored);
    } else {
      self->socket_.set_option(asio::socket_base::linger(true, 0), ignored);
      self->socket_.close(ignored);
    }
  });
}

void Connection::Disarm() {
  ++deadline_turn_;
  deadline_.cancel();
}

void Connection::Wake() {
  asio::post(socket_.get_executor(), [weak = weak_from_this()] {
    if (const auto self = weak.lock()) {
      self->woken_ = true;
      self->wake_timer_.cancel();
    }
  });
}

void Connection::CloseIfIdle() {
  idle_since_ = 0;  // so that it is asked once
  asio::post(socket_.get_executor(), [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self || !self->waiting_) return;
    error_code ignored;
    if (self->socket_.available(ignored) == 0) self->socket_.close(ignored);
  });
}

Waker Connection::MakeWaker() {
  return [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->Wake();
  };
}

asio::awaitable<void> Connection::WaitForNews(std::optional<std::chrono::milliseconds> at_most) {
  if (!woken_) {
    wake_timer_.expires_at(at_most ? Clock::now() + *at_most : Clock::time_point::max());
    co_await wake_timer_.async_wait(kAwait);
  }
  woken_ = false;
}

// Reads ahead while a reply is pending: what comes is the next pipelined request; an end or an
// error means that the client is gone.
asio::awaitable<void> Connection::Watch() {
  const auto self = shared_from_this();
  while (!stop_watching_ && buffer_.size() < kWatchBytes) {
    auto [error, bytes] = co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kAwait);
    buffer_.commit(bytes);
    if (!error) continue;
    if (!stop_watching_ || error != asio::error::operation_aborted) client_gone_ = true;
    break;
  }
  if (!client_gone_ && !stop_watching_) {
    // It has sent more than is read ahead: only a reset can still be noticed.
    auto [error] = co_await socket_.async_wait(tcp::socket::wait_error, kAwait);
    if (error != asio::error::operation_aborted) client_gone_ = true;
  }
  watching_ = false;
  woken_ = true;
  wake_timer_.cancel();
}

asio::awaitable<void> Connection::StopWatching() {
  stop_watching_ = true;
  error_code ignored;
  if (watching_) socket_.cancel(ignored);
  while (watching_) co_await WaitForNews(std::nullopt);
}

// Takes and drops what the client still sends: closing a socket with unread bytes resets it, and
// the reset may overtake the answer.
asio::awaitable<void> Connection::Linger() {
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  Arm(kLingerTime, true);
  std::array<char, 16384> sink;
  for (size_t taken = 0; taken < kLingerBytes;) {
    auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(sink), kAwait);
    if (error) break;
    taken += bytes;
  }
  Disarm();
}

// ---- Sending ----

asio::awaitable<bool> Connection::Write(std::string_view bytes, Outcome& outcome) {
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, kWriteBytes);
    Arm(server_->options.write_timeout, false);
    auto [error, sent] = co_await asio::async_write(socket_, asio::buffer(piece), kAwait);
    Disarm();
    outcome.sent_bytes += sent;
    if (error) {
      outcome.end = timed_out_ ? ExchangeEnd::kWriteTimeout : ExchangeEnd::kClientGone;
      co_return false;
    }
    bytes.remove_prefix(piece.size());
  }
  co_return true;
}

asio::awaitable<bool> Connection::SendWhole(HttpResponse response, bool head_only, Framing framing,
                                            Outcome& outcome) {
  outcome.status = response.status;
  framing.content_length = response.body.size();
  std::string bytes = ResponseHead(response, framing);
  if (!head_only && response.status != 204) bytes += response.body;
  co_return co_await Write(bytes, outcome);
}

// A pending reply, from its start to its end or the client's.
asio::awaitable<bool> Connection::Pump(HttpReply reply, bool head_only, Framing framing,
                                       Outcome& outcome) {
  client_gone_ = false;
  stop_watching_ = false;
  watching_ = true;
  asio::co_spawn(socket_.get_executor(), Watch(), asio::detached);
  bool sent = false;
  if (reply.pending->streamed() && !head_only) {
    sent = co_await Stream(reply, framing, outcome);
  } else {
    while (!client_gone_) {
      if (server_->aborting.load()) {
        reply.pending->Abort(reply.response);
      } else if (!reply.pending->Poll(reply.response)) {
        co_await WaitForNews(std::nullopt);
        continue;
      }
      sent = co_await SendWhole(std::move(reply.response), head_only, framing, outcome);
      break;
    }
  }
  if (client_gone_ && outcome.end == ExchangeEnd::kComplete) {
    outcome.end = ExchangeEnd::kClientGone;
  }
  reply.pending.reset();  // before anything else waits: a client that left frees its work at once
  co_await StopWatching();
  co_return sent && !client_gone_;
}

asio::awaitable<bool> Connection::Stream(HttpReply& reply, Framing framing, Outcome& outcome) {
  outcome.status = reply.response.status;
  framing.chunked = !framing.http10;
  std::string bytes = ResponseHead(reply.response, framing);
  auto last_sent = Clock::now();
  const auto ping = server_->options.ping_interval;
  bool complete = false;
  while (!client_gone_) {
    std::string& body = reply.response.body;
    if (server_->aborting.load()) {
      reply.pending->Abort(reply.response);
      complete = true;
    } else {
      complete = reply.pending->Poll(reply.response);
    }
    if (body.empty() && !complete && Clock::now() - last_sent >= ping) body = ": ping\n\n";
    if (!body.empty()) {
      if (framing.chunked) {
        AppendChunk(bytes, body);
      } else {
        bytes += body;
      }
      body.clear();
    }
    if (complete && framing.chunked) bytes += "0\r\n\r\n";
    if (!bytes.empty()) {
      if (!co_await Write(bytes, outcome)) co_return false;
      bytes.clear();
      last_sent = Clock::now();
    }
    if (complete) co_return true;
    const auto quiet =
        std::chrono::ceil<std::chrono::milliseconds>(last_sent + ping - Clock::now());
    co_await WaitForNews(std::max(quiet, std::chrono::milliseconds(1)));
  }
  co_return false;
}

// ---- Reading and serving ----

void Connection::FillRequest(const RequestParser& parser, HttpRequest& request, bool* good) {
  const auto& message = parser.get();
  const auto text = [](auto view) { return std::string(view.data(), view.size()); };
  request.method = text(message.method_string());
  *good = SplitTarget({message.target().data(), message.target().size()}, request);
  for (const auto& field : message) {
    std::string name = text(field.name_string());
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    request.headers.emplace_back(std::move(name), text(field.value()));
  }
  request.id = request.Header("x-request-id");
  if (!SaneRequestId(request.id)) {
    char id[40];
    std::snprintf(id, sizeof id, "req-%08x-%06llx", static_cast<unsigned>(server_->run_tag),
                  static_cast<unsigned long long>(server_->next_request.fetch_add(1)));
    request.id = id;
  }
  error_code ignored;
  request.peer = socket_.remote_endpoint(ignored).address().to_string(ignored);
}

asio::awaitable<HttpReply> Connection::CallHandler(const HttpRequest& request) {
  try {
    if (request.body.size() <= kLargeBodyBytes) {
      co_return server_->handler.Handle(request, MakeWaker());
    }
    co_return co_await asio::co_spawn(
        server_->workers,
        [this, &request]() -> asio::awaitable<HttpReply> {
          co_return server_->handler.Handle(request, MakeWaker());
        },
        asio::use_awaitable);
  } catch (const std::exception& error) {
    // Libraries throw (memory, JSON); one request fails, the daemon lives.
    co_return server_->handler.ProtocolError(500, error.what(), request);
  }
}

// The request could not be read: answers it where that helps. outcome.status stays 0 where not.
asio::awaitable<void> Connection::ReadFailed(error_code error, const HttpRequest& request,
                                             Outcome& outcome) {
  int status = 0;
  if (timed_out_) {
    status = 408;
  } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    status = 431;
  } else if (error == http::error::body_limit) {
    status = 413;
  } else if (error == http::error::end_of_stream || error == http::error::partial_message) {
    status = 0;
  } else if (error.category() == http::make_error_code(http::error::bad_method).category()) {
    status = 400;
  }
  outcome.end = ExchangeEnd::kClientGone;
  if (status == 0) co_return;
  HttpResponse response = server_->handler.ProtocolError(status, error.message(), request);
  outcome.end = ExchangeEnd::kComplete;
  Framing close;
  close.keep_alive = false;
  if (co_await SendWhole(std::move(response), false, close, outcome)) co_await Linger();
}

asio::awaitable<Connection::Next> Connection::ServeOne() {
  const HttpServerOptions& options = server_->options;
  RequestParser parser;
  parser.header_limit(static_cast<uint32_t>(options.header_limit_bytes));
  parser.body_limit(boost::none);  // checked below, after the handler has had its say

  const auto now = [] { return Clock::now().time_since_epoch().count(); };
  waiting_ = true;
  idle_since_ = now();
  if (buffer_.size() == 0) {
    Arm(options.idle_timeout, true);
    auto [error, bytes] = co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kAwait);
    buffer_.commit(bytes);
    Disarm();
    idle_since_ = error ? 0 : now();
    if (error) co_return Next::kClose;
  }
  Arm(options.read_timeout, true);
  auto [error, bytes] = co_await http::async_read_header(socket_, buffer_, parser, kAwait);
  idle_since_ = 0;
  waiting_ = false;
  HttpRequest request;
  Outcome outcome;
  if (error) {
    Disarm();
    co_await ReadFailed(error, request, outcome);
    if (outcome.status != 0) {
      request.method = request.path = "-";
      server_->handler.OnExchange(request, outcome.status, outcome.sent_bytes, 0, outcome.end);
    }
    co_return Next::kClose;
  }

  const auto start = Clock::now();
  server_->RequestStarted();
  const Next next = co_await Serve(parser, request, outcome);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  server_->handler.OnExchange(request, outcome.status, outcome.sent_bytes, seconds, outcome.end);
  server_->RequestFinished();
  co_return next;
}

asio::awaitable<Connection::Next> Connection::Serve(RequestParser& parser, HttpRequest& request,
                                                    Outcome& outcome) {
  bool good = false;
  FillRequest(parser, request, &good);
  const bool http10 = parser.get().version() < 11;
  const bool head_only = request.method == "HEAD";
  const auto framing = [&] {
    return Framing{.keep_alive = parser.keep_alive() && !server_->draining.load(),
                   .http10 = http10,
                   .content_length = {}};
  };
  const bool expects = !http10 && request.Header("expect") == "100-continue";

  HttpResponse refusal;
  const bool known_coding = KnownTransferCoding(request);
  bool refused = true;
  if (!good) {
    refusal = server_->handler.ProtocolError(400, "The request target is malformed.", request);
  } else if (!known_coding) {
    refusal = server_->handler.ProtocolError(
        501, "Of transfer codings only \"chunked\" is understood.", request);
  } else {
    refused = !server_->handler.Admit(request, &refusal);
  }
  const auto length = parser.content_length();
  if (!refused && length && *length > server_->options.body_limit_bytes) {
    refused = true;
    refusal = server_->handler.ProtocolError(413, {}, request);
  }
  parser.body_limit(server_->options.body_limit_bytes);
  const bool short_body = length ? *length <= kLargeBodyBytes : !parser.chunked();
  if (refused && (expects || !short_body || !known_coding)) {
    Framing close = framing();
    close.keep_alive = false;
    co_await SendWhole(std::move(refusal), head_only, close, outcome);
    co_await Linger();
    co_return Next::kClose;
  }
  if (expects && !parser.is_done()) {
    if (!co_await Write("HTTP/1.1 100 Continue\r\n\r\n", outcome)) co_return Next::kClose;
    Arm(server_->options.read_timeout, true);
  }
  if (!parser.is_done()) {
    auto [error, bytes] = co_await http::async_read(socket_, buffer_, parser, kAwait);
    if (error) {
      Disarm();
      co_await ReadFailed(error, request, outcome);
      co_return Next::kClose;
    }
  }
  Disarm();
  bool sent = false;
  Framing frame = framing();
  if (refused) {
    sent = co_await SendWhole(std::move(refusal), head_only, frame, outcome);
    co_return sent&& frame.keep_alive ? Next::kContinue : Next::kClose;
  }
  request.body = std::move(parser.get().body());
  HttpReply reply = co_await CallHandler(request);
  request.body = {};
  frame = framing();
  if (reply.pending) {
    if (http10 && reply.pending->streamed()) frame.keep_alive = false;
    sent = co_await Pump(std::move(reply), head_only, frame, outcome);
    frame.keep_alive = frame.keep_alive && !server_->draining.load();
  } else {
    sent = co_await SendWhole(std::move(reply.response), head_only, frame, outcome);
  }
  co_return sent&& frame.keep_alive ? Next::kContinue : Next::kClose;
}

asio::awaitable<void> Connection::Run() {
  const auto self = shared_from_this();
  while (co_await ServeOne() == Next::kContinue) {
  }
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

asio::awaitable<void> Connection::Refuse() {
  const auto self = shared_from_this();
  Outcome outcome;
  HttpResponse response =
      server_->handler.ProtocolError(503, "Too many connections are open; try again later.", {});
  Framing close;
  close.keep_alive = false;
  co_await SendWhole(std::move(response), false, close, outcome);
  co_await Linger();
}

void StartConnection(std::shared_ptr<HttpServer::Impl> server, tcp::socket socket, bool too_many) {
  NoticeDeadPeers(socket, server->options.write_timeout);
  auto executor = socket.get_executor();
  auto connection = std::make_shared<Connection>(std::move(server), std::move(socket));
  asio::co_spawn(executor, too_many ? connection->Refuse() : connection->Run(), asio::detached);
}

void WakeConnection(Connection& connection) { connection.Wake(); }

bool CloseIdlest(HttpServer::Impl& server) {
  std::lock_guard lock(server.mutex);
  Connection* idlest = nullptr;
  for (Connection* connection : server.connections) {
    const int64_t since = connection->idle_since();
    if (since != 0 && (idlest == nullptr || since < idlest->idle_since())) idlest = connection;
  }
  if (idlest == nullptr) return false;
  idlest->CloseIfIdle();
  return true;
}

}  // namespace sluice
