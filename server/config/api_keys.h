// API keys and what each may do: read once from a file, compared in constant time, never printed.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace sluice {

// Limits of one key; 0: none.
struct KeyLimits {
  std::string name;        // for people: "key 1" unless the file names it
  double weight = 1;       // share of the engine's tokens while others want some
  int max_concurrent = 0;  // requests at the same time
  int requests_per_minute = 0;
  int tokens_per_minute = 0;  // of prompts and answers
};

class ApiKeys {
 public:
  // No keys: every request is let in.
  ApiKeys() = default;

  // One key per line, then its limits as NAME=VALUE with spaces between ("sk-abc name=alice
  // weight=2 max_concurrent=4 requests_per_minute=60 tokens_per_minute=20000"); blank lines and
  // lines that start with # are skipped. A key is 8 to 512 printable ASCII characters. Errors name
  // the file and the line, never the key. A file without any key is an error: it would silently
  // open the server.
  static Result<ApiKeys> Load(const std::string& file);
  static Result<ApiKeys> Parse(std::string_view text, std::string_view file);

  bool required() const { return !keys_.empty(); }
  size_t size() const { return keys_.size(); }

  // True when no key is required or `authorization` is "Bearer KEY" with a known key. The time
  // depends on the lengths only, not on which key or how much of it matches.
  bool Accepts(std::string_view authorization) const { return Find(authorization).has_value(); }
  // The key's index; 0 when none is required.
  std::optional<size_t> Find(std::string_view authorization) const;
  // By index; empty when no key is required.
  const std::vector<KeyLimits>& limits() const { return limits_; }

 private:
  std::vector<std::string> keys_;
  std::vector<KeyLimits> limits_;  // of each
};

// Compares without an early exit; the time depends on the lengths only.
bool ConstantTimeEquals(std::string_view a, std::string_view b);

}  // namespace sluice
