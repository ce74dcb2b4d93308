#include "engine/text/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/utf8.h"
#include "engine/text/json_fields.h"
#include "engine/text/unicode.h"

namespace sluice::text {
namespace {

constexpr size_t kMaxAddedTokens = 1 << 18;

bool EndsWithWord(std::string_view text) {
  if (text.empty()) return false;
  size_t start = PreviousCharacter(text, text.size());
  return IsWord(NextCodePoint(text, &start));
}

bool StartsWithWord(std::string_view text) {
  if (text.empty()) return false;
  size_t start = 0;
  return IsWord(NextCodePoint(text, &start));
}

// Where the whitespace at the end of text[0, end) begins, not looking before `floor`.
size_t TrailingSpaceStart(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    const size_t start = PreviousCharacter(text, end);
    size_t next = start;
    if (!IsWhitespace(NextCodePoint(text, &next))) break;
    end = start;
  }
  return end;
}

size_t LeadingSpaceEnd(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t next = begin;
    if (!IsWhitespace(NextCodePoint(text, &next))) break;
    begin = next;
  }
  return begin;
}

}  // namespace

uint32_t AddedTokens::Trie::Child(uint32_t node, uint8_t byte) const {
  const auto& children = nodes_[node].children;
  const auto it =
      std::lower_bound(children.begin(), children.end(), byte,
                       [](const auto& child, uint8_t value) { return child.first < value; });
  return it != children.end() && it->first == byte ? it->second : 0;
}

void AddedTokens::Trie::Put(std::string_view pattern, int32_t token) {
  if (nodes_.empty()) {
    nodes_.emplace_back();
    first_.assign(256, 0);
  }
  uint32_t node = 0;
  for (const char c : pattern) {
    const auto byte = static_cast<uint8_t>(c);
    uint32_t child = Child(node, byte);
    if (child == 0) {
      child = static_cast<uint32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& children = nodes_[node].children;
      const auto it = std::lower_bound(
          children.begin(), children.end(), byte,
          [](const auto& existing, uint8_t value) { return existing.first < value; });
      children.insert(it, {byte, child});
      if (node == 0) first_[byte] = child;
    }
    node = child;
  }
  nodes_[node].token = token;
}

int32_t AddedTokens::Trie::LongestAt(std::string_view text, size_t at, size_t* length) const {
  uint32_t node = first_[static_cast<uint8_t>(text[at])];
  int32_t best = -1;
  for (size_t i = at + 1; node != 0; ++i) {
    if (nodes_[node].token >= 0) {
      best = nodes_[node].token;
      *length = i - at;
    }
    if (i == text.size()) break;
    node = Child(node, static_cast<uint8_t>(text[i]));
  }
  return best;
}

Result<AddedTokens> AddedTokens::FromJson(const nlohmann::json& array, std::string_view place,
                                          const BpeModel& model, const Normalizer& normalizer) {
  AddedTokens result;
  if (array.is_null()) return result;
  if (!array.is_array()) return Corrupt(std::string(place) + " must be an array");
  if (array.size() > kMaxAddedTokens) {
    return Unsupported(std::string(place) + " has more than " + std::to_string(kMaxAddedTokens) +
                       " entries");
  }
  RegexScratch scratch;
  auto next_id = static_cast<int32_t>(model.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const nlohmann::json& entry = array[i];
    const std::string here = std::string(place) + "[" + std::to_string(i) + "]";
    if (Result<void> object = ExpectObject(entry, here); !object) return object.error();
    AddedToken token;
    Result<std::string> content = GetRequiredString(entry, here, "content");
    if (!content) return content.error();
    token.content = std::move(*content);
    for (const auto& [name, target] :
         {std::pair{"single_word", &token.single_word}, std::pair{"lstrip", &token.lstrip},
          std::pair{"rstrip", &token.rstrip}, std::pair{"normalized", &token.normalized},
          std::pair{"special", &token.special}}) {
      Result<bool> value = GetBool(entry, here, name, false);
      if (!value) return value.error();
      *target = *value;
    }
    if (token.content.empty()) continue;
    token.normalized_content =
        token.normalized ? normalizer.Apply(token.content, &scratch) : token.content;
    if (std::max(token.content.size(), token.normalized_content.size()) > kMaxTokenBytes) {
      return Unsupported(here + ".content is longer than " + std::to_string(kMaxTokenBytes) +
                         " bytes");
    }
    if (Result<void> added = result.Add(std::move(token), here, model, &next_id); !added) {
      return added.error();
    }
  }
  for (size_t i = 0; i < result.tokens_.size(); ++i) {
    const AddedToken& token = result.tokens_[i];
    Trie& trie = token.normalized ? result.normalized_ : result.raw_;
    // Nothing to look for. (A token of spaces, where the normalizer strips them.)
    if (token.normalized_content.empty()) continue;
    trie.Put(token.normalized_content, static_cast<int32_t>(i));
  }
  return result;
}

Result<void> AddedTokens::Add(AddedToken token, std::string_view place, const BpeModel& model,
                              int32_t* next_id) {
  const auto known = by_content_.find(token.content);
  int32_t id;
  if (known != by_content_.end()) {
    id = tokens_[known->second].id;
  } else if (const std::optional<int32_t> in_model = model.Find(token.content)) {
    id = *in_model;
  } else {
    id = (*next_id)++;
  }
  token.id = id;
  if (id > kMaxTokenId) return Unsupported(std::string(place) + ": too many tokens");
  if (token.special) special_[token.content] = true;
  if (known != by_content_.end()) {
    tokens_[known->second] = std::move(token);
    return {};
  }
  by_content_.emplace(token.content, tokens_.size());
  tokens_.push_back(std::move(token));
  return {};
}

const AddedToken* AddedTokens::Find(std::string_view content) const {
  const auto it = by_content_.find(std::string(content));
  return it == by_content_.end() ? nullptr : &tokens_[it->second];
}

bool AddedTokens::IsSpecialContent(std::string_view content) const {
  return special_.contains(std::string(content));
}

std::vector<Segment> AddedTokens::Split(std::string_view text, bool normalized,
                                        bool parse_special) const {
  const Trie& trie = normalized ? normalized_ : raw_;
  std::vector<Segment> segments;
  size_t plain_begin = 0;
  // The whitespace that an rstrip token last took: tokens of whitespace may match all along it.
  size_t space_begin = 1, space_end = 0;
  auto add = [&](size_t begin, size_t end, int32_t id) {
    if (begin < end) segments.push_back({text.substr(begin, end - begin), id, begin});
  };
  for (size_t at = 0; !trie.empty() && at < text.size();) {
    size_t length = 0;
    const int32_t index = trie.LongestAt(text, at, &length);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at;
    size_t end = at + length;
    at = end;  // also a match that is turned down is behind us
    if (!parse_special && IsSpecialContent(token.content)) continue;
    if (token.single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (token.lstrip) begin = TrailingSpaceStart(text, std::max(begin, plain_begin), plain_begin);
    if (token.rstrip) {
      if (end < space_begin || end > space_end) {
        space_begin = end;
        space_end = LeadingSpaceEnd(text, end);
      }
      end = space_end;
    }
    add(plain_begin, begin, -1);
    // Where the token before took the space that this one starts with, `begin` may lie before
    // plain_begin; then the text behind this one starts at its own end again. So does the library.
    add(begin, end, token.id);
    plain_begin = end;
  }
  add(plain_begin, text.size(), -1);
  return segments;
}

}  // namespace sluice::text
