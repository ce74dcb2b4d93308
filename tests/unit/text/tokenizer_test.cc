// Loading, refusing, and the edges that the goldens do not reach.
#include "engine/text/tokenizer.h"

#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/utf8.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

using Ids = std::vector<int32_t>;

std::string ReadData(const std::string& name) {
  std::ifstream in(std::string(SLUICE_TEST_DATA) + "/tokenizers/" + name, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

std::shared_ptr<const Tokenizer> Parse(const std::string& json, const std::string& config = "") {
  const auto loaded = Tokenizer::FromJson(json, config);
  if (!loaded) FAIL(loaded.error().message);
  return *loaded;
}

// A model over the letters a to d, the space and "▁", with further members of the file.
std::string Small(const std::string& members, const std::string& model_members = "") {
  return R"({"model":{"type":"BPE",)" + model_members +
         R"("vocab":{"a":0,"b":1,"c":2,"d":3," ":4,"▁":5,"ab":6,"abc":7,"bc":8,"1":9},)"
         R"("merges":["a b",["ab","c"],"b c"]})" +
         (members.empty() ? "" : "," + members) + "}";
}

std::string ErrorOf(const std::string& json) {
  const auto loaded = Tokenizer::FromJson(json, "");
  REQUIRE(!loaded);
  return loaded.error().message;
}

bool Mentions(const std::string& message, const std::string& text) {
  INFO(message);
  CHECK(message.find(text) != std::string::npos);
  return message.find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("Merges go by rank, then from the left", "[text]") {
  const auto tokenizer = Parse(Small(""));
  CHECK(tokenizer->Encode("abc") == Ids{7});
  CHECK(tokenizer->Encode("bcabcab") == Ids{8, 7, 6});
  CHECK(tokenizer->Encode("aabb") == Ids{0, 6, 1});
  CHECK(tokenizer->Encode("").empty());
  CHECK(tokenizer->vocab_size() == 10);
}

TEST_CASE("Characters without a token are dropped, or become the unknown token", "[text]") {
  CHECK(Parse(Small(""))->Encode("axxb") == Ids{6});
  const std::string unknown = R"("unk_token":"d",)";
  CHECK(Parse(Small("", unknown))->Encode("axxb") == Ids{0, 3, 3, 1});
  CHECK(Parse(Small("", unknown + R"("fuse_unk":true,)"))->Encode("axxb") == Ids{0, 3, 1});
  CHECK(Parse(Small("", R"("unk_token":"nowhere",)"))->Encode("axxb") == Ids{6});
}

TEST_CASE("Components that are not supported are refused with name and place", "[text]") {
  Mentions(ErrorOf(Small(R"("normalizer":{"type":"Nmt"})")),
           "tokenizer.json: normalizer: the normalizer \"Nmt\"");
  Mentions(ErrorOf(Small(R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},)"
                         R"({"type":"Precompiled"}]})")),
           "normalizer.normalizers[1]: the normalizer \"Precompiled\"");
  Mentions(ErrorOf(Small(R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[)"
                         R"({"type":"UnicodeScripts"}]})")),
           "pre_tokenizer.pretokenizers[0]: the pre-tokenizer \"UnicodeScripts\"");
  Mentions(ErrorOf(Small(R"("post_processor":{"type":"RobertaProcessing"})")),
           "post_processor: the post-processor \"RobertaProcessing\"");
  Mentions(ErrorOf(Small(R"("decoder":{"type":"Sequence","decoders":[{"type":"CTC"}]})")),
           "decoder.decoders[0]: the decoder \"CTC\"");
  Mentions(ErrorOf(R"({"model":{"type":"Unigram","vocab":[]}})"), "\"Unigram\" is not supported");
  Mentions(ErrorOf(Small("", R"("dropout":0.1,)")), "model.dropout");
  Mentions(ErrorOf(Small(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"[a&&b]"},)"
                         R"("behavior":"Isolated","invert":false})")),
           "pre_tokenizer.pattern: the regular expression uses a set intersection");
  Mentions(ErrorOf(Small(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"a("},)"
                         R"("behavior":"Isolated","invert":false})")),
           "does not compile");
}

TEST_CASE("Contradictions in tokenizer.json are refused with their place", "[text]") {
  Mentions(ErrorOf("{"), "tokenizer.json");
  Mentions(ErrorOf("[]"), "must be an object");
  Mentions(ErrorOf("{}"), "tokenizer.json: model must be an object");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":-1},"merges":[]}})"), "the id of \"a\"");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":99999999},"merges":[]}})"), "the id of \"a\"");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":1,"b":1},"merges":[]}})"), "the same id 1");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":0},"merges":["a b"]}})"),
           "model.merges[0]: the token \"b\" is not in the vocabulary");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":0},"merges":["a a"]}})"), "\"aa\" is not");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":0},"merges":["a  a"]}})"), "merges[0] must be");
  Mentions(ErrorOf(R"({"model":{"vocab":{"a":0},"merges":[["a"]]}})"), "merges[0] must be");
  Mentions(ErrorOf(Small(R"("post_processor":{"type":"TemplateProcessing","single":[)"
                         R"({"SpecialToken":{"id":"s"}},{"Sequence":{"id":"A"}}],)"
                         R"("special_tokens":{"s":{"ids":[10]}}})")),
           "adds the id 10");
  Mentions(ErrorOf(Small(R"("post_processor":{"type":"TemplateProcessing","single":[)"
                         R"({"Sequence":{"id":"B"}}],"special_tokens":{}})")),
           "single[0]");
  Mentions(ErrorOf(Small(R"("added_tokens":[{"content":7}])")), "added_tokens[0].content");
}

TEST_CASE("Deep and long component lists are refused, not followed", "[text]") {
  std::string deep = R"({"type":"NFC"})";
  for (int i = 0; i < 12; ++i) deep = R"({"type":"Sequence","normalizers":[)" + deep + "]}";
  Mentions(ErrorOf(Small("\"normalizer\":" + deep)), "too deeply nested");
  std::string wide = R"({"type":"Sequence","decoders":[{"type":"Fuse"})";
  for (int i = 0; i < 100; ++i) wide += R"(,{"type":"Fuse"})";
  Mentions(ErrorOf(Small("\"decoder\":" + wide + "]}")), "too many");
}

TEST_CASE("A normalizer cannot multiply its text without bound", "[text]") {
  std::string steps;
  for (int i = 0; i < 30; ++i) {
    steps += std::string(i ? "," : "") +
             R"({"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaaaaaaaaa"})";
  }
  const auto tokenizer =
      Parse(Small(R"("normalizer":{"type":"Sequence","normalizers":[)" + steps + "]}"));
  const size_t count = tokenizer->Encode("a").size();
  CHECK(count >= 16);
  CHECK(count <= (1u << 21));
}

TEST_CASE("Invalid UTF-8 is encoded as the replacement character", "[text]") {
  const auto tokenizer = Parse(ReadData("qwen2.json"));
  for (const char* bad :
       {"a\xFFz", "a\xC3", "\xE4\xBD x", "\xED\xA0\x80", "\xF0\x9F\x98", "\xC0\x80"}) {
    CHECK(tokenizer->Encode(bad) == tokenizer->Encode(ReplaceInvalidUtf8(bad)));
    CHECK(tokenizer->Decode(tokenizer->Encode(bad)) == ReplaceInvalidUtf8(bad));
  }
}

TEST_CASE("The bytes of the tokens of a text are the text", "[text]") {
  for (const char* name : {"gpt2", "llama3", "deepseek", "o200k"}) {
    const auto tokenizer = Parse(ReadData(std::string(name) + ".json"));
    const std::string text = "Zażółć 我的 code: x+=1; 😀\n\n  naïve <|im_end|> 1234";
    std::string bytes;
    for (const int32_t id : tokenizer->Encode(text, {.add_special_tokens = false})) {
      bytes += tokenizer->TokenBytes(id);
    }
    CHECK(bytes == text);
  }
  const auto mixtral = Parse(ReadData("mixtral.json"));
  CHECK(mixtral->TokenBytes(*mixtral->TokenToId("<0x0A>")) == "\n");
  CHECK(mixtral->TokenBytes(*mixtral->TokenToId("<0xE4>")) == "\xE4");
  CHECK(mixtral->TokenText(*mixtral->TokenToId("<0xE4>")) == "\xEF\xBF\xBD");
  CHECK(mixtral->TokenText(*mixtral->TokenToId("▁the")) == " the");
}

TEST_CASE("Ids outside the vocabulary decode to nothing", "[text]") {
  const auto tokenizer = Parse(ReadData("gpt2.json"));
  const std::vector<int32_t> ids = {-1, tokenizer->vocab_size(), 1 << 30, INT32_MIN};
  CHECK(tokenizer->Decode(ids).empty());
  for (const int32_t id : ids) {
    CHECK(tokenizer->TokenBytes(id).empty());
    CHECK(!tokenizer->IsSpecial(id));
  }
}

TEST_CASE("Special tokens are known by id and by spelling", "[text]") {
  const auto tokenizer = Parse(ReadData("qwen2.json"));
  const auto id = tokenizer->TokenToId("<|im_end|>");
  REQUIRE(id);
  CHECK(tokenizer->IsSpecial(*id));
  CHECK(!tokenizer->IsSpecial(*tokenizer->TokenToId("<tool>")));
  CHECK(tokenizer->TokenText(*id) == "<|im_end|>");
  CHECK(!tokenizer->TokenToId("no such token"));
  CHECK(tokenizer->Encode("<|im_end|>") == Ids{*id});
  CHECK(tokenizer->Encode("<|im_end|>", {.parse_special = false}).size() > 1);
  CHECK(tokenizer->Decode(Ids{*id}).empty());
  CHECK(tokenizer->Decode(Ids{*id}, false) == "<|im_end|>");
}

TEST_CASE("tokenizer_config.json gives the names of the special tokens", "[text]") {
  const auto tokenizer = Parse(Small(""), R"({"bos_token":{"content":"<s>","lstrip":false},
      "eos_token":"</s>","pad_token":null,"add_bos_token":true})");
  CHECK(tokenizer->bos_token() == "<s>");
  CHECK(tokenizer->eos_token() == "</s>");
  CHECK(tokenizer->pad_token().empty());
  CHECK(tokenizer->add_bos_token() == true);
  CHECK(!tokenizer->add_eos_token());
  const auto bad = Tokenizer::FromJson(Small(""), R"({"eos_token":3})");
  REQUIRE(!bad);
  Mentions(bad.error().message, "tokenizer_config.json.eos_token");
}

TEST_CASE("A missing tokenizer.json is named", "[text]") {
  const auto loaded = Tokenizer::Load("/nonexistent/model");
  REQUIRE(!loaded);
  Mentions(loaded.error().message, "/nonexistent/model/tokenizer.json");
}

TEST_CASE("A pattern that backtracks without end splits nothing and returns", "[text]") {
  const auto tokenizer =
      Parse(Small(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"(?:a|aa|ab|b)*d|c"},)"
                  R"("behavior":"Removed","invert":false})"));
  // Searched normally, c is removed; behind the point where the search gives up it stays.
  CHECK(tokenizer->Encode("abcab") == Ids{6, 6});
  std::string hard(5000, 'a');
  hard += 'c';
  const Ids ids = tokenizer->Encode(hard);
  CHECK(ids.size() == 5001);
  CHECK(ids.back() == 2);
}

TEST_CASE("Added tokens that look alike once normalized are one; the last counts", "[text]") {
  const auto tokenizer = Parse(Small(R"("normalizer":{"type":"Lowercase"},"added_tokens":[)"
                                     R"({"content":"Xy","normalized":true},)"
                                     R"({"content":"xy","normalized":true},)"
                                     R"({"content":"XY","normalized":true,"special":true}])"));
  CHECK(tokenizer->TokenToId("Xy") == 10);
  CHECK(tokenizer->TokenToId("xy") == 11);
  CHECK(tokenizer->Encode("aXYb") == Ids{0, 12, 1});
  CHECK(tokenizer->IsSpecial(12));
  // The library compares the normalized spelling with the special ones, so it does not skip this.
  CHECK(tokenizer->Decode(Ids{0, 12}) == "a xy");
}

TEST_CASE("Tokens that take whitespace along leave it to tokens of whitespace", "[text]") {
  const auto right = Parse(Small(R"("added_tokens":[{"content":"zz","rstrip":true},)"
                                 R"({"content":"  "}])"));
  CHECK(right->Encode("azz    a") == Ids{0, 10, 11, 11, 0});
  CHECK(right->Encode("zz a") == Ids{10, 0});
  const auto left = Parse(Small(R"("added_tokens":[{"content":"zz","lstrip":true},)"
                                R"({"content":"  "}])"));
  CHECK(left->Encode("a    zz") == Ids{0, 11, 11, 10});
  CHECK(left->Encode(" zz zz") == Ids{10, 10});
}

TEST_CASE("Whitespace tokens that strip do not make a run of spaces quadratic", "[text]") {
  const std::string tabs(300'000, '\t');
  const auto right = Parse(Small(R"("added_tokens":[{"content":"\t","rstrip":true}])"));
  CHECK(right->Encode(tabs).size() == tabs.size());
  const auto left = Parse(Small(R"("added_tokens":[{"content":"\t","lstrip":true}])"));
  CHECK(left->Encode(tabs).size() == tabs.size());
  const auto both =
      Parse(Small(R"("added_tokens":[{"content":"\t","rstrip":true,"lstrip":true}])"));
  CHECK(both->Encode(tabs) == Ids{10});
}

// Not run by ctest: test_text "[.speed]".
TEST_CASE("Encoding speed", "[.speed]") {
  std::string prose;
  for (const char* file : {"stories", "qa", "code"}) {
    std::ifstream in(std::string(SLUICE_TEST_DATA) + "/heldout/" + file + ".txt");
    prose.append(std::istreambuf_iterator<char>(in), {});
  }
  std::string text;
  while (text.size() < (4u << 20)) text += prose;
  for (const char* name : {"gpt2", "llama3", "qwen2", "deepseek", "o200k", "mixtral"}) {
    const auto tokenizer = Parse(ReadData(std::string(name) + ".json"));
    const auto start = std::chrono::steady_clock::now();
    const size_t count = tokenizer->Encode(text).size();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::cout << name << ": " << static_cast<double>(text.size()) / 1e6 / seconds << " MB/s, "
              << count << " tokens\n";
  }
}

TEST_CASE("One tokenizer serves many threads", "[text]") {
  const auto tokenizer = Parse(ReadData("llama3.json"));
  const std::string text = "the time of their people, and 1234 words\n  in two lines. 日本語";
  const Ids expected = tokenizer->Encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string prefix = std::to_string(i % 10) + " ";
        const Ids ids = tokenizer->Encode(prefix + text);
        if (tokenizer->Decode(ids) != prefix + text) ++wrong[t];
        if (tokenizer->Encode(text) != expected) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
}

}  // namespace sluice
