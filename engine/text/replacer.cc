#include "engine/text/replacer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/utf8.h"
#include "engine/text/json_fields.h"

namespace sluice::text {

Result<std::optional<Regex>> ParsePattern(const nlohmann::json& object, std::string_view place,
                                          std::string* literal) {
  const nlohmann::json* pattern = FindMember(object, "pattern");
  const std::string here = std::string(place) + ".pattern";
  if (pattern == nullptr || !pattern->is_object() || pattern->size() != 1) {
    return Corrupt(here + " must be an object with the one member \"String\" or \"Regex\"");
  }
  if (const auto it = pattern->find("String"); it != pattern->end() && it->is_string()) {
    *literal = it->get<std::string>();
    if (literal->empty()) return Unsupported(here + " is an empty string");
    return std::optional<Regex>();
  }
  if (const auto it = pattern->find("Regex"); it != pattern->end() && it->is_string()) {
    Result<Regex> regex = Regex::Compile(it->get_ref<const std::string&>());
    if (!regex) return WithContext(here, regex.error());
    return std::optional<Regex>(std::move(*regex));
  }
  return Corrupt(here + " must hold a string named \"String\" or \"Regex\"");
}

Result<Replacer> Replacer::FromJson(const nlohmann::json& object, std::string_view place) {
  Replacer replacer;
  Result<std::optional<Regex>> regex = ParsePattern(object, place, &replacer.literal_);
  if (!regex) return regex.error();
  replacer.regex_ = std::move(*regex);
  Result<std::string> content = GetRequiredString(object, place, "content");
  if (!content) return content.error();
  replacer.content_ = std::move(*content);
  replacer.single_character_ = !replacer.regex_ && CountCharacters(replacer.literal_) == 1;
  return replacer;
}

std::string Replacer::Apply(std::string_view text, size_t max_bytes, RegexScratch* scratch) const {
  const size_t limit = std::max(max_bytes, text.size());
  std::string out;
  size_t copied = 0;
  // Appends the text before [begin, end) and the replacement; false when that is too much.
  auto replace = [&](size_t begin, size_t end) {
    if (out.size() + (begin - copied) + content_.size() + (text.size() - end) > limit) return false;
    out.append(text.substr(copied, begin - copied));
    out.append(content_);
    copied = end;
    return true;
  };
  if (regex_) {
    std::vector<TextSpan> matches;
    regex_->FindAll(text, scratch, &matches);
    for (const TextSpan& match : matches) {
      if (!replace(match.begin, match.end)) break;
    }
  } else {
    out.reserve(text.size());
    for (size_t at = text.find(literal_); at != text.npos; at = text.find(literal_, copied)) {
      if (!replace(at, at + literal_.size())) break;
    }
  }
  out.append(text.substr(copied));
  return out;
}

}  // namespace sluice::text
