#include "engine/text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "engine/text/json_fields.h"

namespace sluice::text {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581

std::string Quoted(std::string_view token) {
  constexpr size_t kShown = 40;
  if (token.size() <= kShown) return "\"" + std::string(token) + "\"";
  return "\"" + ReplaceInvalidUtf8(token.substr(0, kShown)) + "...\"";
}

// Whether "▁" stands anywhere in `token` right behind another character.
bool HasInnerMetaspace(std::string_view token) {
  for (size_t at = token.find(kMetaspace, 1); at != token.npos;
       at = token.find(kMetaspace, at + 1)) {
    if (!token.substr(0, at).ends_with(kMetaspace)) return true;
  }
  return false;
}

struct LaterCandidate {
  bool operator()(const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) const {
    return a.order > b.order;
  }
};

}  // namespace

void MergeTable::Reserve(size_t count) {
  const size_t slots = std::bit_ceil(std::max<size_t>(16, count * 2));
  slots_.assign(slots, Slot{});
  mask_ = slots - 1;
}

void MergeTable::Put(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = Key(left, right);
  size_t i = Hash(key) & mask_;
  while (slots_[i].key != key && slots_[i].key != kFree) i = (i + 1) & mask_;
  slots_[i] = {key, merge};
}

Result<BpeModel> BpeModel::FromJson(const nlohmann::json& json, std::string_view place) {
  if (Result<void> object = ExpectObject(json, place); !object) return object.error();
  Result<std::optional<std::string>> type = GetString(json, place, "type");
  if (!type) return type.error();
  // Files of before 2021 have no type; a BPE model is told by its merges.
  if (type->value_or("BPE") != "BPE" || FindMember(json, "merges") == nullptr) {
    return Unsupported(std::string(place) + ": the model type \"" + type->value_or("(none)") +
                       "\" is not supported, only BPE is");
  }
  if (const nlohmann::json* dropout = FindMember(json, "dropout")) {
    if (!dropout->is_number() || dropout->get<double>() != 0.0) {
      return Unsupported(std::string(place) + ".dropout must be null or 0: encoding is exact here");
    }
  }
  BpeModel model;
  for (const auto& [name, target] : {std::pair{"fuse_unk", &model.fuse_unknown_},
                                     std::pair{"byte_fallback", &model.byte_fallback_},
                                     std::pair{"ignore_merges", &model.ignore_merges_}}) {
    Result<bool> value = GetBool(json, place, name, false);
    if (!value) return value.error();
    *target = *value;
  }
  for (const auto& [name, target] :
       {std::pair{"continuing_subword_prefix", &model.continuing_prefix_},
        std::pair{"end_of_word_suffix", &model.end_suffix_}}) {
    Result<std::optional<std::string>> value = GetString(json, place, name);
    if (!value) return value.error();
    *target = value->value_or("");
    if (target->size() > 64) {
      return Unsupported(std::string(place) + "." + name + " is longer than 64 bytes");
    }
  }
  if (Result<void> read = model.ReadVocabulary(json, place); !read) return read.error();
  if (Result<void> read = model.ReadMerges(json, place); !read) return read.error();
  Result<std::optional<std::string>> unknown = GetString(json, place, "unk_token");
  if (!unknown) return unknown.error();
  if (*unknown) model.unknown_id_ = model.Find(**unknown);
  model.Prepare();
  return model;
}

Result<void> BpeModel::ReadVocabulary(const nlohmann::json& json, std::string_view place) {
  const nlohmann::json* vocabulary = FindMember(json, "vocab");
  const std::string here = std::string(place) + ".vocab";
  if (vocabulary == nullptr || !vocabulary->is_object()) {
    return Corrupt(here + " must be an object from token to id");
  }
  ids_.reserve(vocabulary->size());
  tokens_.reserve(vocabulary->size());
  for (const auto& [token, id] : vocabulary->items()) {
    const bool in_range = id.is_number_unsigned() && id.get<uint64_t>() <= kMaxTokenId;
    if (!in_range) {
      return Corrupt(here + ": the id of " + Quoted(token) + " must be an integer from 0 to " +
                     std::to_string(kMaxTokenId));
    }
    if (token.size() > kMaxTokenBytes) {
      return Unsupported(here + ": the token " + Quoted(token) + " is longer than " +
                         std::to_string(kMaxTokenBytes) + " bytes");
    }
    const auto value = static_cast<int32_t>(id.get<uint64_t>());
    tokens_.push_back({token, value});
    ids_.emplace(token, value);
  }
  std::sort(tokens_.begin(), tokens_.end(),
            [](const Entry& a, const Entry& b) { return a.id < b.id; });
  for (size_t i = 1; i < tokens_.size(); ++i) {
    if (tokens_[i].id == tokens_[i - 1].id) {
      return Corrupt(here + ": " + Quoted(tokens_[i - 1].token) + " and " +
                     Quoted(tokens_[i].token) + " have the same id " +
                     std::to_string(tokens_[i].id));
    }
  }
  return {};
}

Result<void> BpeModel::ReadMerges(const nlohmann::json& json, std::string_view place) {
  Result<const nlohmann::json*> merges = GetRequiredArray(json, place, "merges");
  if (!merges) return merges.error();
  merges_.Reserve((*merges)->size());
  uint32_t rank = 0;
  for (size_t i = 0; i < (*merges)->size(); ++i) {
    const nlohmann::json& merge = (**merges)[i];
    std::string_view left, right;
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    } else if (merge.is_string()) {
      const std::string_view line = merge.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const size_t blank = line.find(' ');
      if (blank == line.npos || line.find(' ', blank + 1) != line.npos) {
        return Corrupt(Indexed(place, "merges", i) + " must be two tokens with one space between");
      }
      left = line.substr(0, blank);
      right = line.substr(blank + 1);
    } else {
      return Corrupt(Indexed(place, "merges", i) +
                     " must be a string \"a b\" or an array [\"a\", \"b\"]");
    }
    Result<void> added = AddMerge(left, right, rank++, Indexed(place, "merges", i));
    if (!added) return added.error();
  }
  return {};
}

Result<void> BpeModel::AddMerge(std::string_view left, std::string_view right, uint32_t rank,
                                std::string_view place) {
  const std::optional<int32_t> left_id = Find(left);
  const std::optional<int32_t> right_id = Find(right);
  if (!left_id || !right_id) {
    return Corrupt(std::string(place) + ": the token " + Quoted(left_id ? right : left) +
                   " is not in the vocabulary");
  }
  if (right.size() < continuing_prefix_.size()) {
    return Corrupt(std::string(place) + ": the token " + Quoted(right) +
                   " lacks the continuing_subword_prefix");
  }
  const std::string merged =
      std::string(left) + std::string(right.substr(continuing_prefix_.size()));
  const std::optional<int32_t> merged_id = Find(merged);
  if (!merged_id) {
    return Corrupt(std::string(place) + ": the merged token " + Quoted(merged) +
                   " is not in the vocabulary");
  }
  merges_.Put(*left_id, *right_id, {rank, *merged_id});
  return {};
}

void BpeModel::Prepare() {
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(b));
    byte_ids_[static_cast<size_t>(b)] = Find(name).value_or(-1);
  }
  short_ids_.assign(kShortCodePoints, -1);
  for (char32_t c = 0; c < kShortCodePoints; ++c) {
    std::string character;
    AppendUtf8(c, &character);
    short_ids_[c] = Find(character).value_or(-1);
  }
  // Merges build tokens of the vocabulary only. When none holds a "▁" behind another character, no
  // merge crosses such a place; and "▁" must be a token itself, or unknown characters on both sides
  // could fuse.
  splits_at_metaspace_ =
      !ignore_merges_ && continuing_prefix_.empty() && end_suffix_.empty() && Find(kMetaspace) &&
      std::none_of(tokens_.begin(), tokens_.end(),
                   [](const Entry& entry) { return HasInnerMetaspace(entry.token); });
}

std::optional<int32_t> BpeModel::Find(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

int32_t BpeModel::FindCharacter(std::string_view character) const {
  if (character.size() <= 2) {
    size_t i = 0;
    return short_ids_[NextCodePoint(character, &i)];
  }
  const auto it = ids_.find(character);
  return it == ids_.end() ? -1 : it->second;
}

void BpeModel::EncodeWord(std::string_view word, BpeScratch* scratch,
                          std::vector<int32_t>* ids) const {
  SLUICE_CHECK(word.size() < (size_t{1} << 31), "a word is too long");
  if (word.empty()) return;
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = Find(word)) {
      ids->push_back(*id);
      return;
    }
  }
  Split(word, scratch);
  Merge(scratch);
  for (const BpeScratch::Symbol& symbol : scratch->symbols) {
    if (!symbol.gone) ids->push_back(symbol.id);
  }
}

// One symbol for each character, byte or unknown stretch of the word.
void BpeModel::Split(std::string_view word, BpeScratch* scratch) const {
  std::vector<BpeScratch::Symbol>& symbols = scratch->symbols;
  symbols.clear();
  auto add = [&symbols](int32_t id) { symbols.push_back({id, 0, 0, false}); };
  const bool decorated = !continuing_prefix_.empty() || !end_suffix_.empty();
  bool unknown = false;  // an unknown token waits, to be fused with the next
  for (size_t i = 0; i < word.size();) {
    const size_t begin = i;
    NextCodePoint(word, &i);
    std::string_view character = word.substr(begin, i - begin);
    int32_t id;
    if (decorated) {
      std::string& text = scratch->text;
      text.clear();
      if (begin > 0) text += continuing_prefix_;
      text += character;
      if (i == word.size()) text += end_suffix_;
      character = text;
      id = Find(character).value_or(-1);
    } else {
      id = FindCharacter(character);
    }
    if (id >= 0) {
      if (unknown) add(*unknown_id_);
      unknown = false;
      add(id);
      continue;
    }
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), [this](char b) {
          return byte_ids_[static_cast<uint8_t>(b)] >= 0;
        })) {
      // A waiting unknown token stays behind these bytes: so it is in the library.
      for (const char b : character) add(byte_ids_[static_cast<uint8_t>(b)]);
      continue;
    }
    if (!unknown_id_) continue;
    if (unknown && !fuse_unknown_) add(*unknown_id_);
    unknown = true;
  }
  if (unknown) add(*unknown_id_);
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].previous = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
}

void BpeModel::Merge(BpeScratch* scratch) const {
  std::vector<BpeScratch::Symbol>& symbols = scratch->symbols;
  std::vector<BpeScratch::Candidate>& heap = scratch->heap;
  heap.clear();
  auto candidate = [&](int32_t at) -> std::optional<BpeScratch::Candidate> {
    const BpeScratch::Symbol& left = symbols[static_cast<size_t>(at)];
    const MergeTable::Merge* merge =
        merges_.Find(left.id, symbols[static_cast<size_t>(left.next)].id);
    if (merge == nullptr) return std::nullopt;
    return BpeScratch::Candidate{
        static_cast<uint64_t>(merge->rank) << 32 | static_cast<uint32_t>(at), merge->id};
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    if (const auto c = candidate(i)) heap.push_back(*c);
  }
  const LaterCandidate later;
  std::make_heap(heap.begin(), heap.end(), later);
  auto push = [&](int32_t at) {
    if (const auto c = candidate(at)) {
      heap.push_back(*c);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const BpeScratch::Candidate top = heap.back();
    heap.pop_back();
    const auto at = static_cast<int32_t>(top.order & 0xFFFFFFFFu);
    BpeScratch::Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.gone || left.next < 0) continue;
    BpeScratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    // A neighbour may have merged since this candidate was queued.
    const MergeTable::Merge* merge = merges_.Find(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;
    left.id = top.id;
    left.next = right.next;
    right.gone = true;
    if (left.next >= 0) {
      symbols[static_cast<size_t>(left.next)].previous = at;
      push(at);
    }
    if (left.previous >= 0) push(left.previous);
  }
}

}  // namespace sluice::text
