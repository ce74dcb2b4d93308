// Every tokenizer in tests/data/tokenizers against what the Python `tokenizers` library made of the
// corpus (scripts/goldens/tokenizer_goldens.py): ids, texts, and streams.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/utf8.h"
#include "engine/text/stream_decoder.h"
#include "engine/text/tokenizer.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

using nlohmann::json;

const std::filesystem::path kData = std::filesystem::path(SLUICE_TEST_DATA) / "tokenizers";

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::vector<json> ReadLines(const std::filesystem::path& path) {
  std::istringstream in(ReadAll(path));
  std::vector<json> rows;
  for (std::string line; std::getline(in, line);) rows.push_back(json::parse(line));
  return rows;
}

std::map<std::string, std::string> ReadCorpus() {
  std::map<std::string, std::string> corpus;
  for (const json& row : ReadLines(kData / "corpus.jsonl")) {
    std::string text;
    if (row.contains("text")) {
      text = row["text"].get<std::string>();
    } else {
      for (const json& part : row["parts"]) {
        for (int i = 0; i < part[1].get<int>(); ++i) text += part[0].get_ref<const std::string&>();
      }
    }
    corpus[row["name"].get<std::string>()] = text;
  }
  return corpus;
}

std::string Fnv(const std::vector<int32_t>& ids) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x100000001B3u;
    }
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::string Stream(const std::shared_ptr<const Tokenizer>& tokenizer,
                   const std::vector<int32_t>& ids, bool skip) {
  StreamDecoder decoder(tokenizer, skip);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = decoder.Push(id);
    CHECK(IsValidUtf8(piece));
    text += piece;
  }
  const std::string rest = decoder.Finish();
  CHECK(IsValidUtf8(rest));
  return text + rest;
}

void CheckAgainstLibrary(const std::string& name) {
  INFO("tokenizer " << name);
  const auto loaded = Tokenizer::FromJson(ReadAll(kData / (name + ".json")), "");
  if (!loaded) FAIL(loaded.error().message);
  const std::shared_ptr<const Tokenizer>& tokenizer = *loaded;
  static const std::map<std::string, std::string> corpus = ReadCorpus();
  int encoded = 0, decoded = 0;
  for (const json& row : ReadLines(kData / (name + ".expected.jsonl"))) {
    if (row.contains("encode")) {
      const std::string text_name = row["encode"].get<std::string>();
      INFO("encode " << text_name);
      EncodeOptions options;
      options.add_special_tokens = row.value("special", true);
      options.parse_special = row.value("parse_special", true);
      const std::vector<int32_t> ids = tokenizer->Encode(corpus.at(text_name), options);
      ++encoded;
      if (row.contains("ids")) {
        CHECK(ids == row["ids"].get<std::vector<int32_t>>());
      } else {
        CHECK(ids.size() == row["count"].get<size_t>());
        CHECK(Fnv(ids) == row["fnv"].get<std::string>());
      }
      // What streams must give for real texts.
      if (ids.size() < 5000) CHECK(Stream(tokenizer, ids, true) == tokenizer->Decode(ids, true));
      for (const int32_t id : ids) REQUIRE((id >= 0 && id < tokenizer->vocab_size()));
    } else {
      const auto ids = row["decode"].get<std::vector<int32_t>>();
      INFO("decode " << row["decode"].dump());
      const bool skip = row["skip"].get<bool>();
      const std::string text = row["text"].get<std::string>();
      CHECK(tokenizer->Decode(ids, skip) == text);
      CHECK(Stream(tokenizer, ids, skip) == text);
      ++decoded;
    }
  }
  CHECK(encoded > 60);
  CHECK(decoded > 60);
}

}  // namespace

TEST_CASE("Ids and texts equal the library's for every style of tokenizer", "[text]") {
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kData)) {
    const std::string file = entry.path().filename().string();
    const size_t end = file.find(".expected.jsonl");
    if (end == std::string::npos) continue;
    CheckAgainstLibrary(file.substr(0, end));
    ++checked;
  }
  CHECK(checked >= 14);
}

}  // namespace sluice
