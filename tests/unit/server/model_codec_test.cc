// The real tokenizer behind the API: where a completion's text begins, and what templates get.
#include "server/api/model_codec.h"

#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"

using namespace sluice;
namespace fs = std::filesystem;

namespace {

// A SentencePiece-style tokenizer: words begin with U+2581, bytes fall back to <0xNN>, and decoding
// drops the first space.
constexpr const char* kTokenizer = R"({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [
    {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true}],
  "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "pre_tokenizer": null, "post_processor": null,
  "decoder": {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
    "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
    "byte_fallback": true, "ignore_merges": false,
    "vocab": {"<unk>": 0, "<s>": 1, "▁hello": 2, "▁world": 3, "<0x0A>": 4, "<0xC3>": 5,
              "<0xA9>": 6, "!": 7},
    "merges": []}})";
constexpr int32_t kHello = 2, kWorld = 3, kNewline = 4, kLead = 5, kTrail = 6, kBang = 7;

class ModelDirectory {
 public:
  ModelDirectory()
      : path_(fs::temp_directory_path() / ("sluice-codec-" + std::to_string(getpid()))) {
    fs::create_directories(path_);
    std::ofstream(path_ / "tokenizer.json") << kTokenizer;
    std::ofstream(path_ / "tokenizer_config.json") << R"({"bos_token": "<s>", "eos_token": "</s>",
               "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}{{ style }}"})";
  }
  ~ModelDirectory() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  const fs::path path_;
};

// What a stream that continues `prompt` gives for `tokens`.
std::string Text(const TextCodec& codec, std::vector<int32_t> prompt, std::vector<int32_t> tokens) {
  const auto stream = codec.OpenStream(true);
  stream->Continue(prompt);
  std::string text;
  for (const int32_t token : tokens) text += stream->Push(token);
  return text + stream->Finish();
}

}  // namespace

TEST_CASE("A completion continues its prompt: spaces, newlines and halves of characters",
          "[api][codec]") {
  const ModelDirectory directory;
  auto codec = LoadModelCodec(directory.path());
  REQUIRE(codec.has_value());
  CHECK(Text(**codec, {}, {kHello, kWorld}) == "hello world");
  CHECK(Text(**codec, {kHello}, {kWorld}) == " world");
  CHECK(Text(**codec, {1, kHello, kNewline}, {kWorld}) == " world");
  CHECK(Text(**codec, {kHello, kNewline}, {kNewline, kWorld}) == "\n world");
  CHECK(Text(**codec, {kHello, kNewline, kNewline}, {}) == "");
  CHECK(Text(**codec, {kHello, kLead}, {kTrail, kBang}) == "\xc3\xa9!");
  CHECK(Text(**codec, {kHello, kBang}, {kBang}) == "!");
}

TEST_CASE("A template gets the messages, the special tokens and the client's arguments",
          "[api][codec]") {
  const ModelDirectory directory;
  auto codec = LoadModelCodec(directory.path());
  REQUIRE(codec.has_value());
  REQUIRE((*codec)->has_chat_template());
  const auto messages = nlohmann::ordered_json::parse(R"([{"role": "user", "content": "hi"}])");
  const auto text = (*codec)->RenderChat(
      messages, nlohmann::ordered_json::parse(R"({"style": "short", "messages": "none"})"), true);
  REQUIRE(text.has_value());
  CHECK(*text == "<s>[user]hi</s>>short");
}

TEST_CASE("A directory without a tokenizer is refused with the file's name", "[api][codec]") {
  const auto codec = LoadModelCodec("/nowhere");
  REQUIRE(!codec.has_value());
  CHECK(codec.error().message.find("tokenizer.json") != std::string::npos);
}
