#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <future>

#include "server/api/service.h"
#include "server/commands/commands.h"
#include "server/commands/load_model.h"
#include "server/commands/settings.h"
#include "server/commands/tier_watch.h"
#include "server/http/server.h"
#include "server/system/notify.h"
#include "server/system/open_files.h"

namespace sluice {
namespace {

constexpr const char* kFooter = R"(Examples:
  sluice serve --model deploy/demo-model
  sluice serve --model /srv/models/olmoe --host 0.0.0.0 --port 8000 --api-keys-file /etc/sluice/keys
  sluice serve --config /etc/sluice/sluice.toml --print-config

Settings come from built-in defaults, then the TOML file, then the command line; the last one wins.
Sizes take units (512MiB, 4GB), times too (500ms, 30s, 2m).
Prints "ready on http://HOST:PORT" on standard output once it can answer; logs go to standard error.
SIGTERM or SIGINT drains: running requests finish within --drain-timeout; a second signal stops at once.
Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong usage or configuration.)";

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

int Fail(int code, const std::string& message) {
  std::fprintf(stderr, "sluice serve: %s\n", message.c_str());
  return code;
}

// The daemon from its open socket to its end.
class Daemon {
 public:
  Daemon(const Config& config, Logger& log, Service& service, HttpServer& server,
         std::shared_ptr<Metrics> metrics, std::vector<double> account_weights)
      : config_(config),
        log_(log),
        service_(service),
        server_(server),
        metrics_(std::move(metrics)),
        account_weights_(std::move(account_weights)) {}

  int Run();

 private:
  void OnSignal();
  void StartWatchdog(std::shared_ptr<ServedModel> model);
  // Lives until the engine's thread has ended.
  std::unique_ptr<TierWatch> StartTierWatch(const ServedModel& model);

  const Config& config_;
  Logger& log_;
  Service& service_;
  HttpServer& server_;
  const std::shared_ptr<Metrics> metrics_;
  const std::vector<double> account_weights_;  // by API key
  std::atomic<bool> loaded_ = false;
  std::atomic<int> signals_ = 0;
  std::promise<void> drained_;
  std::atomic<bool> drain_reported_ = false;

  void Drained() {
    if (!drain_reported_.exchange(true)) drained_.set_value();
  }
};

void Daemon::OnSignal() {
  const int count = signals_.fetch_add(1) + 1;
  if (count > 1 || !loaded_.load()) {
    // Nothing to save: clients see their connections close. Loading cannot be interrupted.
    log_.Info(count > 1 ? "stopped at once" : "stopped while loading");
    NotifyStopping();
    std::_Exit(count > 1 ? kExitRuntime : 0);
  }
  NotifyStopping();
  log_.Info("draining", {{"requests", server_.requests_in_progress()},
                         {"drain_timeout_seconds", config_.server.drain_timeout.count}});
  service_.BeginDrain();
  server_.BeginDrain([this] { Drained(); });
  const auto timeout =
      std::chrono::milliseconds(static_cast<int64_t>(config_.server.drain_timeout.count * 1000));
  server_.After(timeout, [this] {
    log_.Warn("drain_timeout passed; cancelling what still runs",
              {{"requests", server_.requests_in_progress()}});
    server_.AbortReplies();
    // Time for the last events to be written.
    server_.After(std::chrono::seconds(2), [this] { Drained(); });
  });
}

void Daemon::StartWatchdog(std::shared_ptr<ServedModel> model) {
  const auto period = WatchdogPeriod();
  if (period.count() == 0) return;
  const auto pulse_every = std::chrono::duration_cast<std::chrono::milliseconds>(period / 3);
  // An idle engine pulses once a second, whatever the period.
  const std::chrono::microseconds fresh =
      std::max<std::chrono::microseconds>(period, std::chrono::seconds(2));
  server_.Every(pulse_every, [model, fresh, engine = model->engine.get()] {
    if (std::chrono::steady_clock::now() - engine->LastPulse() < fresh) NotifyWatchdog();
    return true;
  });
}

std::unique_ptr<TierWatch> Daemon::StartTierWatch(const ServedModel& model) {
  Engine* const engine = model.engine.get();
  const ExpertSettings& settings = config_.experts;
  const bool automatic = settings.memory_budget.count == 0;
  std::optional<MemoryPressurePolicy> policy;
  if (settings.pressure == "on" || (settings.pressure == "auto" && automatic)) {
    policy.emplace(automatic);
  }
  auto watch = std::make_unique<TierWatch>(engine, std::move(policy), log_);
  if (engine->Stats().expert_tiers == nullptr) return watch;
  watch->LogStart();
  if (model.routing != nullptr && model.routing->trace_status()) {
    watch->WatchTrace(settings.trace,
                      [routing = model.routing.get()] { return *routing->trace_status(); });
  }
  server_.Every(std::chrono::seconds(1), [watch = watch.get()] {
    watch->Tick(std::chrono::steady_clock::now(), [] { return ReadMemorySignals(); });
    return true;
  });
  return watch;
}

int Daemon::Run() {
  server_.OnSignal([this] { OnSignal(); });
  server_.Run();
  log_.Info("listening", {{"url", server_.url()}});
  NotifyStatus("loading the model");
  auto model = LoadServedModel(config_, account_weights_, metrics_, log_);
  if (!model) {
    server_.Stop();
    const bool usage = model.error().code == ErrorCode::kInvalidArgument ||
                       model.error().code == ErrorCode::kNotFound;
    return Fail(usage ? kExitUsage : kExitRuntime, model.error().message);
  }
  service_.SetModel(*model);
  loaded_ = true;
  StartWatchdog(*model);
  const std::unique_ptr<TierWatch> tier_watch = StartTierWatch(**model);
  NotifyReady("serving " + (*model)->id + " on " + server_.url());
  log_.Info("ready", {{"model", (*model)->id}, {"context", (*model)->max_context}});
  std::printf("ready on %s\n", server_.url().c_str());
  std::fflush(stdout);
  drained_.get_future().wait();
  log_.Info("stopped", {{"requests", server_.requests_in_progress()}});
  server_.Stop();
  tier_watch->LogSummary();
  service_.StopEngine();
  return 0;
}

int Serve(const CommandLine& line, bool print_config, bool json) {
  const Result<LoadedConfig> loaded = LoadConfig(line.config_file, line.Values());
  if (!loaded) return Fail(kExitUsage, loaded.error().message);
  if (print_config) {
    std::fputs((json ? PrintConfigJson(*loaded) : PrintConfig(*loaded)).c_str(), stdout);
    return 0;
  }
  const Config& config = loaded->values;
  if (config.model.path.empty()) {
    return Fail(kExitUsage, "no model is given: use --model PATH or model.path in the file");
  }
  ApiKeys keys;
  if (!config.server.api_keys_file.empty()) {
    Result<ApiKeys> read = ApiKeys::Load(config.server.api_keys_file);
    if (!read) return Fail(kExitUsage, read.error().message);
    keys = std::move(*read);
  }
  std::signal(SIGPIPE, SIG_IGN);  // a log reader that leaves must not stop the daemon
  Logger log(ParseLogLevel(config.log.level), ParseLogFormat(config.log.format));
  if (!keys.required() && !IsLoopback(config.server.host)) {
    log.Warn(
        "ANYONE WHO REACHES THIS ADDRESS CAN USE THE SERVER: no API keys are set "
        "(server.api_keys_file)",
        {{"host", config.server.host}});
  }
  // Up to as many connections again wait to be told that they are too many.
  const int files = 2 * static_cast<int>(config.server.max_connections) + 64;
  if (const int limit = AllowOpenFiles(files); limit < files) {
    log.Warn("fewer files may be open than server.max_connections asks for (ulimit -n)",
             {{"limit", limit}, {"wanted", files}});
  }
  const auto& compat = config.metrics.compat;
  const auto has = [&](const char* name) {
    return std::find(compat.begin(), compat.end(), name) != compat.end();
  };
  auto metrics = std::make_shared<Metrics>(
      MetricsOptions{ModelId(config.model), has("vllm"), has("llamacpp")});
  ServiceOptions options;
  options.cors_origins = config.server.cors_origins;
  options.metrics_require_key = config.metrics.require_key;
  options.body_limit_bytes = static_cast<size_t>(config.server.body_limit.count);
  options.stream_buffer_bytes = static_cast<size_t>(config.server.stream_buffer.count);
  std::vector<double> weights;
  for (const KeyLimits& limits : keys.limits()) weights.push_back(limits.weight);
  Service service(std::move(options), std::move(keys), metrics, log);
  auto server = HttpServer::Listen(ServerOptions(config.server), service);
  if (!server) return Fail(kExitRuntime, server.error().message);
  return Daemon(config, log, service, **server, metrics, std::move(weights)).Run();
}

}  // namespace

void AddServe(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("serve", "Serve a model over OpenAI-style HTTP.");
  auto line = std::make_shared<CommandLine>();
  auto print = std::make_shared<bool>(false);
  auto json = std::make_shared<bool>(false);
  command->footer(kFooter);
  AddSettings(*command, *line);
  command->add_flag("--print-config", *print,
                    "Print the effective settings and where each came from, and exit.");
  command->add_flag("--json", *json, "With --print-config: print JSON.");
  command->callback([=] { *exit_code = Serve(*line, *print, *json); });
}

}  // namespace sluice
