// Logs, one line per event: a sentence and named fields. Text for people, JSON for machines.
//
//   log.Info("listening", {{"host", host}, {"port", port}});
//   text  2026-01-02T03:04:05.678Z info  listening host=127.0.0.1 port=8080
//   json  {"time":"2026-01-02T03:04:05.678Z","level":"info","message":"listening","host":...}
//
// A Logger is an object that its users are given; there is no global one. Safe from any thread; a
// line is written whole. Values may hold any bytes: control characters and invalid UTF-8 are
// escaped. Never log a secret or a prompt.
#pragma once

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

namespace sluice {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };
enum class LogFormat { kText, kJson };

struct LogField {
  std::string_view name;
  std::variant<std::string_view, int64_t, double, bool> value;

  LogField(std::string_view n, std::string_view v) : name(n), value(v) {}
  LogField(std::string_view n, const char* v) : name(n), value(std::string_view(v)) {}
  LogField(std::string_view n, const std::string& v) : name(n), value(std::string_view(v)) {}
  LogField(std::string_view n, bool v) : name(n), value(v) {}
  LogField(std::string_view n, double v) : name(n), value(v) {}
  LogField(std::string_view n, int v) : name(n), value(int64_t{v}) {}
  LogField(std::string_view n, long v) : name(n), value(int64_t{v}) {}
  LogField(std::string_view n, unsigned v) : name(n), value(int64_t{v}) {}
  LogField(std::string_view n, unsigned long v) : name(n), value(static_cast<int64_t>(v)) {}
};

class Logger {
 public:
  // Writes to `stream`, which must outlive the logger (stderr does).
  Logger(LogLevel level, LogFormat format, std::FILE* stream = stderr);
  ~Logger();
  Logger(const Logger&) = delete;
  Logger& operator=(const Logger&) = delete;

  bool Enabled(LogLevel level) const { return level >= level_; }

  using Fields = std::initializer_list<LogField>;
  void Debug(std::string_view message, Fields fields = {}) {
    Write(LogLevel::kDebug, message, fields);
  }
  void Info(std::string_view message, Fields fields = {}) {
    Write(LogLevel::kInfo, message, fields);
  }
  void Warn(std::string_view message, Fields fields = {}) {
    Write(LogLevel::kWarn, message, fields);
  }
  void Error(std::string_view message, Fields fields = {}) {
    Write(LogLevel::kError, message, fields);
  }

 private:
  void Write(LogLevel level, std::string_view message, Fields fields);

  struct Impl;
  const LogLevel level_;
  const LogFormat format_;
  const std::unique_ptr<Impl> impl_;
};

// One line without its time stamp and newline; exposed for tests.
std::string FormatLogLine(LogFormat format, LogLevel level, std::string_view time,
                          std::string_view message, Logger::Fields fields);

}  // namespace sluice
