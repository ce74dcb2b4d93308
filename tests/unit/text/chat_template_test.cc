#include "engine/text/chat_template.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/catch.h"

namespace sluice {
namespace {

using nlohmann::ordered_json;

Result<std::string> RenderText(const std::string& source, const RenderLimits& limits = {},
                               const ordered_json& variables = ordered_json::object()) {
  const Result<ChatTemplate> chat = ChatTemplate::Parse(source);
  if (!chat) return chat.error();
  return chat->Render(variables, limits);
}

std::string ParseError(const std::string& source) {
  const Result<ChatTemplate> chat = ChatTemplate::Parse(source);
  return chat ? "" : chat.error().message;
}

TEST_CASE("A syntax error names its line and what was expected", "[text][template]") {
  CHECK(ParseError("one\ntwo {% if x %}\nthree") ==
        "chat template, line 3: expected '{% elif %}' or '{% else %}' or '{% endif %}', got end of "
        "template");
  CHECK(ParseError("a\n{{ x ") == "chat template, line 2: expected '}}', got end of template");
  CHECK(ParseError("{{ 1 + }}") == "chat template, line 1: expected an expression, got '}}'");
  CHECK(ParseError("\n\n{% fro x %}") == "chat template, line 3: unknown tag 'fro'");
  CHECK(ParseError("{{ x|nope }}") == "chat template, line 1: no filter is named 'nope'");
  CHECK(ParseError("{{ (1]") == "chat template, line 1: unexpected ']', expected ')'");
  CHECK(ParseError("\xff") == "the chat template is not valid UTF-8");
}

TEST_CASE("Template inheritance is refused as unsupported", "[text][template]") {
  const Result<ChatTemplate> chat = ChatTemplate::Parse("{% include 'other' %}");
  REQUIRE(!chat);
  CHECK(chat.error().code == ErrorCode::kUnsupported);
}

TEST_CASE("raise_exception gives exactly its message", "[text][template]") {
  const Result<std::string> got = RenderText("{{ raise_exception('Roles must alternate!') }}");
  REQUIRE(!got);
  CHECK(got.error().code == ErrorCode::kInvalidArgument);
  CHECK(got.error().message == "Roles must alternate!");
}

TEST_CASE("An error while rendering names its line", "[text][template]") {
  const Result<std::string> got = RenderText("a\nb {{ missing.attribute }}");
  REQUIRE(!got);
  CHECK(got.error().message == "chat template, line 2: 'missing' is undefined");
}

TEST_CASE("A runaway template ends with an error of its limit", "[text][template]") {
  const std::vector<std::string> sources = {
      "{{ 'a' * 1000000000 }}",
      "{{ [1] * 1000000000 }}",
      "{{ '%1000000000d' % 1 }}",
      "{{ 'a'.center(1000000000) }}",
      "{{ 'a'.ljust(1000000000000) }}",
      "{{ 'x'|indent(100000000000) }}",
      "{{ [1]|tojson(indent=100000000000) }}",
      "{{ range(1000000000) }}",
      "{{ [1]|batch(1000000000, 0)|list }}",
      "{{ [1]|slice(1000000000)|list }}",
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% for i in range(100000) %}{{ "
      "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}"
      "{% endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% endfor %}{{ ns.x == (ns.x|list + []) and ns.x|tojson }}",
      "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}"
      "{% endfor %}",
      "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x|replace('a', "
      "'aaaaaaaa') %}{% endfor %}",
      "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
      "{% set ns = namespace(x=1) %}{% for i in range(10000) %}{% set ns.x = (ns.x,) %}{% endfor %}"
      "{{ {ns.x: 1} }}",
      "{% for i in [[[]]] recursive %}{{ loop([i]) }}{% endfor %}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ 2 ** 64 }}",
  };
  RenderLimits limits;
  limits.max_steps = 500'000;
  for (const std::string& source : sources) {
    INFO(source);
    CHECK(!RenderText(source, limits));
  }
}

TEST_CASE("Output stops at its limit", "[text][template]") {
  RenderLimits limits;
  limits.max_output_bytes = 10;
  CHECK(RenderText("0123456789", limits).value() == "0123456789");
  const Result<std::string> got = RenderText("0123456789{{ 0 }}", limits);
  REQUIRE(!got);
  CHECK(got.error().code == ErrorCode::kResourceExhausted);
}

TEST_CASE("Values as deep as a chain of a hundred thousand are freed without recursion",
          "[text][template]") {
  CHECK(
      RenderText("{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}"
                 "{% endfor %}ok")
          .value() == "ok");
  CHECK(RenderText("{% set ns = namespace(x=1) %}{% for i in range(20000) %}{% set ns.x = "
                   "namespace(x=ns.x) %}{% endfor %}ok")
            .value() == "ok");
  CHECK(RenderText("{% set ns = namespace(m=1) %}{% for i in range(20000) %}{% set old = ns.m %}"
                   "{% macro f() %}{{ old }}{% endmacro %}{% set ns.m = f %}{% endfor %}ok")
            .value() == "ok");
}

TEST_CASE("Deeply nested source is refused, not overflowed", "[text][template]") {
  const auto repeat = [](const std::string& text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  CHECK(!ChatTemplate::Parse("{{ " + repeat("(", 100000)));
  CHECK(!ChatTemplate::Parse("{{ " + repeat("[", 100000)));
  CHECK(!ChatTemplate::Parse("{{ " + repeat("-", 100000) + "1 }}"));
  CHECK(!ChatTemplate::Parse("{{ " + repeat("not ", 100000) + "1 }}"));
  CHECK(!ChatTemplate::Parse("{{ x" + repeat(".a", 100000) + " }}"));
  CHECK(!ChatTemplate::Parse("{{ 1" + repeat(" + 1", 100000) + " }}"));
  CHECK(!ChatTemplate::Parse("{{ x" + repeat("|trim", 100000) + " }}"));
  CHECK(!ChatTemplate::Parse("{{ x" + repeat(" if x else x", 100000) + " }}"));
  CHECK(!ChatTemplate::Parse(repeat("{% if x %}", 100000)));
  CHECK(!ChatTemplate::Parse("{% set " + repeat("(", 100000)));
  CHECK(RenderText("{{ 1" + repeat(" + 1", 200) + " }}").value() == "201");
}

TEST_CASE("Variables that are not valid are refused", "[text][template]") {
  CHECK(!RenderText("x", {}, ordered_json::array()));
  CHECK(!RenderText("x", {}, {{"a", "\xff"}}));
  CHECK(!RenderText("x", {}, {{"a", {{"\xc3", 1}}}}));
  CHECK(!RenderText("x", {}, {{"a", 18446744073709551615U}}));
  ordered_json deep = 1;
  for (int i = 0; i < 2000; ++i) deep = ordered_json::array({std::move(deep)});
  CHECK(!RenderText("x", {}, {{"a", std::move(deep)}}));
}

TEST_CASE("strftime_now without a fixed time tells the clock", "[text][template]") {
  const std::string year = RenderText("{{ strftime_now('%Y') }}").value();
  CHECK(year.size() == 4);
  CHECK(year >= "2025");
  CHECK(!RenderText("{{ strftime_now('%999999999d') }}"));
}

TEST_CASE("Threads render with one template at once", "[text][template]") {
  const ChatTemplate chat =
      ChatTemplate::Parse(
          "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m|length %}"
          "{{ m|upper }}{{ 'literal' }}{% endfor %}{{ ns.n }}")
          .value();
  std::vector<std::string> results(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < results.size(); ++t) {
    threads.emplace_back([&chat, &results, t] {
      for (int i = 0; i < 50; ++i) {
        results[t] = chat.Render({{"messages", {"ab", "cde"}}}).value();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& result : results) CHECK(result == "ABliteralCDEliteral5");
}

class ModelDirectory {
 public:
  ModelDirectory() {
    path_ = std::filesystem::temp_directory_path() /
            ("sluice_chat_template_" + std::to_string(reinterpret_cast<uintptr_t>(this)));
    std::filesystem::create_directory(path_);
  }
  ~ModelDirectory() { std::filesystem::remove_all(path_); }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST_CASE("A model directory gives its template", "[text][template]") {
  const ModelDirectory dir;
  SECTION("none") {
    CHECK(!ChatTemplate::Load(dir.path()).value());
    dir.Write("tokenizer_config.json", "{}");
    CHECK(!ChatTemplate::Load(dir.path()).value());
  }
  SECTION("from the tokenizer configuration") {
    dir.Write("tokenizer_config.json", R"({"chat_template": "{{ 1 }}"})");
    CHECK(ChatTemplate::Load(dir.path()).value()->source() == "{{ 1 }}");
  }
  SECTION("the default of a list") {
    dir.Write("tokenizer_config.json",
              R"({"chat_template": [{"name": "rag", "template": "a"},
                                    {"name": "default", "template": "b"}]})");
    CHECK(ChatTemplate::Load(dir.path()).value()->source() == "b");
  }
  SECTION("the file comes first") {
    dir.Write("tokenizer_config.json", R"({"chat_template": "{{ 1 }}"})");
    dir.Write("chat_template.jinja", "{{ 2 }}");
    CHECK(ChatTemplate::Load(dir.path()).value()->source() == "{{ 2 }}");
  }
  SECTION("errors name the file") {
    const auto message = [&dir] { return ChatTemplate::Load(dir.path()).error().message; };
    dir.Write("tokenizer_config.json", "{");
    CHECK(message().find("tokenizer_config.json") != std::string::npos);
    dir.Write("tokenizer_config.json", R"({"chat_template": 3})");
    CHECK(message().find("tokenizer_config.json") != std::string::npos);
    dir.Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "a"}]})");
    CHECK(message().find("default") != std::string::npos);
    dir.Write("chat_template.jinja", "{{");
    CHECK(message().find("chat_template.jinja: chat template, line 1") != std::string::npos);
  }
}

}  // namespace
}  // namespace sluice
