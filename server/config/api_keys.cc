#include "server/config/api_keys.h"

#include <algorithm>
#include <charconv>

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

// The next word of a line, cut off it.
std::string_view TakeWord(std::string_view* line) {
  *line = Trim(*line);
  const size_t end = std::min(line->find_first_of(" \t"), line->size());
  const std::string_view word = line->substr(0, end);
  line->remove_prefix(end);
  return word;
}

// The whole text as a number from `least` to `most`.
template <class Number>
bool ReadNumber(std::string_view text, Number least, Number most, Number* out) {
  Number value{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size()) return false;
  if (!(value >= least && value <= most)) return false;
  *out = value;
  return true;
}

// False when `word` is no limit.
bool ReadLimit(std::string_view word, KeyLimits* limits) {
  const size_t equals = std::min(word.find('='), word.size());
  const std::string_view name = word.substr(0, equals);
  const std::string_view value = equals < word.size() ? word.substr(equals + 1) : "";
  constexpr int kMost = 1'000'000'000;
  if (name == "name") {
    limits->name = value;
    return !value.empty() && value.size() <= 64;
  }
  if (name == "weight") return ReadNumber(value, 0.001, 1000.0, &limits->weight);
  if (name == "max_concurrent") return ReadNumber(value, 1, kMost, &limits->max_concurrent);
  if (name == "requests_per_minute") {
    return ReadNumber(value, 1, kMost, &limits->requests_per_minute);
  }
  return name == "tokens_per_minute" && ReadNumber(value, 1, kMost, &limits->tokens_per_minute);
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
    std::string_view rest = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string_view key = TakeWord(&rest);
    if (key.empty() || key.front() == '#') continue;
    const bool printable =
        std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; });
    if (!printable || key.size() < kMinKeyBytes || key.size() > kMaxKeyBytes) {
      return InvalidArgument(std::string(file) + ":" + std::to_string(line) +
                             ": an API key is 8 to 512 printable ASCII characters without spaces");
    }
    KeyLimits limits;
    limits.name = "key " + std::to_string(keys.keys_.size() + 1);
    for (std::string_view word = TakeWord(&rest); !word.empty(); word = TakeWord(&rest)) {
      if (ReadLimit(word, &limits)) continue;
      return InvalidArgument(
          std::string(file) + ":" + std::to_string(line) +
          ": what follows a key is name=TEXT, weight=NUMBER (0.001 to 1000), max_concurrent=N, "
          "requests_per_minute=N or tokens_per_minute=N, with N from 1; or an API key holds a "
          "space");
    }
    keys.keys_.emplace_back(key);
    keys.limits_.push_back(std::move(limits));
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

std::optional<size_t> ApiKeys::Find(std::string_view authorization) const {
  if (!required()) return 0;
  if (!HasBearerScheme(authorization)) return std::nullopt;
  const std::string_view given = Trim(authorization.substr(7));
  std::optional<size_t> found;
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (ConstantTimeEquals(keys_[i], given)) found = i;
  }
  return found;
}

}  // namespace sluice
