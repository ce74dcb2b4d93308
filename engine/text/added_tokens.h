// The `added_tokens` of tokenizer.json: tokens that are found in the text itself, before BPE.
// Those with "normalized": false are searched in the raw text, the others in the normalized text
// between them. At each position the longest token wins.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/bpe.h"
#include "engine/text/normalizer.h"

namespace sluice::text {

struct AddedToken {
  std::string content;
  // What it looks like in normalized text; equal to content when normalized is false.
  std::string normalized_content;
  int32_t id = 0;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the whitespace on its left along
  bool rstrip = false;       // ... on its right
  bool normalized = false;
  bool special = false;
};

// A part of a text: an added token, or the text between two.
struct Segment {
  std::string_view text;
  int32_t id;  // -1: plain text
  size_t begin;
};

// Immutable; any thread.
class AddedTokens {
 public:
  static constexpr size_t kMaxTokenBytes = 1024;  // bounds the search to that many steps a byte

  AddedTokens() = default;

  // Ids follow the library: a token that `model` or an earlier entry has keeps that id, others are
  // numbered on from the vocabulary's size. The file's own `id`, which agrees with that in files
  // written by the library, is not looked at (nor does the library, except to warn).
  static Result<AddedTokens> FromJson(const nlohmann::json& array, std::string_view place,
                                      const BpeModel& model, const Normalizer& normalizer);

  // Splits at the tokens searched in raw text (`normalized` false) or normalized text (true).
  // With parse_special false, special tokens are plain text. REQUIRES: valid UTF-8.
  std::vector<Segment> Split(std::string_view text, bool normalized, bool parse_special) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* Find(std::string_view content) const;
  // The library asks by content: a vocabulary token spelled like a special one is special.
  bool IsSpecialContent(std::string_view content) const;

 private:
  // Patterns as a byte trie; node 0 is the root.
  class Trie {
   public:
    bool empty() const { return nodes_.empty(); }
    // A later token replaces an earlier one with the same pattern.
    void Put(std::string_view pattern, int32_t token);
    // The longest pattern that starts at `at`: its token and *length; -1 when there is none.
    int32_t LongestAt(std::string_view text, size_t at, size_t* length) const;

   private:
    struct Node {
      std::vector<std::pair<uint8_t, uint32_t>> children;  // by ascending byte
      int32_t token = -1;
    };
    uint32_t Child(uint32_t node, uint8_t byte) const;  // 0: none

    std::vector<Node> nodes_;
    std::vector<uint32_t> first_;  // 256: child of the root by byte; 0: none
  };

  Result<void> Add(AddedToken token, std::string_view place, const BpeModel& model,
                   int32_t* next_id);

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, size_t> by_content_;  // index into tokens_
  std::unordered_map<std::string, bool> special_;       // contents that were ever special
  Trie raw_;
  Trie normalized_;
};

}  // namespace sluice::text
