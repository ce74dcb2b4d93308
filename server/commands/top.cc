// `sluice top`: a live view of a running server, from its /metrics.
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "server/commands/commands.h"
#include "server/commands/top_view.h"
#include "server/version.h"

namespace sluice {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr const char* kManual =
    R"(Shows what a running server does, from its /metrics: tokens per second, hits and misses of experts, stalls, bytes by
link and tier, what prefetch came to, and a heat map of experts by layer (one cell per expert, or for several where the
window is narrow; bright: chosen often; a dot: in memory). Figures are of the time since the view before.

Exit status: 0 ended by the user, or shown once; 1 the server could not be read.

Examples:
  sluice top
  sluice top http://box:8080 --interval 5
  sluice top --once --json | jq .hit_rate)";

constexpr std::chrono::seconds kTimeout{10};
constexpr size_t kMaxBody = size_t{64} << 20;

struct Arguments {
  std::string server = "http://127.0.0.1:8080";
  std::string key_file;
  double interval_seconds = 1;
  bool once = false, json = false;
};

struct Address {
  std::string host, port;
};

Result<Address> ParseServer(std::string_view url) {
  constexpr std::string_view kScheme = "http://";
  if (url.substr(0, kScheme.size()) == kScheme) url.remove_prefix(kScheme.size());
  while (!url.empty() && url.back() == '/') url.remove_suffix(1);
  if (url.empty() || url.find('/') != std::string_view::npos) {
    return InvalidArgument("\"" + std::string(url) +
                           "\" is no server; give http://HOST:PORT (https is not spoken here)");
  }
  const size_t bracket = url.rfind(']');  // of an IPv6 address
  const size_t colon = url.rfind(':');
  const bool port =
      colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket);
  std::string host(url.substr(0, port ? colon : std::string_view::npos));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return Address{host, port ? std::string(url.substr(colon + 1)) : "8080"};
}

Result<std::string> ReadKey(const std::string& path) {
  std::ifstream file(path);
  std::string key;
  if (!std::getline(file, key) || key.empty()) {
    return InvalidArgument("no API key in the first line of " + path);
  }
  return key;
}

class Viewer {
 public:
  Viewer(Arguments arguments, Address address, std::string key)
      : arguments_(std::move(arguments)),
        address_(std::move(address)),
        key_(std::move(key)),
        terminal_(isatty(STDOUT_FILENO) == 1 && !arguments_.once && !arguments_.json) {}

  // Returns the exit code.
  int Run() {
    asio::signal_set signals(context_, SIGINT, SIGTERM);
    signals.async_wait([this](const boost::system::error_code& error, int) {
      if (!error) context_.stop();
    });
    int exit_code = 0;
    asio::co_spawn(context_, Loop(), [&](const std::exception_ptr& failure, int code) {
      exit_code = failure ? kExitRuntime : code;
      context_.stop();
    });
    if (terminal_) Write("\x1b[?1049h\x1b[?25l");  // another screen, no cursor
    context_.run();
    if (terminal_) Write("\x1b[?25h\x1b[?1049l");
    return exit_code;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static void Write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  asio::awaitable<Result<Scrape>> Get() {
    Error error;
    try {
      asio::ip::tcp::resolver resolver(context_);
      beast::tcp_stream stream(context_);
      stream.expires_after(kTimeout);
      const auto endpoints =
          co_await resolver.async_resolve(address_.host, address_.port, asio::use_awaitable);
      co_await stream.async_connect(endpoints, asio::use_awaitable);
      http::request<http::empty_body> request(http::verb::get, "/metrics?experts=1", 11);
      request.set(http::field::host, address_.host);
      request.set(http::field::user_agent, std::string("sluice-top/") + kVersion);
      request.set(http::field::connection, "close");
      if (!key_.empty()) request.set(http::field::authorization, "Bearer " + key_);
      co_await http::async_write(stream, request, asio::use_awaitable);
      beast::flat_buffer buffer;
      http::response_parser<http::string_body> parser;
      parser.body_limit(kMaxBody);
      co_await http::async_read(stream, buffer, parser, asio::use_awaitable);
      if (parser.get().result_int() == 200) co_return Scrape::Parse(parser.get().body());
      error = Unavailable(arguments_.server + " answered /metrics with status " +
                          std::to_string(parser.get().result_int()) +
                          (parser.get().result_int() == 401 ? "; give --api-key-file" : ""));
    } catch (const boost::system::system_error& failure) {
      error =
          Unavailable("cannot read " + arguments_.server + "/metrics: " + failure.code().message());
    }
    co_return error;
  }

  void Show(const TopView& view) {
    if (arguments_.json) return Write(TopJson(view, arguments_.server).dump() + "\n");
    TopPage page;
    winsize window{};
    if (isatty(STDOUT_FILENO) == 1 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 &&
        window.ws_col > 0) {
      page.columns = window.ws_col;
      page.color = true;
      if (terminal_) page.rows = window.ws_row;
    }
    const std::string text = RenderTop(view, arguments_.server, page);
    if (!terminal_) return Write(text);
    // Line ends clear what the page before had there.
    std::string screen = "\x1b[H";
    for (const char c : text) screen += c == '\n' ? std::string("\x1b[K\r\n") : std::string(1, c);
    Write(screen + "\x1b[J");
  }

  asio::awaitable<int> Loop() {
    Result<Scrape> before = co_await Get();
    Clock::time_point since = Clock::now();
    if (!before) co_return Fail(before.error());
    asio::steady_timer timer(context_);
    for (;;) {
      timer.expires_after(std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(arguments_.interval_seconds)));
      co_await timer.async_wait(asio::use_awaitable);
      Result<Scrape> now = co_await Get();
      const Clock::time_point time = Clock::now();
      if (!now) {
        if (arguments_.once) co_return Fail(now.error());
        // It may come back.
        if (terminal_) Write("\x1b[H\x1b[K" + now.error().message);
        continue;
      }
      Show(CompareScrapes(*before, *now, std::chrono::duration<double>(time - since).count()));
      if (arguments_.once) co_return 0;
      before = std::move(now);
      since = time;
    }
  }

  static int Fail(const Error& error) {
    std::fprintf(stderr, "sluice top: %s\n", error.message.c_str());
    return kExitRuntime;
  }

  const Arguments arguments_;
  const Address address_;
  const std::string key_;
  const bool terminal_;
  asio::io_context context_{1};
};

int RunTop(const Arguments& arguments) {
  const auto address = ParseServer(arguments.server);
  Result<std::string> key = std::string();
  if (!arguments.key_file.empty()) key = ReadKey(arguments.key_file);
  if (!address || !key) {
    const Error& error = !address ? address.error() : key.error();
    std::fprintf(stderr, "sluice top: %s\n", error.message.c_str());
    return kExitUsage;
  }
  return Viewer(arguments, *address, *key).Run();
}

}  // namespace

void AddTop(CLI::App& app, int* exit_code) {
  auto* command = app.add_subcommand("top", "Watch a running server: experts, tiers, tokens");
  command->footer(kManual);
  auto arguments = std::make_shared<Arguments>();
  command->add_option("server", arguments->server, "The server")->capture_default_str();
  command->add_option("--interval", arguments->interval_seconds, "Seconds between two views")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->add_flag("--once", arguments->once, "Show one view, of one interval, and end");
  command->add_flag("--json", arguments->json, "One line of JSON for every view");
  command->add_option("--api-key-file", arguments->key_file,
                      "File with the API key, where /metrics asks for one");
  command->callback([arguments, exit_code] { *exit_code = RunTop(*arguments); });
}

}  // namespace sluice
