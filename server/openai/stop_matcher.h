// Finds stop strings in text that arrives in pieces, without ever letting out the beginning of one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sluice::openai {

class StopMatcher {
 public:
  // `stops` are non-empty; an empty list matches nothing.
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes the next piece and returns the text that may be sent: everything up to the earliest stop
  // string, or everything except a tail that could still become one. After a match, more pieces
  // give nothing. Pieces of whole UTF-8 characters give whole characters.
  std::string Push(std::string_view piece);

  // No more text comes: returns the tail that was held back (empty after a match).
  std::string Finish();

  bool matched() const { return matched_; }

 private:
  const std::vector<std::string> stops_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace sluice::openai
