#include <nlohmann/json.hpp>

#include "server/openai/responses.h"
#include "server/openai/stop_matcher.h"
#include "tests/support/catch.h"

using namespace sluice::openai;
using nlohmann::json;

namespace {

// Everything that a matcher lets out, fed in pieces of `size` bytes, with the end flushed.
std::string Feed(const std::vector<std::string>& stops, const std::string& text, size_t size,
                 bool* matched) {
  StopMatcher matcher(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += size) out += matcher.Push(text.substr(at, size));
  *matched = matcher.matched();
  return out + matcher.Finish();
}

const ResponseIdentity kIdentity = {"cmpl-1", 1700000000, "tiny"};

}  // namespace

TEST_CASE("Text up to a stop string is sent, however it arrives", "[openai][stop]") {
  struct Row {
    std::vector<std::string> stops;
    std::string text, sent;
    bool matched;
  };
  const std::vector<Row> table = {
      {{}, "anything", "anything", false},
      {{"END"}, "one END two", "one ", true},
      {{"END"}, "one EN two", "one EN two", false},
      {{"END"}, "EN", "EN", false},
      {{"END"}, "END", "", true},
      {{"aab"}, "aaab", "a", true},
      {{"aaab"}, "aaaaab", "aa", true},
      {{"abcabd"}, "abcabcabd", "abc", true},
      {{"xyz", "b"}, "a b xyz", "a ", true},
      {{"\n\n"}, "a\nb\n\nc", "a\nb", true},
      {{"é"}, "caf\xc3\xa9!", "caf", true},
  };
  for (const Row& row : table) {
    for (size_t size = 1; size <= row.text.size(); ++size) {
      CAPTURE(row.text, size);
      bool matched = false;
      CHECK(Feed(row.stops, row.text, size, &matched) == row.sent);
      CHECK(matched == row.matched);
    }
  }
}

TEST_CASE("A possible beginning of a stop string is held back, and no more than that",
          "[openai][stop]") {
  StopMatcher matcher({"<end>", "<else>"});
  CHECK(matcher.Push("abc<") == "abc");
  CHECK(matcher.Push("e") == "");
  CHECK(matcher.Push("x") == "<ex");
  CHECK(matcher.Push("<els") == "");
  CHECK(matcher.Push("e>tail") == "");
  CHECK(matcher.matched());
  CHECK(matcher.Push("more") == "");
  CHECK(matcher.Finish() == "");
}

TEST_CASE("The earliest of several stop strings counts", "[openai][stop]") {
  StopMatcher matcher({"bc", "abcd"});
  CHECK(matcher.Push("xabcd") == "x");
  CHECK(matcher.matched());
}

TEST_CASE("An event is one data line and a blank line", "[openai][sse]") {
  CHECK(SseEvent("{\"a\":\"\\n\"}") == "data: {\"a\":\"\\n\"}\n\n");
  CHECK(kSseDone == "data: [DONE]\n\n");
  CHECK(kSsePing == ": ping\n\n");
  // JSON never holds a raw newline, so one event can never become two.
  ChoiceDelta delta;
  delta.text = "a\nb\n\nc\r";
  const std::string chunk = CompletionChunk(kIdentity, delta, false);
  CHECK(chunk.find('\n') == std::string::npos);
  CHECK(json::parse(chunk)["choices"][0]["text"] == "a\nb\n\nc\r");
}

TEST_CASE("A completion body has every member that clients parse", "[openai]") {
  ChoiceDelta choice;
  choice.text = "hello";
  choice.finish_reason = "length";
  const json body = json::parse(CompletionBody(kIdentity, std::vector{choice},
                                               {3, 5, 2, sluice::Quality::kFast, {40, 7, 3}}));
  CHECK(body["id"] == "cmpl-1");
  CHECK(body["object"] == "text_completion");
  CHECK(body["created"] == 1700000000);
  CHECK(body["model"] == "tiny");
  CHECK(
      body["choices"][0] ==
      json({{"index", 0}, {"text", "hello"}, {"logprobs", nullptr}, {"finish_reason", "length"}}));
  CHECK(body["usage"] == json({{"prompt_tokens", 3},
                               {"completion_tokens", 5},
                               {"total_tokens", 8},
                               {"prompt_tokens_details", {{"cached_tokens", 2}}},
                               {"sluice",
                                {{"quality", "fast"},
                                 {"expert_assignments", 40},
                                 {"degraded_assignments", 7},
                                 {"skipped_assignments", 3}}}}));
}

TEST_CASE("Chat chunks start with the role and end with an empty delta", "[openai]") {
  const json first = json::parse(ChatRoleChunk(kIdentity, 1, false));
  CHECK(first["object"] == "chat.completion.chunk");
  CHECK(first["choices"][0]["index"] == 1);
  CHECK(first["choices"][0]["delta"] == json({{"role", "assistant"}, {"content", ""}}));
  CHECK(first["choices"][0]["finish_reason"].is_null());
  CHECK(first["choices"][0].contains("finish_reason"));
  CHECK(!first.contains("usage"));

  ChoiceDelta text;
  text.text = "hi";
  const json middle = json::parse(ChatChunk(kIdentity, text, true));
  CHECK(middle["choices"][0]["delta"] == json({{"content", "hi"}}));
  CHECK(middle["usage"].is_null());
  CHECK(middle.contains("usage"));

  ChoiceDelta last;
  last.finish_reason = "stop";
  const json end = json::parse(ChatChunk(kIdentity, last, false));
  CHECK(end["choices"][0]["delta"] == json::object());
  CHECK(end["choices"][0]["finish_reason"] == "stop");

  const json usage = json::parse(ChatUsageChunk(kIdentity, {1, 2, 0}));
  CHECK(usage["choices"] == json::array());
  CHECK(usage["usage"]["total_tokens"] == 3);
  CHECK(usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 0);
}

TEST_CASE("Completion log-probabilities name every token and include the chosen one", "[openai]") {
  std::vector<TokenEntry> entries(3);
  entries[0] = {"a", std::nullopt, {}, 0};
  entries[1] = {"\xe2\x82", -1.5f, {{"x", -0.5f}}, 1};
  entries[2] = {"c", -std::numeric_limits<float>::infinity(), {{"c", -2.0f}, {"c", -3.0f}}, 1};
  const json out = CompletionLogprobs(entries);
  CHECK(out["tokens"] == json({"a", "bytes:\\xe2\\x82", "c"}));
  CHECK(out["token_logprobs"] == json({nullptr, -1.5, -9999.0}));
  CHECK(out["top_logprobs"][0].is_null());
  CHECK(out["top_logprobs"][1] == json({{"x", -0.5}, {"bytes:\\xe2\\x82", -1.5}}));
  CHECK(out["top_logprobs"][2] == json({{"c", -2.0}}));
  CHECK(out["text_offset"] == json({0, 1, 1}));
}

TEST_CASE("Chat log-probabilities carry the bytes of parts of characters", "[openai]") {
  std::vector<TokenEntry> entries(1);
  entries[0] = {"\xe2\x82", -1.0f, {{"\xe2\x82", -1.0f}, {"e", -2.0f}}, 0};
  const json out = json::parse(Dump(ChatLogprobs(entries)));
  const json& token = out["content"][0];
  CHECK(token["bytes"] == json({0xe2, 0x82}));
  CHECK(token["token"] == "\xef\xbf\xbd");
  CHECK(token["logprob"] == -1.0);
  CHECK(token["top_logprobs"].size() == 2);
  CHECK(token["top_logprobs"][1]["token"] == "e");
  CHECK(token["top_logprobs"][1]["bytes"] == json({'e'}));
}

TEST_CASE("Errors have the four members, null where empty", "[openai]") {
  const json plain = json::parse(ServerError("it broke \xff").ToJson());
  CHECK(plain["error"]["type"] == "server_error");
  CHECK(plain["error"]["message"] == "it broke \xef\xbf\xbd");
  CHECK(plain["error"]["param"].is_null());
  CHECK(plain["error"]["code"].is_null());
  CHECK(FromEngineError(sluice::ResourceExhausted("full")).status == 429);
  CHECK(FromEngineError(sluice::ResourceExhausted("full")).retry_after_seconds > 0);
  CHECK(FromEngineError(sluice::Unavailable("draining")).status == 503);
  CHECK(FromEngineError(sluice::InvalidArgument("bad")).status == 400);
  CHECK(FromEngineError(sluice::Internal("bug")).status == 500);
}
