// Completions and chat through the whole server, with a scripted engine.
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/unit/server/fakes.h"

using namespace sluice;
using namespace sluice::test;
using nlohmann::json;

namespace {

// Every sequence says `text` and ends for `reason`.
void Script(TestServer& server, std::string text, FinishReason reason = FinishReason::kLength) {
  server.engine().on_submit = [=](FakeEngine& engine, RequestId id) {
    if (engine.request(id).prompt_logprobs >= 0) engine.Prompt(id);
    engine.Say(id, text);
    if (reason == FinishReason::kStop) engine.Token(id, kEos);
    engine.End(id, reason);
  };
}

json Complete(TestServer& server, const json& body) {
  Client client(server.port());
  const Response response = client.Ask("POST", "/v1/completions", body.dump());
  INFO(response.body);
  REQUIRE(response.status == 200);
  return response.Json();
}

json ChatBody(const char* content = "hi") {
  return {{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", content}}}}};
}

// The text of all chunks of choice 0; `last_finish` gets the last finish_reason.
std::string Joined(const std::vector<std::string>& events, std::string* last_finish) {
  std::string text;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    const json chunk = json::parse(event);
    if (!chunk.contains("choices")) continue;
    for (const json& choice : chunk["choices"]) {
      if (choice.contains("text")) text += choice["text"].get<std::string>();
      if (choice.contains("delta")) text += choice["delta"].value("content", "");
      if (!choice["finish_reason"].is_null()) *last_finish = choice["finish_reason"];
    }
  }
  return text;
}

}  // namespace

TEST_CASE("A request's quality reaches the engine, and its usage says what was degraded", "[api]") {
  TestServer server;
  Script(server, "ab");
  server.engine().experts = {40, 7, 3};
  const json plain = Complete(server, {{"prompt", "x"}});
  CHECK(server.engine().request(1).quality == QualitySettings{});
  CHECK(plain["usage"]["sluice"]["quality"] == "exact");
  const json body = Complete(
      server, {{"prompt", "x"}, {"sluice", {{"quality", "fast"}, {"experts_per_token", 2}}}});
  CHECK(server.engine().request(2).quality ==
        QualitySettings{.quality = Quality::kFast, .experts_per_token = 2});
  CHECK(body["usage"]["sluice"] == json({{"quality", "fast"},
                                         {"expert_assignments", 40},
                                         {"degraded_assignments", 7},
                                         {"skipped_assignments", 3}}));
  // A stop string ends the text before the engine ends the sequence: what is known by then counts.
  const json stopped =
      Complete(server, {{"prompt", "x"}, {"stop", "b"}, {"sluice", {{"quality", "balanced"}}}});
  CHECK(stopped["usage"]["sluice"]["quality"] == "balanced");
  CHECK(stopped["usage"]["sluice"]["degraded_assignments"] == 7);
}

TEST_CASE("A completion has its text, its reason and its counts", "[api]") {
  TestServer server;
  Script(server, "world", FinishReason::kStop);
  const json body = Complete(server, {{"model", "tiny"}, {"prompt", "hello "}, {"max_tokens", 9}});
  CHECK(body["object"] == "text_completion");
  CHECK(body["id"].get<std::string>().starts_with("cmpl-"));
  CHECK(body["choices"][0]["text"] == "world");
  CHECK(body["choices"][0]["finish_reason"] == "stop");
  CHECK(body["usage"]["prompt_tokens"] == 7);      // with <bos>
  CHECK(body["usage"]["completion_tokens"] == 6);  // with <eos>
  CHECK(body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0);
  const GenerationRequest request = server.engine().request(1);
  CHECK(request.prompt.front() == kBos);
  CHECK(request.max_tokens == 9);
}

TEST_CASE("The model name may be absent; another name answers 404", "[api]") {
  TestServer server;
  Script(server, "x");
  CHECK(Complete(server, {{"prompt", "a"}})["model"] == "tiny");
  CHECK(Complete(server, {{"prompt", "a"}, {"model", ""}})["model"] == "tiny");
  Client client(server.port());
  const Response response =
      client.Ask("POST", "/v1/completions", R"({"prompt": "a", "model": "gpt-4"})");
  CHECK(response.status == 404);
  CHECK(response.Json()["error"]["code"] == "model_not_found");
}

TEST_CASE("A stream of chunks says the same as the whole answer", "[api][stream]") {
  TestServer server;
  Script(server, "gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x91\x8b");
  Client client(server.port());
  const Response response =
      client.Ask("POST", "/v1/completions",
                 R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}})");
  CHECK(response.status == 200);
  CHECK(response.headers.at("content-type").starts_with("text/event-stream"));
  const auto events = response.Events();
  REQUIRE(events.size() >= 3);
  CHECK(events.back() == "[DONE]");
  std::string finish;
  CHECK(Joined(events, &finish) == "gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x91\x8b");
  CHECK(finish == "length");
  const json usage = json::parse(events[events.size() - 2]);
  CHECK(usage["choices"] == json::array());
  CHECK(usage["usage"]["completion_tokens"] == 16);
  // The connection stays usable.
  CHECK(client.Ask("GET", "/health").status == 200);
}

TEST_CASE("No event splits a character, even when its bytes come one by one", "[api][stream]") {
  TestServer server;
  Client client(server.port());
  client.Request("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  REQUIRE(server.engine().WaitForSubmissions(1));
  server.engine().Say(1, "x");
  CHECK(client.ReadUntil("\"x\"") != "");
  server.engine().Say(1, "\xf0\x9f");
  server.engine().Say(1, "\x91\x8b");
  server.engine().End(1, FinishReason::kLength);
  const Response response = client.Read();
  CHECK(response.body.find("\xef\xbf\xbd") == std::string::npos);
  std::string finish;
  CHECK(Joined(response.Events(), &finish) == "x\xf0\x9f\x91\x8b");
}

TEST_CASE("A chat stream starts with the role and ends with an empty delta", "[api][stream]") {
  TestServer server;
  Script(server, "yes", FinishReason::kStop);
  Client client(server.port());
  json body = ChatBody();
  body["stream"] = true;
  const auto events = client.Ask("POST", "/v1/chat/completions", body.dump()).Events();
  REQUIRE(events.size() >= 4);
  const json first = json::parse(events[0])["choices"][0];
  CHECK(first["delta"] == json({{"role", "assistant"}, {"content", ""}}));
  CHECK(first["finish_reason"].is_null());
  const json last = json::parse(events[events.size() - 2])["choices"][0];
  CHECK(last["delta"] == json::object());
  CHECK(last["finish_reason"] == "stop");
  std::string finish;
  CHECK(Joined(events, &finish) == "yes");
  CHECK(events.back() == "[DONE]");
}

TEST_CASE("A chat answer goes through the template without special tokens added", "[api]") {
  TestServer server;
  Script(server, "yes", FinishReason::kStop);
  Client client(server.port());
  const Response response = client.Ask("POST", "/v1/chat/completions", ChatBody().dump());
  REQUIRE(response.status == 200);
  CHECK(server.engine().request(1).prompt == BytesToIds("user:hi;assistant:"));
  const json body = response.Json();
  CHECK(body["object"] == "chat.completion");
  CHECK(body["choices"][0]["message"]["role"] == "assistant");
  CHECK(body["choices"][0]["message"]["content"] == "yes");
  CHECK(body["choices"][0]["logprobs"].is_null());
  // Without max_tokens a chat may fill the context.
  CHECK(server.engine().request(1).max_tokens == 4096 - 18);
}

TEST_CASE("A template's refusal is a 400 that names messages", "[api]") {
  TestServer server;
  Client client(server.port());
  const Response response = client.Ask("POST", "/v1/chat/completions", ChatBody("refuse").dump());
  CHECK(response.status == 400);
  CHECK(response.Json()["error"]["param"] == "messages");
  CHECK(response.Json()["error"]["message"].get<std::string>().find("conversation refused") !=
        std::string::npos);
}

TEST_CASE("A stop string ends the choice, cancels the sequence, and counts up to its token",
          "[api][stop]") {
  TestServer server;
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    engine.Say(id, "one END two");  // never ends by itself
  };
  const json body = Complete(server, {{"prompt", "a"}, {"stop", "END"}, {"max_tokens", 50}});
  CHECK(body["choices"][0]["text"] == "one ");
  CHECK(body["choices"][0]["finish_reason"] == "stop");
  CHECK(body["usage"]["completion_tokens"] == 7);
  CHECK(server.engine().WaitForCancel(1));
}

TEST_CASE("The beginning of a stop string never leaks into a stream", "[api][stop]") {
  TestServer server;
  Client client(server.port());
  client.Request("POST", "/v1/completions",
                 R"({"prompt": "a", "stream": true, "stop": ["<end>"], "max_tokens": 50})");
  REQUIRE(server.engine().WaitForSubmissions(1));
  for (const char* piece : {"ab<", "e", "n", "d", ">", "zz"}) server.engine().Say(1, piece);
  const Response response = client.Read();
  std::string finish;
  CHECK(Joined(response.Events(), &finish) == "ab");
  CHECK(finish == "stop");
  CHECK(server.engine().WaitForCancel(1));
}

TEST_CASE("Text held back for a stop string is sent when it does not come", "[api][stop]") {
  TestServer server;
  Script(server, "ab<en");
  const json body = Complete(server, {{"prompt", "a"}, {"stop", {"<end>"}}});
  CHECK(body["choices"][0]["text"] == "ab<en");
  CHECK(body["choices"][0]["finish_reason"] == "length");
}

TEST_CASE("Several prompts and several choices come in order", "[api]") {
  TestServer server;
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    engine.Say(id, std::to_string(id));
    engine.End(id, FinishReason::kLength);
  };
  const json body = Complete(server, {{"prompt", {"a", "b"}}, {"n", 2}, {"seed", 5}});
  REQUIRE(body["choices"].size() == 4);
  for (int i = 0; i < 4; ++i) {
    CHECK(body["choices"][static_cast<size_t>(i)]["index"] == i);
    CHECK(body["choices"][static_cast<size_t>(i)]["text"] == std::to_string(i + 1));
  }
  CHECK(body["usage"]["prompt_tokens"] == 4);
  CHECK(body["usage"]["completion_tokens"] == 4);
  // A given seed repeats for every prompt and differs between choices.
  CHECK(server.engine().request(1).sampling.seed == 5);
  CHECK(server.engine().request(2).sampling.seed == 6);
  CHECK(server.engine().request(3).sampling.seed == 5);
}

TEST_CASE("More sequences than may be in flight are submitted as others end", "[api]") {
  TestServer server;
  Script(server, "x");
  json prompts = json::array();
  for (int i = 0; i < 300; ++i) prompts.push_back(json::array({65}));
  const json body = Complete(server, {{"prompt", prompts}, {"max_tokens", 1}});
  CHECK(body["choices"].size() == 300);
  CHECK(server.engine().submissions() == 300);
}

TEST_CASE("The best of several candidates come back, best first", "[api]") {
  TestServer server;
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    constexpr float kLogprobs[] = {-3.0f, -1.0f, -2.0f};
    engine.Token(id, 'a' + static_cast<int32_t>(id) - 1, kLogprobs[id - 1]);
    engine.End(id, FinishReason::kLength);
  };
  const json body = Complete(server, {{"prompt", "p"}, {"n", 2}, {"best_of", 3}});
  REQUIRE(body["choices"].size() == 2);
  CHECK(body["choices"][0]["text"] == "b");
  CHECK(body["choices"][1]["text"] == "c");
  CHECK(body["choices"][0]["logprobs"].is_null());
  CHECK(body["usage"]["completion_tokens"] == 3);
  CHECK(server.engine().request(1).logprobs == 0);
}

TEST_CASE("Echo with log-probabilities scores token-id prompts as harnesses expect",
          "[api][echo]") {
  TestServer server;
  Script(server, "!");
  const json body = Complete(server, {{"prompt", {{97, 98, 99}, {100}}},
                                      {"max_tokens", 1},
                                      {"echo", true},
                                      {"logprobs", 1},
                                      {"temperature", 0}});
  REQUIRE(body["choices"].size() == 2);
  const json& choice = body["choices"][0];
  CHECK(choice["text"] == "abc!");
  CHECK(choice["logprobs"]["tokens"] == json({"a", "b", "c", "!"}));
  CHECK(choice["logprobs"]["token_logprobs"] == json({nullptr, -1.0, -2.0, -0.5}));
  CHECK(choice["logprobs"]["text_offset"] == json({0, 1, 2, 3}));
  CHECK(choice["logprobs"]["top_logprobs"][0].is_null());
  CHECK(choice["logprobs"]["top_logprobs"][1] == json({{"x", -0.25}, {"b", -1.0}}));
  CHECK(server.engine().request(1).prompt_logprobs == 1);
  CHECK(body["choices"][1]["text"] == "d!");
}

TEST_CASE("Echo without new tokens scores the prompt only, or computes nothing", "[api][echo]") {
  TestServer server;
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    engine.Prompt(id);
    engine.End(id, FinishReason::kLength);
  };
  const json scored =
      Complete(server, {{"prompt", {97, 98}}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}});
  CHECK(scored["choices"][0]["text"] == "ab");
  CHECK(scored["choices"][0]["finish_reason"] == "length");
  CHECK(scored["choices"][0]["logprobs"]["token_logprobs"] == json({nullptr, -1.0}));
  CHECK(server.engine().request(1).max_tokens == 0);
  const json echoed = Complete(server, {{"prompt", "abc"}, {"max_tokens", 0}, {"echo", true}});
  CHECK(echoed["choices"][0]["text"] == "abc");
  CHECK(echoed["usage"]["completion_tokens"] == 0);
  CHECK(server.engine().submissions() == 1);
}

TEST_CASE("A text prompt is echoed as it was sent, without the token that we put in front",
          "[api][echo]") {
  TestServer server;
  Script(server, "!");
  const json body = Complete(
      server, {{"prompt", "h\xc3\xa9"}, {"max_tokens", 1}, {"echo", true}, {"logprobs", 0}});
  CHECK(body["choices"][0]["text"] == "h\xc3\xa9!");
  CHECK(body["choices"][0]["logprobs"]["tokens"] ==
        json({"<bos>", "h", "bytes:\\xc3", "bytes:\\xa9", "!"}));
  CHECK(body["choices"][0]["logprobs"]["text_offset"] == json({0, 0, 1, 1, 2}));
}

TEST_CASE("Chat log-probabilities list the tokens of the message", "[api]") {
  TestServer server;
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    engine.Token(id, 'a', -0.5f, {{'a', -0.5f}, {'b', -1.5f}});
    engine.Token(id, kEos, -0.1f);
    engine.End(id, FinishReason::kStop);
  };
  json request = ChatBody();
  request["logprobs"] = true;
  request["top_logprobs"] = 2;
  Client client(server.port());
  const json body = client.Ask("POST", "/v1/chat/completions", request.dump()).Json();
  const json& content = body["choices"][0]["logprobs"]["content"];
  REQUIRE(content.size() == 1);
  CHECK(content[0]["token"] == "a");
  CHECK(content[0]["bytes"] == json({97}));
  CHECK(content[0]["top_logprobs"][1]["logprob"] == -1.5);
  CHECK(body["usage"]["completion_tokens"] == 2);
}

TEST_CASE("A prompt that does not fit answers 400 with the counts", "[api]") {
  TestServer server;
  Client client(server.port());
  const std::string prompt(4090, 'a');
  const Response response =
      client.Ask("POST", "/v1/completions", json({{"prompt", prompt}, {"max_tokens", 10}}).dump());
  CHECK(response.status == 400);
  const json error = response.Json()["error"];
  CHECK(error["code"] == "context_length_exceeded");
  CHECK(error["message"].get<std::string>().find("4096") != std::string::npos);
  CHECK(error["message"].get<std::string>().find("4091 in the prompt") != std::string::npos);
  // Without max_tokens the default shrinks to what is left.
  Script(server, "x");
  Complete(server, {{"prompt", prompt}});
  CHECK(server.engine().request(1).max_tokens == 5);
}

TEST_CASE("Ids outside the vocabulary are refused by name", "[api]") {
  TestServer server;
  Client client(server.port());
  for (const auto& [body, param] : std::vector<std::pair<json, std::string>>{
           {{{"prompt", {1, kVocab}}}, "prompt"},
           {{{"prompt", "a"}, {"logit_bias", {{"260", 1}}}}, "logit_bias"},
           {{{"prompt", "a"}, {"stop_token_ids", {260}}}, "stop_token_ids"}}) {
    const Response response = client.Ask("POST", "/v1/completions", body.dump());
    CHECK(response.status == 400);
    CHECK(response.Json()["error"]["param"] == param);
  }
  CHECK(client.Ask("POST", "/detokenize", R"({"tokens": [260]})").status == 400);
}

TEST_CASE("A full queue answers 429 with Retry-After", "[api]") {
  TestServer server;
  server.engine().admit = [](const GenerationRequest&) -> Result<void> {
    return ResourceExhausted("the queue is full (256 requests)");
  };
  Client client(server.port());
  for (const char* stream : {"false", "true"}) {
    const Response response = client.Ask(
        "POST", "/v1/completions", std::string(R"({"prompt": "a", "stream": )") + stream + "}");
    CHECK(response.status == 429);
    CHECK(response.headers.contains("retry-after"));
    CHECK(response.Json()["error"]["type"] == "rate_limit_error");
  }
}

TEST_CASE("A queue that fills up in the middle of a batch is waited for", "[api]") {
  TestServer server;
  std::atomic<int> running = 0;
  server.engine().admit = [&](const GenerationRequest&) -> Result<void> {
    if (running.load() >= 2) return ResourceExhausted("full");
    ++running;
    return {};
  };
  Client client(server.port());
  client.Request("POST", "/v1/completions", R"({"prompt": ["a", "b", "c"], "max_tokens": 1})");
  REQUIRE(server.engine().WaitForSubmissions(2));
  for (const RequestId id : {1, 2, 3}) {
    REQUIRE(server.engine().WaitForSubmissions(id));
    server.engine().Say(id, "x");
    --running;
    server.engine().End(id, FinishReason::kLength);
  }
  const Response response = client.Read();
  CHECK(response.status == 200);
  CHECK(response.Json()["choices"].size() == 3);
}

TEST_CASE("An engine error is a 500, or an event when the stream has begun", "[api]") {
  TestServer server;
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    engine.Say(id, "x");
    engine.End(id, FinishReason::kError, Internal("an expert could not be read"));
  };
  Client client(server.port());
  const Response whole = client.Ask("POST", "/v1/completions", R"({"prompt": "a"})");
  CHECK(whole.status == 500);
  CHECK(whole.Json()["error"]["type"] == "server_error");
  const Response stream =
      client.Ask("POST", "/v1/completions", R"({"prompt": "a", "stream": true})");
  CHECK(stream.status == 200);
  const auto events = stream.Events();
  REQUIRE(events.size() >= 2);
  CHECK(json::parse(events[events.size() - 2])["error"]["message"] ==
        "an expert could not be read");
  CHECK(events.back() == "[DONE]");
}

TEST_CASE("Sampling settings reach the engine", "[api]") {
  TestServer server;
  Script(server, "x");
  Complete(server, {{"prompt", "a"},
                    {"temperature", 0},
                    {"top_p", 0},
                    {"top_k", -1},
                    {"seed", 7},
                    {"stop_token_ids", {5}},
                    {"ignore_eos", true},
                    {"min_tokens", 3},
                    {"priority", 2},
                    {"logit_bias", {{"9", 1.5}}}});
  const GenerationRequest request = server.engine().request(1);
  CHECK(request.sampling.temperature == 0.0f);
  CHECK(request.sampling.top_p > 0.0f);
  CHECK(request.sampling.top_k == 0);
  CHECK(request.sampling.seed == 7);
  CHECK(request.stop_token_ids == std::vector<int32_t>{5});
  CHECK(request.ignore_eos);
  CHECK(request.min_tokens == 3);
  CHECK(request.priority == 2);
  CHECK(request.sampling.logit_bias == std::vector<std::pair<int32_t, float>>{{9, 1.5f}});
  CHECK(!request.name.empty());
}

TEST_CASE("The text endpoints round-trip", "[api]") {
  TestServer server;
  Client client(server.port());
  CHECK(client.Ask("POST", "/tokenize", R"({"content": "ab"})").Json()["tokens"] == json({97, 98}));
  CHECK(client.Ask("POST", "/tokenize", R"({"prompt": "ab"})").Json()["tokens"] ==
        json({kBos, 97, 98}));
  const json pieces =
      client.Ask("POST", "/tokenize", R"({"content": "aé", "with_pieces": true})").Json();
  CHECK(pieces["tokens"][0] == json({{"id", 97}, {"piece", "a"}}));
  CHECK(pieces["tokens"][1] == json({{"id", 0xc3}, {"piece", {0xc3}}}));
  CHECK(client.Ask("POST", "/detokenize", R"({"tokens": [257, 97, 98]})").Json()["content"] ==
        "<bos>ab");
  CHECK(client.Ask("POST", "/apply-template", ChatBody().dump()).Json()["prompt"] ==
        "user:hi;assistant:");
  const json props = client.Ask("GET", "/props").Json();
  CHECK(props["default_generation_settings"]["n_ctx"] == 4096);
  CHECK(client.Ask("GET", "/v1/models/tiny").Json()["object"] == "model");
}
