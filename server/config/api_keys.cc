#include "server/config/api_keys.h"

#include <algorithm>

#include "engine/base/file.h"

namespace sluice {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr size_t kMinKeyBytes = 8, kMaxKeyBytes = 512;

std::string_view Trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

bool HasBearerScheme(std::string_view value) {
  constexpr std::string_view kScheme = "bearer ";
  return value.size() >= kScheme.size() &&
         std::equal(kScheme.begin(), kScheme.end(), value.begin(), [](char want, char got) {
           return want == (got | ('A' <= got && got <= 'Z' ? 32 : 0));
         });
}

}  // namespace

bool ConstantTimeEquals(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
    asm volatile("" : "+r"(difference));  // keeps the compiler from leaving the loop early
  }
  return difference == 0;
}

Result<ApiKeys> ApiKeys::Parse(std::string_view text, std::string_view file) {
  ApiKeys keys;
  for (int line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view key = Trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (key.empty() || key.front() == '#') continue;
    const bool printable =
        std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; });
    if (!printable || key.size() < kMinKeyBytes || key.size() > kMaxKeyBytes) {
      return InvalidArgument(std::string(file) + ":" + std::to_string(line) +
                             ": an API key is 8 to 512 printable ASCII characters without spaces");
    }
    keys.keys_.emplace_back(key);
  }
  if (keys.keys_.empty()) {
    return InvalidArgument(std::string(file) +
                           ": holds no API key; add one, or leave server.api_keys_file empty to "
                           "serve without keys");
  }
  return keys;
}

Result<ApiKeys> ApiKeys::Load(const std::string& file) {
  const Result<std::string> text = ReadTextFile(file, kMaxFileBytes);
  if (!text) return WithContext("server.api_keys_file", text.error());
  return Parse(*text, file);
}

bool ApiKeys::Accepts(std::string_view authorization) const {
  if (!required()) return true;
  if (!HasBearerScheme(authorization)) return false;
  const std::string_view given = Trim(authorization.substr(7));
  bool found = false;
  for (const std::string& key : keys_) found |= ConstantTimeEquals(key, given);
  return found;
}

}  // namespace sluice
