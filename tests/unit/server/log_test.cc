#include "engine/base/log.h"

#include <nlohmann/json.hpp>

#include "tests/support/catch.h"

using namespace sluice;

namespace {
constexpr const char* kTime = "2026-01-02T03:04:05.678Z";
}

TEST_CASE("A text line is the time, the level, the message and its fields", "[log]") {
  CHECK(FormatLogLine(LogFormat::kText, LogLevel::kInfo, kTime, "listening",
                      {{"host", "::1"}, {"port", 8080}, {"note", "two words"}, {"tls", false}}) ==
        "2026-01-02T03:04:05.678Z info  listening host=::1 port=8080 note=\"two words\" tls=false");
}

TEST_CASE("A JSON line parses whatever its fields hold", "[log]") {
  const std::string hostile = "a\"b\\c\n\r\x01\x1b[31m\xff\xc3(é";
  const std::string line = FormatLogLine(LogFormat::kJson, LogLevel::kError, kTime, hostile,
                                         {{"path", hostile}, {"seconds", 0.25}, {"n", -3}});
  CHECK(line.find('\n') == std::string::npos);
  const auto json = nlohmann::json::parse(line);
  CHECK(json["level"] == "error");
  CHECK(json["seconds"] == 0.25);
  CHECK(json["n"] == -3);
  CHECK(json["path"] == "a\"b\\c\n\r\x01\x1b[31m\xef\xbf\xbd\xef\xbf\xbd(é");
}

TEST_CASE("Control characters never reach a text log", "[log]") {
  const std::string line =
      FormatLogLine(LogFormat::kText, LogLevel::kWarn, kTime, "x", {{"p", "a\nb\x1b[0m"}});
  CHECK(line.find('\n') == std::string::npos);
  CHECK(line.find('\x1b') == std::string::npos);
}

TEST_CASE("A long field is cut", "[log]") {
  const std::string line = FormatLogLine(LogFormat::kText, LogLevel::kInfo, kTime, "x",
                                         {{"p", std::string(100000, 'a')}});
  CHECK(line.size() < 5000);
}

TEST_CASE("Lines below the level are not written", "[log]") {
  std::FILE* file = std::tmpfile();
  REQUIRE(file);
  {
    Logger log(LogLevel::kWarn, LogFormat::kText, file);
    log.Info("quiet");
    log.Warn("loud");
    CHECK(!log.Enabled(LogLevel::kInfo));
  }
  std::rewind(file);
  char text[256] = {};
  const size_t size = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  const std::string all(text, size);
  CHECK(all.find("quiet") == std::string::npos);
  CHECK(all.find("loud") != std::string::npos);
}
