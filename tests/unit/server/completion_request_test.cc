#include <nlohmann/json.hpp>

#include "server/openai/requests.h"
#include "tests/support/catch.h"

using namespace sluice::openai;
using nlohmann::json;

namespace {

// A valid body with `field` set to `value`.
std::string With(const std::string& field, const json& value) {
  json body = {{"prompt", "hi"}};
  body[field] = value;
  return body.dump();
}

struct BadField {
  const char* field;
  json value;
  const char* param;  // null: the field itself
};

}  // namespace

TEST_CASE("A completion request has the documented defaults", "[openai]") {
  const auto request = ParseCompletion(R"({"prompt": "hi"})");
  REQUIRE(request);
  CHECK(std::get<std::string>(request->prompts.at(0)) == "hi");
  CHECK(request->prompts.size() == 1);
  CHECK(!request->generation.max_tokens);
  CHECK(request->generation.n == 1);
  CHECK(request->best_of == 1);
  CHECK(request->logprobs == -1);
  CHECK(!request->echo);
  CHECK(!request->generation.stream);
  CHECK(!request->generation.has_seed);
  CHECK(request->generation.sampling.temperature == 1.0f);
  CHECK(request->generation.sampling.top_p == 1.0f);
  CHECK(request->generation.sampling.top_k == 0);
  CHECK(request->generation.sampling.repetition_penalty == 1.0f);
}

TEST_CASE("Every completion field reaches its member", "[openai]") {
  const auto request = ParseCompletion(R"({
    "model": "m", "prompt": [[1, 2], [3]], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9,
    "n": 2, "best_of": 3, "logprobs": 4, "echo": true, "stop": ["a", "b"], "seed": -1,
    "presence_penalty": -2, "frequency_penalty": 1.5, "logit_bias": {"7": -100, "8": 2.5},
    "top_k": 40, "min_p": 0.05, "typical_p": 0.8, "repetition_penalty": 1.1, "min_tokens": 2,
    "ignore_eos": true, "stop_token_ids": [9], "priority": -3, "user": "u",
    "sluice": {"quality": "exact"}, "unknown": {"ignored": true}, "suffix": null})");
  REQUIRE(request);
  const GenerationFields& g = request->generation;
  CHECK(g.model == "m");
  CHECK(std::get<1>(request->prompts.at(0)) == std::vector<int32_t>{1, 2});
  CHECK(std::get<1>(request->prompts.at(1)) == std::vector<int32_t>{3});
  CHECK(g.max_tokens == 5);
  CHECK(g.sampling.temperature == 0.5f);
  CHECK(g.sampling.top_p == 0.9f);
  CHECK(g.n == 2);
  CHECK(request->best_of == 3);
  CHECK(request->logprobs == 4);
  CHECK(request->echo);
  CHECK(g.stop == std::vector<std::string>{"a", "b"});
  CHECK(g.has_seed);
  CHECK(g.sampling.seed == ~uint64_t{0});
  CHECK(g.sampling.presence_penalty == -2.0f);
  CHECK(g.sampling.frequency_penalty == 1.5f);
  CHECK(g.sampling.logit_bias == std::vector<std::pair<int32_t, float>>{{7, -100.0f}, {8, 2.5f}});
  CHECK(g.sampling.top_k == 40);
  CHECK(g.sampling.min_p == 0.05f);
  CHECK(g.sampling.typical_p == 0.8f);
  CHECK(g.sampling.repetition_penalty == 1.1f);
  CHECK(g.min_tokens == 2);
  CHECK(g.ignore_eos);
  CHECK(g.stop_token_ids == std::vector<int32_t>{9});
  CHECK(g.priority == -3);
}

TEST_CASE("All four shapes of prompt are read", "[openai]") {
  CHECK(ParseCompletion(R"({"prompt": "a"})")->prompts.size() == 1);
  CHECK(ParseCompletion(R"({"prompt": ["a", "b"]})")->prompts.size() == 2);
  CHECK(ParseCompletion(R"({"prompt": [1, 2, 3]})")->prompts.size() == 1);
  CHECK(ParseCompletion(R"({"prompt": [[1], [2], [3]]})")->prompts.size() == 3);
}

TEST_CASE("A completion field of a wrong type or range is refused by name", "[openai]") {
  const std::vector<BadField> table = {
      {"prompt", nullptr, nullptr},
      {"prompt", 5, nullptr},
      {"prompt", json::array(), nullptr},
      {"prompt", {"a", 1}, nullptr},
      {"prompt", {1, "a"}, nullptr},
      {"prompt", {1, -1}, nullptr},
      {"prompt", {1.5}, nullptr},
      {"prompt", {5000000000}, nullptr},
      {"prompt", json::array({json::array()}), nullptr},
      {"prompt", json::array({json::array({1}), "a"}), nullptr},
      {"prompt", json::object(), nullptr},
      {"model", 1, nullptr},
      {"max_tokens", "5", nullptr},
      {"max_tokens", -1, nullptr},
      {"max_tokens", 1.5, nullptr},
      {"max_tokens", true, nullptr},
      {"max_tokens", 3000000000, nullptr},
      {"max_tokens", 0, nullptr},  // without echo
      {"temperature", -0.1, nullptr},
      {"temperature", 2.1, nullptr},
      {"temperature", "hot", nullptr},
      {"top_p", 1.1, nullptr},
      {"top_p", -0.1, nullptr},
      {"top_k", -2, nullptr},
      {"top_k", 1.5, nullptr},
      {"min_p", 2, nullptr},
      {"typical_p", -1, nullptr},
      {"repetition_penalty", 0, nullptr},
      {"presence_penalty", 2.5, nullptr},
      {"frequency_penalty", -3, nullptr},
      {"n", 0, nullptr},
      {"n", 1000, nullptr},
      {"best_of", 0, nullptr},
      {"logprobs", -1, nullptr},
      {"logprobs", 21, nullptr},
      {"logprobs", true, nullptr},
      {"echo", 1, nullptr},
      {"stream", "true", nullptr},
      {"stop", 5, nullptr},
      {"stop", "", nullptr},
      {"stop", {"a", "b", "c", "d", "e"}, nullptr},
      {"stop", {"a", 1}, nullptr},
      {"seed", 1.5, nullptr},
      {"seed", "1", nullptr},
      {"logit_bias", {1, 2}, nullptr},
      {"logit_bias", {{"x", 1}}, nullptr},
      {"logit_bias", {{"-1", 1}}, nullptr},
      {"logit_bias", {{"1", 101}}, nullptr},
      {"logit_bias", {{"1", "a"}}, nullptr},
      {"stop_token_ids", {"a"}, nullptr},
      {"stop_token_ids", 3, nullptr},
      {"ignore_eos", 0, nullptr},
      {"min_tokens", -1, nullptr},
      {"min_tokens", 17, nullptr},  // above the default max_tokens
      {"priority", "high", nullptr},
      {"user", 1, nullptr},
      {"suffix", "end", nullptr},
      {"stream_options", {{"include_usage", true}}, nullptr},  // without stream
      {"sluice", "exact", nullptr},
      {"sluice", {{"quality", "best"}}, "sluice.quality"},
      {"sluice", {{"quality", ""}}, "sluice.quality"},
      {"sluice", {{"quality", 1}}, "sluice.quality"},
      {"sluice", {{"experts_per_token", 0}}, "sluice.experts_per_token"},
      {"sluice", {{"expert_mass", 1.5}}, "sluice.expert_mass"},
      {"sluice", {{"expert_mass", "all"}}, "sluice.expert_mass"},
      {"sluice", {{"expert_prune", -0.1}}, "sluice.expert_prune"},
      {"sluice", {{"speed", 2}}, "sluice.speed"},
  };
  for (const BadField& row : table) {
    CAPTURE(row.field, row.value.dump());
    const auto request = ParseCompletion(With(row.field, row.value));
    REQUIRE(!request);
    CHECK(request.error().status == 400);
    CHECK(request.error().type == "invalid_request_error");
    CHECK(request.error().param == (row.param ? row.param : row.field));
    CHECK(!request.error().message.empty());
  }
}

TEST_CASE("A request names its quality, or leaves it to the server", "[openai]") {
  const auto plain = ParseCompletion(R"({"prompt": "a"})");
  REQUIRE(plain);
  CHECK(!plain->generation.quality);
  CHECK(!plain->generation.expert_mass);
  const auto named = ParseCompletion(
      R"({"prompt": "a", "sluice": {"quality": "fast", "expert_mass": 0.75, "expert_prune": 0.25,
          "experts_per_token": 3}})");
  REQUIRE(named);
  CHECK(named->generation.quality == sluice::Quality::kFast);
  CHECK(named->generation.expert_mass == 0.75f);
  CHECK(named->generation.expert_prune == 0.25f);
  CHECK(named->generation.experts_per_token == 3);
  CHECK(ParseCompletion(R"({"prompt": "a", "sluice": {"quality": "exact"}})")->generation.quality ==
        sluice::Quality::kExact);
}

TEST_CASE("Null means absent in optional fields", "[openai]") {
  for (const char* field :
       {"model",  "max_tokens", "temperature",    "top_p",      "top_k",
        "n",      "best_of",    "logprobs",       "echo",       "stop",
        "seed",   "logit_bias", "stop_token_ids", "stream",     "stream_options",
        "suffix", "sluice",     "user",           "min_tokens", "presence_penalty"}) {
    CAPTURE(field);
    CHECK(ParseCompletion(With(field, nullptr)));
  }
}

TEST_CASE("Fields that depend on one another are checked together", "[openai]") {
  CHECK(ParseCompletion(R"({"prompt": "a", "max_tokens": 0, "echo": true})"));
  CHECK(ParseCompletion(R"({"prompt": "a", "n": 2})")->best_of == 2);
  CHECK(ParseCompletion(R"({"prompt": "a", "n": 3, "best_of": 2})").error().param == "best_of");
  CHECK(ParseCompletion(R"({"prompt": "a", "best_of": 2, "stream": true})").error().param ==
        "best_of");
  const auto streamed = ParseCompletion(
      R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}})");
  REQUIRE(streamed);
  CHECK(streamed->generation.include_usage);
  CHECK(
      ParseCompletion(R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": 1}})")
          .error()
          .param == "stream_options.include_usage");
}

TEST_CASE("Bodies that are no bounded JSON object are refused without a field", "[openai]") {
  const std::string deep(65, '[');
  std::string wide = "{\"prompt\": \"a\"";
  for (int i = 0; i < 1100; ++i) wide += ",\"k" + std::to_string(i) + "\":1";
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("\"text\""),
        std::string("{\"prompt\": \"\xff\"}"), std::string("{\"prompt\": \"\xed\xa0\x80\"}"),
        std::string("{\"prompt\": \"a\",}"), std::string("{'prompt': 'a'}"),
        std::string("{\"prompt\": NaN}"), deep, "{\"prompt\":" + deep + "}", wide + "}",
        std::string("{\"prompt\": \"a\"} trailing"), std::string("\0\0", 2)}) {
    CAPTURE(body.substr(0, 60));
    const auto request = ParseCompletion(body);
    REQUIRE(!request);
    CHECK(request.error().status == 400);
    CHECK(request.error().param.empty());
    CHECK(json::parse(request.error().ToJson())["error"]["param"].is_null());
  }
}

TEST_CASE("Brackets inside strings do not count as nesting, and the last duplicate wins",
          "[openai]") {
  CHECK(ParseCompletion("{\"prompt\": \"" + std::string(500, '[') + "\\\"[[\"}"));
  const auto twice = ParseCompletion(R"({"prompt": "a", "n": 1, "n": 2})");
  REQUIRE(twice);
  CHECK(twice->generation.n == 2);
}

TEST_CASE("Tokenize takes llama.cpp's and vLLM's names with their defaults", "[openai]") {
  const auto llama = ParseTokenize(R"({"content": "x"})");
  REQUIRE(llama);
  CHECK(llama->text == "x");
  CHECK(!llama->add_special);
  CHECK(llama->parse_special);
  const auto vllm = ParseTokenize(R"({"prompt": "x"})");
  REQUIRE(vllm);
  CHECK(vllm->add_special);
  CHECK(!ParseTokenize(R"({"prompt": "x", "add_special_tokens": false})")->add_special);
  CHECK(ParseTokenize(R"({})").error().param == "content");
  CHECK(ParseTokenize(R"({"content": 1})").error().param == "content");
  CHECK(ParseTokenize(R"({"content": "", "with_pieces": 1})").error().param == "with_pieces");
}

TEST_CASE("Detokenize needs an array of ids", "[openai]") {
  CHECK(ParseDetokenize(R"({"tokens": [1, 2]})")->tokens == std::vector<int32_t>{1, 2});
  CHECK(ParseDetokenize(R"({"tokens": []})")->tokens.empty());
  CHECK(ParseDetokenize(R"({})").error().param == "tokens");
  CHECK(ParseDetokenize(R"({"tokens": ["a"]})").error().param == "tokens");
  CHECK(ParseDetokenize(R"({"tokens": [-1]})").error().param == "tokens");
}
