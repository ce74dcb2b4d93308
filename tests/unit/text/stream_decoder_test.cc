#include "engine/text/stream_decoder.h"

#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/base/utf8.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

std::shared_ptr<const Tokenizer> LoadData(const std::string& name) {
  std::ifstream in(std::string(SLUICE_TEST_DATA) + "/tokenizers/" + name + ".json",
                   std::ios::binary);
  REQUIRE(in.good());
  const auto loaded = Tokenizer::FromJson(std::string(std::istreambuf_iterator<char>(in), {}), "");
  if (!loaded) FAIL(loaded.error().message);
  return *loaded;
}

}  // namespace

TEST_CASE("A character that spans tokens appears whole, with its last byte", "[text]") {
  const auto tokenizer = LoadData("gpt2");
  StreamDecoder stream(tokenizer);
  // U+1F600 as four byte tokens.
  std::vector<std::string> pieces;
  for (const char* token : {"ð", "Ł", "ĺ", "Ģ"}) {
    pieces.push_back(stream.Push(tokenizer->TokenToId(token).value()));
  }
  CHECK(pieces == std::vector<std::string>{"", "", "", "\xF0\x9F\x98\x80"});
  CHECK(stream.Finish().empty());
}

TEST_CASE("A character that is never finished becomes one replacement character", "[text]") {
  const auto tokenizer = LoadData("gpt2");
  StreamDecoder cut(tokenizer);
  CHECK(cut.Push(tokenizer->TokenToId("ð").value()).empty());
  CHECK(cut.Push(tokenizer->TokenToId("Ł").value()).empty());
  CHECK(cut.Finish() == kReplacementUtf8);

  StreamDecoder interrupted(tokenizer);
  CHECK(interrupted.Push(tokenizer->TokenToId("ð").value()).empty());
  CHECK(interrupted.Push(tokenizer->TokenToId("A").value()) == std::string(kReplacementUtf8) + "A");
}

TEST_CASE("Only the first space of a SentencePiece text is dropped", "[text]") {
  const auto tokenizer = LoadData("mixtral");
  StreamDecoder stream(tokenizer);
  const int32_t the = tokenizer->TokenToId("▁the").value();
  CHECK(stream.Push(the) == "the");
  CHECK(stream.Push(the) == " the");
  // A byte run is decided by the token that ends it.
  CHECK(stream.Push(tokenizer->TokenToId("<0x0A>").value()).empty());
  CHECK(stream.Push(the) == "\n the");
  CHECK(stream.Push(tokenizer->TokenToId("<0xE4>").value()).empty());
  CHECK(stream.Push(tokenizer->TokenToId("<0x0A>").value()).empty());
  CHECK(stream.Finish() == "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_CASE("Streams of random ids give what whole lists give", "[text]") {
  std::mt19937 random(5);
  for (const char* name : {"gpt2", "llama3", "mixtral", "no_fallback", "metaspace", "words"}) {
    INFO(name);
    const auto tokenizer = LoadData(name);
    for (int round = 0; round < 200; ++round) {
      std::vector<int32_t> ids;
      // Often from the start of the vocabulary, where the bytes are.
      const auto bound = static_cast<uint32_t>(round % 2 ? tokenizer->vocab_size() + 3 : 270);
      for (uint32_t i = random() % 40; i > 0; --i)
        ids.push_back(static_cast<int32_t>(random() % bound));
      for (const bool skip : {true, false}) {
        StreamDecoder stream(tokenizer, skip);
        std::string streamed;
        for (const int32_t id : ids) {
          const std::string piece = stream.Push(id);
          REQUIRE(IsValidUtf8(piece));
          streamed += piece;
        }
        streamed += stream.Finish();
        REQUIRE(streamed == tokenizer->Decode(ids, skip));
      }
    }
  }
}

TEST_CASE("A stream moves to another owner in the middle", "[text]") {
  const auto tokenizer = LoadData("gpt2");
  StreamDecoder first(tokenizer);
  std::string text = first.Push(tokenizer->TokenToId("Ã").value());
  StreamDecoder second = std::move(first);
  text += second.Push(tokenizer->TokenToId("©").value());
  CHECK(text + second.Finish() == "é");
}

}  // namespace sluice
