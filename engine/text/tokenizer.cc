#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/json.h"
#include "engine/base/utf8.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/byte_level.h"
#include "engine/text/decoder.h"
#include "engine/text/json_fields.h"
#include "engine/text/normalizer.h"
#include "engine/text/post_processor.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/word_cache.h"

namespace sluice {
namespace {

using nlohmann::json;

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581
constexpr std::string_view kFile = ModelFiles::kTokenizer;
constexpr std::string_view kConfigFile = ModelFiles::kTokenizerConfig;
constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
constexpr JsonLimits kTokenizerLimits = {
    .max_bytes = kMaxFileBytes, .max_values = size_t{16} << 20, .max_depth = 64};

std::string Place(const char* member) { return std::string(kFile) + ": " + member; }

const json& MemberOrNull(const json& object, const char* name) {
  static const json kNull;
  const json* member = text::FindMember(object, name);
  return member == nullptr ? kNull : *member;
}

// Where the word that starts at `begin` ends: in front of the next "▁" that follows something else.
size_t MetaspaceWordEnd(std::string_view text, size_t begin) {
  size_t at = begin;
  while (text.substr(at).starts_with(kMetaspace)) at += kMetaspace.size();
  const size_t next = text.find(kMetaspace, at);
  return next == text.npos ? text.size() : next;
}

}  // namespace

struct Tokenizer::Parts {
  text::BpeModel model;
  text::Normalizer normalizer;
  text::PreTokenizer pre_tokenizer;
  text::PostProcessor post_processor;
  text::Decoder decoder;
  text::AddedTokens added;
  text::WordCache cache;

  // By id: what Decode works on.
  struct Token {
    std::string spelling;  // in tokenizer.json
    std::string decoded;   // what the decoder gets: an added token is in its normalized form
    bool exists = false;
    bool special = false;
    bool skipped = false;  // by skip_special: `decoded` is spelled like a special token
  };
  std::vector<Token> tokens;

  std::string bos_token, eos_token, pad_token, unk_token;
  std::optional<bool> add_bos_token, add_eos_token;

  Result<void> ReadTokenizer(const json& root);
  Result<void> ReadConfig(const json& root);
  Result<void> BuildTokens();

  struct Scratch {
    text::PreTokenizerScratch pre_tokenizer;
    text::BpeScratch bpe;
    std::string mapped;
  };
  void EncodeWord(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;
  void EncodePlain(text::Piece plain, Scratch* scratch, std::vector<int32_t>* ids) const;
};

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<void> Tokenizer::Parts::ReadTokenizer(const json& root) {
  if (Result<void> object = text::ExpectObject(root, kFile); !object) return object.error();
  Result<text::BpeModel> read_model =
      text::BpeModel::FromJson(MemberOrNull(root, "model"), Place("model"));
  if (!read_model) return read_model.error();
  model = std::move(*read_model);
  Result<text::Normalizer> read_normalizer =
      text::Normalizer::FromJson(MemberOrNull(root, "normalizer"), Place("normalizer"));
  if (!read_normalizer) return read_normalizer.error();
  normalizer = std::move(*read_normalizer);
  Result<text::PreTokenizer> read_pre_tokenizer =
      text::PreTokenizer::FromJson(MemberOrNull(root, "pre_tokenizer"), Place("pre_tokenizer"));
  if (!read_pre_tokenizer) return read_pre_tokenizer.error();
  pre_tokenizer = std::move(*read_pre_tokenizer);
  Result<text::PostProcessor> read_post_processor =
      text::PostProcessor::FromJson(MemberOrNull(root, "post_processor"), Place("post_processor"));
  if (!read_post_processor) return read_post_processor.error();
  post_processor = std::move(*read_post_processor);
  Result<text::Decoder> read_decoder =
      text::Decoder::FromJson(MemberOrNull(root, "decoder"), Place("decoder"));
  if (!read_decoder) return read_decoder.error();
  decoder = std::move(*read_decoder);
  Result<text::AddedTokens> read_added = text::AddedTokens::FromJson(
      MemberOrNull(root, "added_tokens"), Place("added_tokens"), model, normalizer);
  if (!read_added) return read_added.error();
  added = std::move(*read_added);
  return BuildTokens();
}

Result<void> Tokenizer::Parts::BuildTokens() {
  int32_t largest = -1;
  if (!model.tokens().empty()) largest = model.tokens().back().id;
  for (const text::AddedToken& token : added.tokens()) largest = std::max(largest, token.id);
  tokens.resize(static_cast<size_t>(largest) + 1);
  for (const text::BpeModel::Entry& entry : model.tokens()) {
    Token& token = tokens[static_cast<size_t>(entry.id)];
    token.spelling = token.decoded = entry.token;
    token.exists = true;
    token.special = token.skipped = added.IsSpecialContent(entry.token);
  }
  for (const text::AddedToken& entry : added.tokens()) {
    Token& token = tokens[static_cast<size_t>(entry.id)];
    token.spelling = entry.content;
    token.decoded = entry.normalized_content;
    token.exists = true;
    token.special = added.IsSpecialContent(entry.content);
    token.skipped = added.IsSpecialContent(entry.normalized_content);
  }
  const int32_t added_by_template = post_processor.largest_id();
  if (added_by_template > largest) {
    return Corrupt(Place("post_processor") + " adds the id " + std::to_string(added_by_template) +
                   ", but the largest id of a token is " + std::to_string(largest));
  }
  return {};
}

Result<void> Tokenizer::Parts::ReadConfig(const json& root) {
  if (Result<void> object = text::ExpectObject(root, kConfigFile); !object) return object.error();
  for (const auto& [name, target] :
       {std::pair{"bos_token", &bos_token}, std::pair{"eos_token", &eos_token},
        std::pair{"pad_token", &pad_token}, std::pair{"unk_token", &unk_token}}) {
    // A string, or an object that describes an added token.
    const json* member = text::FindMember(root, name);
    const json* value =
        member != nullptr && member->is_object() ? text::FindMember(*member, "content") : member;
    if (member == nullptr) continue;
    if (value == nullptr || !value->is_string()) {
      return Corrupt(std::string(kConfigFile) + "." + name +
                     " must be a string or an object with " + "the string \"content\"");
    }
    *target = value->get<std::string>();
  }
  for (const auto& [name, target] :
       {std::pair{"add_bos_token", &add_bos_token}, std::pair{"add_eos_token", &add_eos_token}}) {
    if (text::FindMember(root, name) == nullptr) continue;
    Result<bool> value = text::GetBool(root, kConfigFile, name, false);
    if (!value) return value.error();
    *target = *value;
  }
  return {};
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::FromJson(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  auto parts = std::make_unique<Parts>();
  {
    Result<json> root = ParseJson(tokenizer_json, kFile, kTokenizerLimits);
    if (!root) return root.error();
    if (Result<void> read = parts->ReadTokenizer(*root); !read) return read.error();
  }
  if (!tokenizer_config_json.empty()) {
    Result<json> root = ParseJson(tokenizer_config_json, kConfigFile);
    if (!root) return root.error();
    if (Result<void> read = parts->ReadConfig(*root); !read) return read.error();
  }
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(parts)));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const ModelFiles& files) {
  const Result<const std::string*> tokenizer = files.Require(kFile);
  if (!tokenizer) return tokenizer.error();
  const std::string* config = files.Find(kConfigFile);
  Result<std::shared_ptr<const Tokenizer>> loaded =
      FromJson(**tokenizer, config == nullptr ? std::string_view() : *config);
  if (!loaded) return WithContext(files.source().string(), loaded.error());
  return loaded;
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::filesystem::path& model_dir) {
  constexpr std::array kNames = {kFile, kConfigFile};
  const Result<ModelFiles> files = ModelFiles::Read(model_dir, kNames);
  if (!files) return files.error();
  return Load(*files);
}

void Tokenizer::Parts::EncodeWord(std::string_view word, Scratch* scratch,
                                  std::vector<int32_t>* ids) const {
  if (cache.Find(word, ids)) return;
  const size_t before = ids->size();
  if (pre_tokenizer.maps_bytes_at_end()) {
    scratch->mapped.clear();
    text::AppendByteLevel(word, &scratch->mapped);
    model.EncodeWord(scratch->mapped, &scratch->bpe, ids);
  } else {
    model.EncodeWord(word, &scratch->bpe, ids);
  }
  cache.Put(word, std::span(*ids).subspan(before));
}

// Normalized text without added tokens.
void Tokenizer::Parts::EncodePlain(text::Piece plain, Scratch* scratch,
                                   std::vector<int32_t>* ids) const {
  scratch->pre_tokenizer.rewritten.clear();
  const bool cut = model.splits_at_metaspace() && !pre_tokenizer.maps_bytes_at_end();
  for (const text::Piece& piece : pre_tokenizer.Apply(plain, &scratch->pre_tokenizer)) {
    if (!cut) {
      EncodeWord(piece.text, scratch, ids);
      continue;
    }
    for (size_t begin = 0; begin < piece.text.size();) {
      const size_t end = MetaspaceWordEnd(piece.text, begin);
      EncodeWord(piece.text.substr(begin, end - begin), scratch, ids);
      begin = end;
    }
  }
}

std::vector<int32_t> Tokenizer::Encode(std::string_view utf8, const EncodeOptions& options) const {
  const Parts& parts = *parts_;
  std::string repaired;
  if (!IsValidUtf8(utf8)) {
    repaired = ReplaceInvalidUtf8(utf8);
    utf8 = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(utf8.size() / 3 + 8);
  Parts::Scratch scratch;
  for (const text::Segment& raw : parts.added.Split(utf8, false, options.parse_special)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    std::string rewritten;
    std::string_view normalized = raw.text;
    if (!parts.normalizer.empty()) {
      rewritten = parts.normalizer.Apply(raw.text, &scratch.pre_tokenizer.regex);
      normalized = rewritten;
    }
    for (const text::Segment& segment :
         parts.added.Split(normalized, true, options.parse_special)) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
      } else {
        parts.EncodePlain({segment.text, raw.begin == 0 && segment.begin == 0}, &scratch, &ids);
      }
    }
  }
  parts.post_processor.Apply(options.add_special_tokens, &ids);
  return ids;
}

std::optional<std::string_view> Tokenizer::DecodedToken(int32_t id, bool skip_special) const {
  if (id < 0 || id >= vocab_size()) return std::nullopt;
  const Parts::Token& token = parts_->tokens[static_cast<size_t>(id)];
  if (!token.exists || (skip_special && token.skipped)) return std::nullopt;
  return token.decoded;
}

const text::Decoder& Tokenizer::decoder() const { return parts_->decoder; }

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string out;
  text::DecodeStream stream(&parts_->decoder);
  for (const int32_t id : ids) {
    if (const auto token = DecodedToken(id, skip_special)) stream.Push(*token, &out);
  }
  stream.Finish(&out);
  return out;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  const auto token = DecodedToken(id, false);
  if (!token) return {};
  text::RegexScratch scratch;
  return parts_->decoder.TokenBytes(*token, &scratch);
}

std::string Tokenizer::TokenText(int32_t id) const { return ReplaceInvalidUtf8(TokenBytes(id)); }

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  if (const text::AddedToken* added = parts_->added.Find(token)) return added->id;
  return parts_->model.Find(token);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->tokens[static_cast<size_t>(id)].special;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->tokens.size()); }

const std::string& Tokenizer::bos_token() const { return parts_->bos_token; }
const std::string& Tokenizer::eos_token() const { return parts_->eos_token; }
const std::string& Tokenizer::pad_token() const { return parts_->pad_token; }
const std::string& Tokenizer::unk_token() const { return parts_->unk_token; }
std::optional<bool> Tokenizer::add_bos_token() const { return parts_->add_bos_token; }
std::optional<bool> Tokenizer::add_eos_token() const { return parts_->add_eos_token; }

}  // namespace sluice
