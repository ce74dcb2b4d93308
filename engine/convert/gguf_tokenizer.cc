#include "engine/convert/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/model_files.h"
#include "engine/base/utf8.h"
#include "engine/convert/gguf_fields.h"

namespace sluice {
namespace {

using nlohmann::json;

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581
// Longer pieces are no result of merges: bounds the work that a hostile file can ask for.
constexpr size_t kMaxMergedBytes = 256;
constexpr size_t kMaxMerges = size_t{4} << 20;

// tokenizer.ggml.token_type
enum TokenKind : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// How text is cut into words, as the published tokenizer.json files spell it.
enum class WordSplit {
  kGpt2,            // the pattern that ByteLevel has built in
  kDigitsThenGpt2,  // each digit alone before it
  kLlama3,
  kQwen2,
  kGgufDefault,  // llama.cpp's for files that do not say: its four patterns one after the other
};

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::array<std::string_view, 4> kDefaultPatterns = {
    R"([\p{P}\$\+<=>\^~\|]+)",
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))",
    R"(\p{N}+)",
    R"([0-9][0-9][0-9])",
};

struct PreTokenizerKind {
  std::string_view name;  // tokenizer.ggml.pre
  WordSplit split;
  bool nfc;            // the published tokenizers normalize to NFC
  bool ignore_merges;  // a word that is a token is that token
  bool adds_bos;       // where the file does not say
};

constexpr std::array kPreTokenizers = {
    PreTokenizerKind{"gpt-2", WordSplit::kGpt2, false, false, false},
    PreTokenizerKind{"phi-2", WordSplit::kGpt2, false, false, false},
    PreTokenizerKind{"mellum", WordSplit::kGpt2, false, false, false},
    PreTokenizerKind{"gigachat", WordSplit::kGpt2, false, false, false},
    PreTokenizerKind{"exaone4", WordSplit::kGpt2, false, false, false},
    PreTokenizerKind{"jais", WordSplit::kGpt2, false, false, false},
    PreTokenizerKind{"mpt", WordSplit::kGpt2, true, false, false},
    PreTokenizerKind{"olmo", WordSplit::kGpt2, true, false, false},
    PreTokenizerKind{"modern-bert", WordSplit::kGpt2, true, false, false},
    PreTokenizerKind{"starcoder", WordSplit::kDigitsThenGpt2, false, false, false},
    PreTokenizerKind{"refact", WordSplit::kDigitsThenGpt2, false, false, false},
    PreTokenizerKind{"smollm", WordSplit::kDigitsThenGpt2, false, false, false},
    PreTokenizerKind{"codeshell", WordSplit::kDigitsThenGpt2, false, false, false},
    PreTokenizerKind{"command-r", WordSplit::kDigitsThenGpt2, true, false, false},
    PreTokenizerKind{"llama3", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"llama-v3", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"llama-bpe", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"falcon3", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"pixtral", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"midm-2.0", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"lfm2", WordSplit::kLlama3, false, true, true},
    PreTokenizerKind{"dbrx", WordSplit::kLlama3, false, false, false},
    PreTokenizerKind{"smaug-bpe", WordSplit::kLlama3, false, false, false},
    PreTokenizerKind{"chatglm-bpe", WordSplit::kLlama3, false, false, false},
    PreTokenizerKind{"glm4", WordSplit::kLlama3, false, true, false},
    PreTokenizerKind{"qwen2", WordSplit::kQwen2, true, false, false},
    PreTokenizerKind{"megrez", WordSplit::kQwen2, true, false, false},
    PreTokenizerKind{"deepseek-r1-qwen", WordSplit::kQwen2, false, false, false},
    PreTokenizerKind{"stablelm2", WordSplit::kQwen2, true, false, false},
    PreTokenizerKind{"hunyuan", WordSplit::kQwen2, false, false, false},
    PreTokenizerKind{"grok-2", WordSplit::kQwen2, false, false, false},
    PreTokenizerKind{"default", WordSplit::kGgufDefault, false, false, false},
};

json SplitStep(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", std::string(pattern)}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json PreTokenizerJson(WordSplit split) {
  json steps = json::array();
  switch (split) {
    case WordSplit::kGpt2:
      return ByteLevel(true);
    case WordSplit::kDigitsThenGpt2:
      steps = {{{"type", "Digits"}, {"individual_digits", true}}, ByteLevel(true)};
      break;
    case WordSplit::kLlama3:
      steps = {SplitStep(kLlama3Pattern), ByteLevel(false)};
      break;
    case WordSplit::kQwen2:
      steps = {SplitStep(kQwen2Pattern), ByteLevel(false)};
      break;
    case WordSplit::kGgufDefault:
      for (const std::string_view pattern : kDefaultPatterns) steps.push_back(SplitStep(pattern));
      steps.push_back(ByteLevel(false));
      break;
  }
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

size_t Characters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

class TokenizerWriter {
 public:
  TokenizerWriter(const GgufReader& reader, int vocab)
      : reader_(reader), fields_(reader), vocab_(vocab) {}

  Result<> Write(std::map<std::string, std::string>* files) {
    const std::string model = fields_.Text("tokenizer.ggml.model");
    const bool has_tokenizer = !model.empty() && model != "none" && model != "no_vocab";
    if (has_tokenizer && !fields_.error()) {
      ReadTokens();
      ReadSpecials(model);
      if (fields_.error()) return *fields_.error();
      if (model == "gpt2") {
        WriteByteLevel();
      } else if (model == "llama") {
        WriteSentencePiece();
      } else {
        fields_.Refuse("tokenizer.ggml.model \"" + ReplaceInvalidUtf8(model.substr(0, 40)) +
                       "\" is not served; served are gpt2 and llama");
      }
      if (fields_.error()) return *fields_.error();
      WriteShared();
    }
    const std::string chat = fields_.Text("tokenizer.chat_template");
    if (!chat.empty()) settings_["chat_template"] = chat;
    if (fields_.error()) return *fields_.error();
    if (has_tokenizer) (*files)[std::string(ModelFiles::kTokenizer)] = tokenizer_.dump();
    if (!settings_.empty()) {
      (*files)[std::string(ModelFiles::kTokenizerConfig)] = settings_.dump(2) + "\n";
    }
    return {};
  }

 private:
  void Damaged(std::string what) {
    fields_.Fail(Corrupt(reader_.path().string() + ": " + std::move(what)));
  }

  template <class T>
  const std::vector<T>* List(std::string_view key) const {
    const GgufValue* value = reader_.FindMetadata(key);
    return value == nullptr ? nullptr : std::get_if<std::vector<T>>(value);
  }

  int64_t KindOf(size_t id) const { return kinds_ == nullptr ? kNormal : (*kinds_)[id]; }
  bool IsAdded(size_t id) const {
    const int64_t kind = KindOf(id);
    return kind == kControl || kind == kUserDefined || kind == kUnknown ||
           (kinds_ == nullptr && std::count(special_ids_.begin(), special_ids_.end(), id) > 0);
  }

  void ReadTokens() {
    tokens_ = List<std::string>("tokenizer.ggml.tokens");
    if (tokens_ == nullptr || tokens_->empty()) {
      return Damaged("tokenizer.ggml.tokens, a list of texts, is missing");
    }
    if (tokens_->size() > static_cast<size_t>(vocab_)) {
      return Damaged("tokenizer.ggml.tokens lists " + std::to_string(tokens_->size()) +
                     " tokens, but the model has " + std::to_string(vocab_) +
                     " (token_embd.weight)");
    }
    if (reader_.FindMetadata("tokenizer.ggml.token_type") != nullptr) {
      kinds_ = List<int64_t>("tokenizer.ggml.token_type");
      if (kinds_ == nullptr || kinds_->size() != tokens_->size()) {
        return Damaged("tokenizer.ggml.token_type does not have one number for each of the " +
                       std::to_string(tokens_->size()) + " tokens");
      }
    }
    ids_.reserve(tokens_->size());
    for (size_t id = 0; id < tokens_->size(); ++id) {
      const std::string& token = (*tokens_)[id];
      const std::string place = "tokenizer.ggml.tokens[" + std::to_string(id) + "]";
      if (!IsValidUtf8(token)) return Damaged(place + " is not valid UTF-8");
      // Ids without a text: nothing encodes to them, and they decode to nothing.
      if (token.empty() || KindOf(id) == kUnused) continue;
      const auto [position, fresh] = ids_.emplace(token, id);
      if (!fresh) {
        return Damaged(place + " repeats the text of token " + std::to_string(position->second));
      }
    }
    for (const auto& [token, id] : ids_) vocabulary_[std::string(token)] = id;
  }

  void ReadSpecials(std::string_view model) {
    if (tokens_ == nullptr || fields_.error()) return;
    const auto count = static_cast<int64_t>(tokens_->size());
    for (const auto& [name, setting] :
         {std::pair{"bos", "bos_token"}, std::pair{"eos", "eos_token"},
          std::pair{"unknown", "unk_token"}, std::pair{"padding", "pad_token"}}) {
      const auto id = fields_.TokenId("tokenizer.ggml." + std::string(name) + "_token_id", count);
      if (!id) continue;
      const std::string& text = (*tokens_)[static_cast<size_t>(*id)];
      if (!ids_.contains(text)) continue;
      settings_[setting] = text;
      special_ids_.push_back(static_cast<size_t>(*id));
      if (std::string_view(name) == "bos") bos_ = *id;
      if (std::string_view(name) == "eos") eos_ = *id;
    }
    pre_ = fields_.Text("tokenizer.ggml.pre");
    if (model == "gpt2") FindPreTokenizer();
    const bool adds_bos = model == "llama" || (kind_ != nullptr && kind_->adds_bos);
    adds_bos_ = fields_.Bool("tokenizer.ggml.add_bos_token", adds_bos);
    adds_eos_ = fields_.Bool("tokenizer.ggml.add_eos_token", false);
    if (adds_bos_ && !bos_ && fields_.Has("tokenizer.ggml.add_bos_token")) {
      Damaged("tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id names none");
    }
    if (adds_eos_ && !eos_) {
      Damaged("tokenizer.ggml.add_eos_token is true, but tokenizer.ggml.eos_token_id names none");
    }
    settings_["add_bos_token"] = adds_bos_ && bos_.has_value();
    settings_["add_eos_token"] = adds_eos_;
  }

  void FindPreTokenizer() {
    if (fields_.error()) return;
    // Files of before May 2024 do not say; what they hold follows from the model.
    if (pre_.empty()) {
      const std::string architecture = fields_.Text("general.architecture");
      pre_ = architecture.starts_with("qwen") ? "qwen2"
             : architecture == "olmoe"        ? "olmo"
                                              : "default";
    }
    const auto* found =
        std::find_if(kPreTokenizers.begin(), kPreTokenizers.end(),
                     [this](const PreTokenizerKind& kind) { return kind.name == pre_; });
    if (found == kPreTokenizers.end()) {
      fields_.Refuse("tokenizer.ggml.pre \"" + ReplaceInvalidUtf8(pre_.substr(0, 40)) +
                     "\" names a way to split text into words that is not known here");
      return;
    }
    kind_ = found;
  }

  void WriteByteLevel() {
    const auto* merges = List<std::string>("tokenizer.ggml.merges");
    if (merges == nullptr) {
      return Damaged("tokenizer.ggml.merges, a list of texts, is missing");
    }
    json pairs = json::array();
    for (size_t i = 0; i < merges->size(); ++i) {
      const std::string& merge = (*merges)[i];
      const std::string place = "tokenizer.ggml.merges[" + std::to_string(i) + "]";
      const size_t blank = merge.find(' ', 1);
      if (blank == merge.npos || merge.find(' ', blank + 1) != merge.npos) {
        return Damaged(place + " is not two tokens with one space between");
      }
      std::string left = merge.substr(0, blank), right = merge.substr(blank + 1);
      if (!ids_.contains(left) || !ids_.contains(right) || !ids_.contains(left + right)) {
        return Damaged(place + " merges what is not in tokenizer.ggml.tokens");
      }
      pairs.push_back(json::array({std::move(left), std::move(right)}));
    }
    if (kind_->nfc) tokenizer_["normalizer"] = {{"type", "NFC"}};
    tokenizer_["pre_tokenizer"] = PreTokenizerJson(kind_->split);
    tokenizer_["decoder"] = ByteLevel(true);
    tokenizer_["model"] = {{"type", "BPE"},
                           {"ignore_merges", kind_->ignore_merges},
                           {"byte_fallback", false},
                           {"merges", std::move(pairs)}};
  }

  void WriteSentencePiece() {
    if (fields_.Bool("tokenizer.ggml.remove_extra_whitespaces", false)) {
      return fields_.Refuse("tokenizer.ggml.remove_extra_whitespaces is true, which is not served");
    }
    if (fields_.Has("tokenizer.ggml.precompiled_charsmap")) {
      return fields_.Refuse(
          "tokenizer.ggml.precompiled_charsmap, a normalization of characters, is not served");
    }
    const bool prefix = fields_.Bool("tokenizer.ggml.add_space_prefix", true);
    json normalizers = json::array();
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kMetaspace}});
    normalizers.push_back(
        {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMetaspace}});
    tokenizer_["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}};
    tokenizer_["pre_tokenizer"] = nullptr;
    json decoders = json::array();
    decoders.push_back(
        {{"type", "Replace"}, {"pattern", {{"String", kMetaspace}}}, {"content", " "}});
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
    if (prefix) {
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    tokenizer_["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
    bool bytes = false;
    for (size_t id = 0; id < tokens_->size(); ++id) bytes = bytes || KindOf(id) == kByte;
    json model = {{"type", "BPE"},
                  {"ignore_merges", false},
                  {"fuse_unk", true},
                  {"byte_fallback", bytes},
                  {"merges", MergesFromScores()}};
    if (settings_.contains("unk_token")) model["unk_token"] = settings_["unk_token"];
    tokenizer_["model"] = std::move(model);
  }

  // SentencePiece joins the neighbours whose joint piece has the best score, wherever its two
  // halves come from: every way to cut a piece in two pieces is a merge, ranked by its score; of
  // equal ones longer left and then right halves first.
  json MergesFromScores() {
    const auto* scores = List<double>("tokenizer.ggml.scores");
    if (reader_.FindMetadata("tokenizer.ggml.scores") != nullptr &&
        (scores == nullptr || scores->size() != tokens_->size())) {
      Damaged("tokenizer.ggml.scores does not have one number for each of the " +
              std::to_string(tokens_->size()) + " tokens");
      return {};
    }
    // Converters that have no scores write one value for all; ids are in the order of merging then.
    bool by_id = true;
    std::optional<double> first;
    for (size_t id = 0; scores != nullptr && id < tokens_->size(); ++id) {
      if (KindOf(id) != kNormal) continue;
      const double score = (*scores)[id];
      if (score != score) {
        Damaged("tokenizer.ggml.scores[" + std::to_string(id) + "] is not a number");
        return {};
      }
      if (first && *first != score) by_id = false;
      first = score;
    }
    struct Merge {
      double score;
      size_t left_length;
      size_t right_length;
      size_t result;
      size_t left;
      size_t right;
    };
    std::vector<Merge> merges;
    for (size_t id = 0; id < tokens_->size(); ++id) {
      const std::string_view piece = (*tokens_)[id];
      if (KindOf(id) != kNormal || piece.empty() || piece.size() > kMaxMergedBytes) continue;
      const double score = by_id ? -static_cast<double>(id) : (*scores)[id];
      for (size_t cut = 1; cut < piece.size(); ++cut) {
        if ((piece[cut] & 0xC0) == 0x80) continue;
        const auto left = ids_.find(piece.substr(0, cut));
        if (left == ids_.end() || KindOf(left->second) != kNormal) continue;
        const auto right = ids_.find(piece.substr(cut));
        if (right == ids_.end() || KindOf(right->second) != kNormal) continue;
        merges.push_back({score, Characters(left->first), Characters(right->first), id,
                          left->second, right->second});
      }
      if (merges.size() > kMaxMerges) {
        Damaged("tokenizer.ggml.tokens can be merged in more than " + std::to_string(kMaxMerges) +
                " ways");
        return {};
      }
    }
    std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
      const auto key = [](const Merge& m) {
        return std::tuple(-m.score, -static_cast<int64_t>(m.left_length),
                          -static_cast<int64_t>(m.right_length), m.result, m.left, m.right);
      };
      return key(a) < key(b);
    });
    json pairs = json::array();
    for (const Merge& merge : merges) {
      pairs.push_back(json::array({(*tokens_)[merge.left], (*tokens_)[merge.right]}));
    }
    return pairs;
  }

  void WriteShared() {
    tokenizer_["version"] = "1.0";
    tokenizer_["model"]["vocab"] = std::move(vocabulary_);
    json added = json::array();
    for (size_t id = 0; id < tokens_->size(); ++id) {
      const std::string& text = (*tokens_)[id];
      if (text.empty() || !IsAdded(id)) continue;
      added.push_back({{"id", id},
                       {"content", text},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", KindOf(id) != kUserDefined}});
    }
    tokenizer_["added_tokens"] = std::move(added);
    const bool bos = adds_bos_ && bos_.has_value();
    if (!bos && !adds_eos_) return;
    json single = json::array();
    json specials = json::object();
    const auto add = [&](int64_t id) {
      const std::string& text = (*tokens_)[static_cast<size_t>(id)];
      single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
      specials[text] = {{"id", text}, {"ids", json::array({id})}, {"tokens", json::array({text})}};
    };
    if (bos) add(*bos_);
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (adds_eos_) add(*eos_);
    json pair = single;
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    tokenizer_["post_processor"] = {{"type", "TemplateProcessing"},
                                    {"single", std::move(single)},
                                    {"pair", std::move(pair)},
                                    {"special_tokens", std::move(specials)}};
  }

  const GgufReader& reader_;
  GgufFields fields_;
  int vocab_;
  const std::vector<std::string>* tokens_ = nullptr;
  const std::vector<int64_t>* kinds_ = nullptr;  // null: all normal but the special ids
  std::unordered_map<std::string_view, size_t> ids_;
  json vocabulary_ = json::object();
  std::vector<size_t> special_ids_;
  std::optional<int64_t> bos_, eos_;
  bool adds_bos_ = false, adds_eos_ = false;
  std::string pre_;
  const PreTokenizerKind* kind_ = nullptr;
  json tokenizer_ = json::object();
  json settings_ = json::object();
};

}  // namespace

Result<> WriteGgufTokenizer(const GgufReader& reader, int vocab,
                            std::map<std::string, std::string>* files) {
  return TokenizerWriter(reader, vocab).Write(files);
}

}  // namespace sluice
