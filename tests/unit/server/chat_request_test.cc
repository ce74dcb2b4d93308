#include <nlohmann/json.hpp>

#include "server/openai/requests.h"
#include "tests/support/catch.h"

using namespace sluice::openai;
using nlohmann::json;

namespace {

std::string With(const std::string& field, const json& value) {
  json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  body[field] = value;
  return body.dump();
}

std::string Messages(const std::string& messages) { return "{\"messages\": " + messages + "}"; }

}  // namespace

TEST_CASE("A chat request keeps its messages as they were written", "[openai]") {
  const auto request = ParseChat(R"({"messages": [
    {"content": "be brief", "role": "developer"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
     "name": "joe"},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
    {"role": "tool", "content": "42", "tool_call_id": "1"}]})");
  REQUIRE(request);
  const Json& messages = *request->messages();
  CHECK(messages.dump() == R"([{"content":"be brief","role":"system"},)"
                           R"({"role":"user","content":"a\nb","name":"joe"},)"
                           R"({"role":"assistant","content":"","tool_calls":[{"id":"1"}]},)"
                           R"({"role":"tool","content":"42","tool_call_id":"1"}])");
  CHECK(request->top_logprobs == -1);
  CHECK(request->add_generation_prompt);
  CHECK(!request->generation.max_tokens);
}

TEST_CASE("max_completion_tokens goes before max_tokens", "[openai]") {
  CHECK(ParseChat(With("max_tokens", 5))->generation.max_tokens == 5);
  const auto both = ParseChat(
      R"({"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "max_completion_tokens": 7})");
  REQUIRE(both);
  CHECK(both->generation.max_tokens == 7);
}

TEST_CASE("Chat log-probabilities need logprobs before top_logprobs", "[openai]") {
  CHECK(ParseChat(With("logprobs", true))->top_logprobs == 0);
  CHECK(ParseChat(With("top_logprobs", 3)).error().param == "top_logprobs");
  const auto both = ParseChat(
      R"({"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 20})");
  REQUIRE(both);
  CHECK(both->top_logprobs == 20);
}

TEST_CASE("A chat field of a wrong type or range is refused by name", "[openai]") {
  const std::vector<std::pair<const char*, json>> table = {
      {"messages", nullptr},
      {"messages", "hi"},
      {"messages", json::array()},
      {"max_tokens", 0},
      {"max_tokens", "1"},
      {"max_completion_tokens", 0},
      {"logprobs", 1},
      {"temperature", 3},
      {"tools", "none"},
      {"tool_choice", 1},
      {"tool_choice", "maybe"},
      {"parallel_tool_calls", "yes"},
      {"response_format", "text"},
      {"response_format", json::object()},
      {"chat_template_kwargs", 1},
      {"add_generation_prompt", 1},
      {"min_tokens", -1},
  };
  for (const auto& [field, value] : table) {
    CAPTURE(field, value.dump());
    const auto request = ParseChat(With(field, value));
    REQUIRE(!request);
    CHECK(request.error().status == 400);
    CHECK(request.error().param == field);
  }
}

TEST_CASE("A bad message is refused with its place", "[openai]") {
  const std::vector<std::pair<const char*, const char*>> table = {
      {R"(["hi"])", "messages[0]"},
      {R"([{"content": "x"}])", "messages[0].role"},
      {R"([{"role": "king", "content": "x"}])", "messages[0].role"},
      {R"([{"role": 1, "content": "x"}])", "messages[0].role"},
      {R"([{"role": "user"}])", "messages[0].content"},
      {R"([{"role": "user", "content": 5}])", "messages[0].content"},
      {R"([{"role": "user", "content": "a"}, {"role": "user", "content": null}])",
       "messages[1].content"},
      {R"([{"role": "user", "content": ["a"]}])", "messages[0].content[0]"},
      {R"([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])",
       "messages[0].content[0]"},
      {R"([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}])",
       "messages[0].content[1]"},
  };
  for (const auto& [messages, param] : table) {
    CAPTURE(messages);
    const auto request = ParseChat(Messages(messages));
    REQUIRE(!request);
    CHECK(request.error().param == param);
  }
}

TEST_CASE("What is not offered yet answers 501 by name", "[openai]") {
  const json tool = {{"type", "function"}, {"function", {{"name", "f"}}}};
  const auto tools = ParseChat(With("tools", json::array({tool})));
  REQUIRE(!tools);
  CHECK(tools.error().status == 501);
  CHECK(tools.error().param == "tools");
  CHECK(tools.error().message == "tools are not offered yet");
  CHECK(ParseChat(With("tool_choice", "required")).error().status == 501);
  for (const char* type : {"json_object", "json_schema"}) {
    const auto format = ParseChat(With("response_format", {{"type", type}}));
    REQUIRE(!format);
    CHECK(format.error().status == 501);
    CHECK(format.error().param == "response_format");
  }
}

TEST_CASE("Harmless tool and format settings are let through", "[openai]") {
  CHECK(ParseChat(With("tools", json::array())));
  CHECK(ParseChat(With("tool_choice", "none")));
  CHECK(ParseChat(With("tool_choice", "auto")));
  CHECK(ParseChat(With("response_format", {{"type", "text"}})));
  CHECK(ParseChat(With("parallel_tool_calls", true)));
  CHECK(ParseChat(
      R"({"messages": [{"role": "user", "content": "x"}], "tools": [{}], "tool_choice": "none"})"));
}

TEST_CASE("Applying a template needs messages only", "[openai]") {
  const auto request = ParseApplyTemplate(
      R"({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false,
          "chat_template_kwargs": {"enable_thinking": false}})");
  REQUIRE(request);
  CHECK(!request->add_generation_prompt);
  CHECK((*request->template_arguments())["enable_thinking"] == false);
  CHECK(ParseApplyTemplate("{}").error().param == "messages");
}
