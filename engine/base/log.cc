#include "engine/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <charconv>
#include <chrono>
#include <ctime>

#include "engine/base/utf8.h"

namespace sluice {
namespace {

constexpr size_t kMaxValueBytes = 4096;  // of one field: a hostile header cannot fill a disk

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarn:
      return "warn";
    case LogLevel::kError:
    case LogLevel::kOff:
      break;
  }
  return "error";
}

// The body of a JSON string. Text output uses it too: no control character reaches a terminal.
void AppendEscaped(std::string& out, std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  const bool cut = text.size() > kMaxValueBytes;
  text = text.substr(0, kMaxValueBytes);
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    const auto [kind, length] = ReadUtf8(text, i);
    if (kind != Utf8Step::Kind::kCharacter) {
      out += "\\ufffd";
      i += length;
      continue;
    }
    if (length > 1) {
      out.append(text.substr(i, length));
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += "\\u00";
      out += kHex[static_cast<unsigned char>(c) >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
    i += length;
  }
  if (cut) out += "...";
}

void AppendNumber(std::string& out, double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 6);
  out.append(text, end.ptr);
}

void AppendValue(std::string& out, const LogField& field, LogFormat format) {
  if (const auto* text = std::get_if<std::string_view>(&field.value)) {
    const bool quote =
        format == LogFormat::kJson || text->empty() || text->find(' ') != std::string_view::npos;
    if (quote) out += '"';
    AppendEscaped(out, *text);
    if (quote) out += '"';
  } else if (const auto* integer = std::get_if<int64_t>(&field.value)) {
    out += std::to_string(*integer);
  } else if (const auto* flag = std::get_if<bool>(&field.value)) {
    out += *flag ? "true" : "false";
  } else {
    const double number = std::get<double>(field.value);
    if (number - number == 0) {
      AppendNumber(out, number);
    } else {
      out += "null";
    }
  }
}

std::string UtcNow() {
  const auto now = std::chrono::system_clock::now();
  const auto millis =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  const std::time_t seconds = static_cast<std::time_t>(millis / 1000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[40];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + length, sizeof text - length, ".%03dZ", static_cast<int>(millis % 1000));
  return text;
}

}  // namespace

std::string FormatLogLine(LogFormat format, LogLevel level, std::string_view time,
                          std::string_view message, Logger::Fields fields) {
  std::string line;
  if (format == LogFormat::kJson) {
    line += "{\"time\":\"";
    line += time;
    line += "\",\"level\":\"";
    line += LevelName(level);
    line += "\",\"message\":\"";
    AppendEscaped(line, message);
    line += '"';
    for (const LogField& field : fields) {
      line += ",\"";
      AppendEscaped(line, field.name);
      line += "\":";
      AppendValue(line, field, format);
    }
    line += '}';
    return line;
  }
  line += time;
  line += ' ';
  line += LevelName(level);
  line.append(line.size() - time.size() < 7 ? 7 - (line.size() - time.size()) : 1, ' ');
  AppendEscaped(line, message);
  for (const LogField& field : fields) {
    line += ' ';
    line += field.name;
    line += '=';
    AppendValue(line, field, format);
  }
  return line;
}

struct Logger::Impl {
  spdlog::logger logger;
};

Logger::Logger(LogLevel level, LogFormat format, std::FILE* stream)
    : level_(level), format_(format), impl_([&] {
        // The stdout sinks lock spdlog's console mutex, so two loggers on one stream never mix
        // lines.
        auto sink =
            std::make_shared<spdlog::sinks::stdout_sink_base<spdlog::details::console_mutex>>(
                stream);
        sink->set_pattern("%v");
        auto impl = std::unique_ptr<Impl>(new Impl{spdlog::logger("sluice", std::move(sink))});
        impl->logger.set_level(spdlog::level::trace);
        impl->logger.flush_on(spdlog::level::trace);
        return impl;
      }()) {}

Logger::~Logger() = default;

void Logger::Write(LogLevel level, std::string_view message, Fields fields) {
  if (level < level_ || level_ == LogLevel::kOff) return;
  const std::string line = FormatLogLine(format_, level, UtcNow(), message, fields);
  impl_->logger.log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace sluice
