// "Replace" of tokenizer.json, which is a normalizer and a decoder: every match of a string or a
// regular expression becomes a fixed text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "engine/text/regex.h"

namespace sluice::text {

class Replacer {
 public:
  // {"pattern": {"String": "..."} or {"Regex": "..."}, "content": "..."}
  static Result<Replacer> FromJson(const nlohmann::json& object, std::string_view place);

  // The result never exceeds `max_bytes`, or text.size() where that is more: a replacement that
  // would make it longer is left out, with all that follow (a tokenizer that means to exhaust
  // memory gets its text back instead).
  std::string Apply(std::string_view text, size_t max_bytes, RegexScratch* scratch) const;

  // Set when the pattern is one fixed character: then Apply works on any piece of a text alone.
  bool is_single_character() const { return single_character_; }

 private:
  std::string literal_;         // when not a regular expression
  std::optional<Regex> regex_;  // otherwise
  std::string content_;
  bool single_character_ = false;
};

// The member `pattern` of a Split or Replace: compiled, with *literal set for a fixed string.
Result<std::optional<Regex>> ParsePattern(const nlohmann::json& object, std::string_view place,
                                          std::string* literal);

}  // namespace sluice::text
