// Renders every case of tests/data/templates (written by scripts/goldens/template_goldens.py with
// Jinja2 and transformers' own environment) and compares bytes, and errors with errors.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/text/chat_template.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

using nlohmann::ordered_json;

ordered_json ReadJson(const std::filesystem::path& path) {
  std::ifstream file(path);
  return ordered_json::parse(file);
}

RenderLimits FixedTime() {
  RenderLimits limits;
  std::tm now{};
  now.tm_year = 2025 - 1900;
  now.tm_mon = 7 - 1;
  now.tm_mday = 4;
  now.tm_hour = 15;
  now.tm_min = 6;
  now.tm_sec = 7;
  now.tm_wday = 5;
  now.tm_yday = 184;
  limits.now = now;
  return limits;
}

// What is wrong with the rendering of one case; empty when nothing is.
std::string Complaint(const std::string& source, const ordered_json& variables,
                      const ordered_json& expected) {
  const Result<ChatTemplate> chat = ChatTemplate::Parse(source);
  const Result<std::string> got =
      chat ? chat->Render(variables, FixedTime()) : Result<std::string>(chat.error());
  if (expected.contains("error")) {
    if (got)
      return "expected an error (" + expected["error"].dump() + "), got " +
             ordered_json(*got).dump();
    if (expected.contains("raised") && got.error().message != expected["raised"]) {
      return "expected the message " + expected["raised"].dump() + ", got " + got.error().message;
    }
    return "";
  }
  if (!got) return "expected " + expected["text"].dump() + ", got the error " + got.error().message;
  if (*got != expected["text"]) {
    return "expected " + expected["text"].dump() + ",\n     got " + ordered_json(*got).dump();
  }
  return "";
}

TEST_CASE("Expressions and statements render as Jinja2 renders them", "[text][template]") {
  const ordered_json file =
      ReadJson(std::filesystem::path(SLUICE_TEST_DATA) / "templates" / "micro.json");
  REQUIRE(file["cases"].size() > 400);
  for (const ordered_json& item : file["cases"]) {
    const std::string source = item["template"];
    INFO("template: " << source);
    const std::string complaint = Complaint(source, file["variables"], item);
    INFO(complaint);
    CHECK(complaint.empty());
  }
}

TEST_CASE("Templates in the style of published models render as transformers renders them",
          "[text][template]") {
  const std::filesystem::path root = std::filesystem::path(SLUICE_TEST_DATA) / "templates";
  const ordered_json inputs = ReadJson(root / "chats.json");
  std::vector<std::filesystem::path> families;
  for (const auto& entry : std::filesystem::directory_iterator(root / "families")) {
    families.push_back(entry.path());
  }
  REQUIRE(families.size() >= 12);
  std::sort(families.begin(), families.end());
  for (const auto& path : families) {
    const ordered_json family = ReadJson(path);
    REQUIRE(family["cases"].size() >= 10);
    for (const ordered_json& item : family["cases"]) {
      const std::string chat = item["chat"];
      INFO(path.filename().string() << ": " << chat << ", settings " << item["settings"]);
      ordered_json variables = inputs["settings"][item["settings"].get<size_t>()];
      variables["messages"] = inputs["chats"][chat];
      const std::string complaint = Complaint(family["template"], variables, item);
      INFO(complaint);
      CHECK(complaint.empty());
    }
  }
}

}  // namespace
}  // namespace sluice
