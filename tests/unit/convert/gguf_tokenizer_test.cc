// Tokenizers as GGUF files hold them against those that they were made from, on the corpus of hard
// text in tests/data/tokenizers, and against SentencePiece (scripts/goldens/checkpoint_goldens.py).
#include "engine/convert/gguf_tokenizer.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/model_files.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Text = std::string;
using Texts = std::vector<std::string>;
using Ids = std::vector<int32_t>;

const fs::path kTokenizers = SLUICE_TEST_DATA "/tokenizers";
constexpr int64_t kControl = 3, kUserDefined = 4, kUnused = 5;

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::map<std::string, std::string> ReadCorpus() {
  std::map<std::string, std::string> corpus;
  std::istringstream in(ReadAll(kTokenizers / "corpus.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const json row = json::parse(line);
    std::string& text = corpus[row["name"].get<std::string>()];
    if (row.contains("text")) {
      text = row["text"].get<std::string>();
      continue;
    }
    for (const json& part : row["parts"]) {
      for (int i = 0; i < part[1].get<int>(); ++i) text += part[0].get_ref<const Text&>();
    }
  }
  return corpus;
}

class TemporaryFile {
 public:
  TemporaryFile() {
    std::string pattern = (fs::temp_directory_path() / "sluice_gguf_XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    directory_ = pattern;
  }
  ~TemporaryFile() { fs::remove_all(directory_); }
  fs::path path() const { return directory_ / "model.gguf"; }

 private:
  fs::path directory_;
};

Result<ModelFiles> Files(const GgufBuilder& file, int vocab = 1 << 20) {
  const TemporaryFile at;
  file.Write(at.path());
  const Result<GgufReader> reader = GgufReader::Open(at.path());
  REQUIRE(reader);
  std::map<std::string, std::string> files;
  if (auto ok = WriteGgufTokenizer(*reader, vocab, &files); !ok) return ok.error();
  return ModelFiles("model.gguf", std::move(files));
}

std::shared_ptr<const Tokenizer> Load(const GgufBuilder& file) {
  const Result<ModelFiles> files = Files(file);
  REQUIRE(files);
  const auto tokenizer = Tokenizer::Load(*files);
  REQUIRE(tokenizer);
  return *tokenizer;
}

std::string MessageOf(const GgufBuilder& file, int vocab = 1 << 20) {
  const Result<ModelFiles> files = Files(file, vocab);
  return files ? "written" : files.error().message;
}

// tokenizer.json without what GGUF files do not hold: whether added tokens take spaces along.
json Plain(const std::string& name) {
  json root = json::parse(ReadAll(kTokenizers / (name + ".json")));
  for (json& token : root["added_tokens"]) {
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) token[flag] = false;
  }
  return root;
}

// As the converter's get_vocab_base writes it.
GgufBuilder ByteLevelFile(const json& root, const std::string& pre) {
  std::map<int64_t, std::string> by_id;
  std::map<int64_t, int64_t> kinds;
  for (const auto& [token, id] : root["model"]["vocab"].items()) by_id[id.get<int64_t>()] = token;
  for (const json& added : root["added_tokens"]) {
    const auto id = added["id"].get<int64_t>();
    by_id[id] = added["content"].get<std::string>();
    kinds[id] = added["special"].get<bool>() ? kControl : kUserDefined;
  }
  Texts tokens;
  std::vector<int64_t> types;
  for (int64_t id = 0; id <= by_id.rbegin()->first; ++id) {
    const auto found = by_id.find(id);
    tokens.push_back(found == by_id.end() ? "[PAD" + std::to_string(id) + "]" : found->second);
    types.push_back(found == by_id.end() ? kUnused : kinds.contains(id) ? kinds[id] : 1);
  }
  Texts merges;
  for (const json& merge : root["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  GgufBuilder file;
  file.Set("tokenizer.ggml.model", Text("gpt2"));
  file.Set("tokenizer.ggml.pre", pre);
  file.Set("tokenizer.ggml.tokens", tokens);
  file.Set("tokenizer.ggml.token_type", types);
  file.Set("tokenizer.ggml.merges", merges);
  return file;
}

uint64_t IdOf(const json& root, const std::string& token) {
  for (const json& added : root["added_tokens"]) {
    if (added["content"] == token) return added["id"].get<uint64_t>();
  }
  return root["model"]["vocab"][token].get<uint64_t>();
}

GgufBuilder SentencePieceFile(const json& golden) {
  GgufBuilder file;
  file.Set("tokenizer.ggml.model", Text("llama"));
  file.Set("tokenizer.ggml.tokens", golden["tokens"].get<Texts>());
  file.Set("tokenizer.ggml.scores", golden["scores"].get<std::vector<double>>());
  file.Set("tokenizer.ggml.token_type", golden["types"].get<std::vector<int64_t>>());
  file.Set("tokenizer.ggml.unknown_token_id", uint64_t{0});
  file.Set("tokenizer.ggml.bos_token_id", uint64_t{1});
  file.Set("tokenizer.ggml.eos_token_id", uint64_t{2});
  return file;
}

json SentencePieceGolden() {
  return json::parse(ReadAll(SLUICE_TEST_DATA "/checkpoints/spm.json"));
}

std::string Fnv(const Ids& ids) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((static_cast<uint32_t>(id) >> shift) & 0xFF)) * 0x100000001B3u;
    }
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace

TEST_CASE("A byte-level tokenizer gives the ids and texts of the one it was made from",
          "[convert][gguf][text]") {
  const auto corpus = ReadCorpus();
  for (const auto& [name, pre] : std::vector<std::pair<Text, Text>>{
           {"gpt2", "gpt-2"}, {"llama3", "llama-bpe"}, {"qwen2", "qwen2"}, {"neox", "olmo"}}) {
    INFO(name);
    const json root = Plain(name);
    GgufBuilder file = ByteLevelFile(root, pre);
    file.Set("tokenizer.ggml.bos_token_id", IdOf(root, "<|endoftext|>"));
    file.Set("tokenizer.ggml.eos_token_id", IdOf(root, "<|endoftext|>"));
    // llama3 puts the token before every text by itself; neox behind it, which the file must say.
    if (name == "neox") file.Set("tokenizer.ggml.add_eos_token", true);
    const auto made = Load(file);
    const auto original = Tokenizer::FromJson(root.dump(), "");
    REQUIRE(original);
    size_t different = 0;
    for (const auto& [item, text] : corpus) {
      for (const bool special : {true, false}) {
        const EncodeOptions options = {.add_special_tokens = special};
        const Ids ids = (*original)->Encode(text, options);
        if (made->Encode(text, options) != ids || made->Decode(ids) != (*original)->Decode(ids)) {
          UNSCOPED_INFO("different: " << item);
          ++different;
        }
      }
    }
    CHECK(different == 0);
    CHECK(made->eos_token() == "<|endoftext|>");
    CHECK(made->vocab_size() == (*original)->vocab_size());
  }
}

TEST_CASE("A SentencePiece tokenizer gives the ids that SentencePiece gives",
          "[convert][gguf][text]") {
  const json golden = SentencePieceGolden();
  GgufBuilder file = SentencePieceFile(golden);
  file.Set("tokenizer.ggml.add_bos_token", false);
  const auto corpus = ReadCorpus();
  // Scores that say nothing, as some converters write, leave the order of ids.
  for (const bool scores : {true, false}) {
    if (!scores) {
      file.Set("tokenizer.ggml.scores", std::vector<double>(golden["tokens"].size(), -1000.0));
    }
    const auto made = Load(file);
    size_t different = 0, compared = 0;
    for (const json& row : golden["texts"]) {
      const auto& name = row["encode"].get_ref<const Text&>();
      const std::string& text = corpus.at(name);
      const Ids ids = made->Encode(text, {.parse_special = false});
      const bool same = row.contains("ids") ? row["ids"].get<Ids>() == ids
                                            : row["count"] == ids.size() && row["fnv"] == Fnv(ids);
      if (!same) {
        UNSCOPED_INFO("different: " << name);
        ++different;
      }
      ++compared;
    }
    CHECK(different == 0);
    CHECK(compared > 50);
  }
}

TEST_CASE("SentencePiece models start texts with BOS and a space unless the file says otherwise",
          "[convert][gguf][text]") {
  GgufBuilder file = SentencePieceFile(SentencePieceGolden());
  const auto usual = Load(file);
  const Ids ids = usual->Encode("the times");
  REQUIRE(ids.size() > 2);
  CHECK(ids[0] == 1);
  CHECK(usual->TokenText(ids[1]) == " the");
  CHECK(usual->Decode(ids) == "the times");
  CHECK(usual->bos_token() == "<s>");
  CHECK(usual->unk_token() == "<unk>");
  file.Set("tokenizer.ggml.add_bos_token", false);
  file.Set("tokenizer.ggml.add_eos_token", true);
  file.Set("tokenizer.ggml.add_space_prefix", false);
  const auto bare = Load(file);
  const Ids other = bare->Encode("the times");
  CHECK(bare->TokenText(other[0]) != " the");
  CHECK(other.back() == 2);
  CHECK(bare->Decode(other) == "the times");
}

TEST_CASE("The chat template and the special tokens arrive as they are", "[convert][gguf][text]") {
  const json root = Plain("qwen2");
  GgufBuilder file = ByteLevelFile(root, "qwen2");
  const Text source = "{{ bos_token }}{% for m in messages %}“{{ m['content'] }}”\n{% endfor %}";
  file.Set("tokenizer.chat_template", source);
  file.Set("tokenizer.ggml.padding_token_id", IdOf(root, "<pad>"));
  const Result<ModelFiles> files = Files(file);
  REQUIRE(files);
  const auto chat = ChatTemplate::Load(*files);
  REQUIRE(chat);
  REQUIRE(*chat);
  CHECK((*chat)->source() == source);
  const auto tokenizer = Tokenizer::Load(*files);
  REQUIRE(tokenizer);
  CHECK((*tokenizer)->pad_token() == "<pad>");
  CHECK((*tokenizer)->bos_token().empty());
  CHECK((*tokenizer)->IsSpecial(static_cast<int32_t>(IdOf(root, "<|im_end|>"))));
}

TEST_CASE("A file without a tokenizer has no tokenizer documents", "[convert][gguf][text]") {
  CHECK(Files(GgufBuilder())->texts().empty());
}

TEST_CASE("Where the file does not say how words are split, the model's family does",
          "[convert][gguf][text]") {
  const json root = Plain("qwen2");
  GgufBuilder file = ByteLevelFile(root, "qwen2");
  file.Erase("tokenizer.ggml.pre");
  file.Set("general.architecture", Text("qwen2moe"));
  const auto original = Tokenizer::FromJson(root.dump(), "");
  REQUIRE(original);
  CHECK(Load(file)->Encode("12345 don't\n\n x") == (*original)->Encode("12345 don't\n\n x"));
  // llama.cpp's default cuts runs of three digits.
  file.Set("tokenizer.ggml.pre", Text("default"));
  for (const char* text : {"12345", "a, b; c", "x\n  y"}) {
    CHECK(Load(file)->Decode(Load(file)->Encode(text)) == text);
  }
}

TEST_CASE("Ids without a text decode to nothing", "[convert][gguf][text]") {
  GgufBuilder file;
  file.Set("tokenizer.ggml.model", Text("gpt2"));
  file.Set("tokenizer.ggml.pre", Text("gpt-2"));
  file.Set("tokenizer.ggml.tokens", Texts{"a", "[PAD1]", "b", "", "[PAD1]", "<|end|>"});
  file.Set("tokenizer.ggml.token_type", std::vector<int64_t>{1, 5, 1, 1, 5, 3});
  file.Set("tokenizer.ggml.merges", Texts{});
  const auto tokenizer = Load(file);
  CHECK(tokenizer->Decode(Ids{0, 1, 2, 3, 4}) == "ab");
  CHECK(tokenizer->Encode("ab<|end|>") == Ids{0, 2, 5});
}

TEST_CASE("A damaged tokenizer is refused with the key", "[convert][gguf][text]") {
  const json root = Plain("gpt2");
  const auto message = [&](const Text& key, GgufValue value) {
    GgufBuilder file = ByteLevelFile(root, "gpt-2");
    file.Set(key, std::move(value));
    return MessageOf(file);
  };
  const auto names = [](const Text& text, const Text& part) {
    INFO(text);
    CHECK(text.find(part) != Text::npos);
    CHECK(text.find("model.gguf") != Text::npos);
  };
  names(message("tokenizer.ggml.model", Text("t5")), "tokenizer.ggml.model \"t5\"");
  names(message("tokenizer.ggml.model", uint64_t{1}), "tokenizer.ggml.model");
  names(message("tokenizer.ggml.pre", Text("tekken")), "tokenizer.ggml.pre \"tekken\"");
  names(message("tokenizer.ggml.tokens", Texts{}), "tokenizer.ggml.tokens");
  names(message("tokenizer.ggml.tokens", uint64_t{3}), "tokenizer.ggml.tokens");
  names(message("tokenizer.ggml.tokens", Texts{"a", "b"}), "tokenizer.ggml.token_type");
  names(message("tokenizer.ggml.token_type", Texts{"a"}), "tokenizer.ggml.token_type");
  names(message("tokenizer.ggml.merges", uint64_t{3}), "tokenizer.ggml.merges");
  names(message("tokenizer.ggml.merges", Texts{"a"}), "tokenizer.ggml.merges[0]");
  names(message("tokenizer.ggml.merges", Texts{""}), "tokenizer.ggml.merges[0]");
  names(message("tokenizer.ggml.merges", Texts{"a b c"}), "tokenizer.ggml.merges[0]");
  names(message("tokenizer.ggml.merges", Texts{"q \xC4\xA0zzz"}), "tokenizer.ggml.merges[0]");
  names(message("tokenizer.ggml.bos_token_id", uint64_t{1} << 40), "tokenizer.ggml.bos_token_id");
  names(message("tokenizer.ggml.add_bos_token", uint64_t{1}), "tokenizer.ggml.add_bos_token");
  names(message("tokenizer.ggml.add_bos_token", true), "tokenizer.ggml.add_bos_token");
  names(message("tokenizer.chat_template", uint64_t{1}), "tokenizer.chat_template");
  names(message("tokenizer.chat_template", Text("\xff")), "tokenizer.chat_template");
  names(MessageOf(ByteLevelFile(root, "gpt-2"), 100), "tokenizer.ggml.tokens lists");

  const json golden = SentencePieceGolden();
  const auto spm = [&](const Text& key, GgufValue value) {
    GgufBuilder file = SentencePieceFile(golden);
    file.Set(key, std::move(value));
    return MessageOf(file);
  };
  Texts tokens = golden["tokens"].get<Texts>();
  names(spm("tokenizer.ggml.scores", std::vector<double>{1.0}), "tokenizer.ggml.scores");
  names(spm("tokenizer.ggml.scores", std::vector<double>(tokens.size(), NAN)),
        "tokenizer.ggml.scores[");
  names(spm("tokenizer.ggml.remove_extra_whitespaces", true), "remove_extra_whitespaces");
  names(spm("tokenizer.ggml.precompiled_charsmap", Text("x")), "precompiled_charsmap");
  tokens[700] = tokens[600];
  names(spm("tokenizer.ggml.tokens", tokens), "tokenizer.ggml.tokens[700] repeats");
  tokens[700] = "\xff\xfe";
  names(spm("tokenizer.ggml.tokens", tokens), "tokenizer.ggml.tokens[700] is not valid UTF-8");
}

}  // namespace sluice
