// API keys: read once from a file, compared in constant time, never printed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace sluice {

class ApiKeys {
 public:
  // No keys: every request is let in.
  ApiKeys() = default;

  // One key per line; blank lines and lines that start with # are skipped, spaces around a key are
  // cut. A key is 8 to 512 printable ASCII characters. Errors name the file and the line, never
  // the key. A file without any key is an error: it would silently open the server.
  static Result<ApiKeys> Load(const std::string& file);
  static Result<ApiKeys> Parse(std::string_view text, std::string_view file);

  bool required() const { return !keys_.empty(); }
  size_t size() const { return keys_.size(); }

  // True when no key is required or `authorization` is "Bearer KEY" with a known key. The time
  // depends on the lengths only, not on which key or how much of it matches.
  bool Accepts(std::string_view authorization) const;

 private:
  std::vector<std::string> keys_;
};

// Compares without an early exit; the time depends on the lengths only.
bool ConstantTimeEquals(std::string_view a, std::string_view b);

}  // namespace sluice
