#include "engine/text/normalizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/utf8.h"
#include "engine/text/byte_level.h"
#include "engine/text/json_fields.h"

namespace sluice::text {
namespace {

std::string_view StripLeft(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    size_t next = i;
    if (!IsWhitespace(NextCodePoint(text, &next))) break;
    i = next;
  }
  return text.substr(i);
}

std::string_view StripRight(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t start = PreviousCharacter(text, end);
    size_t next = start;
    if (!IsWhitespace(NextCodePoint(text, &next))) break;
    end = start;
  }
  return text.substr(0, end);
}

}  // namespace

Result<Normalizer> Normalizer::FromJson(const nlohmann::json& component, std::string_view place) {
  Normalizer normalizer;
  if (component.is_null()) return normalizer;
  if (Result<void> added = normalizer.Add(component, place, 0); !added) return added.error();
  const auto maps =
      std::count_if(normalizer.steps_.begin(), normalizer.steps_.end(),
                    [](const Step& step) { return std::holds_alternative<ByteLevel>(step); });
  if (maps > 1) return Unsupported(std::string(place) + " has more than one ByteLevel");
  return normalizer;
}

Result<void> Normalizer::Add(const nlohmann::json& component, std::string_view place, int depth) {
  if (Result<void> object = ExpectObject(component, place); !object) return object.error();
  Result<std::string> type = GetRequiredString(component, place, "type");
  if (!type) return type.error();
  if (depth > kMaxComponentDepth || steps_.size() >= kMaxComponentSteps) {
    return Unsupported(std::string(place) + " has too many or too deeply nested normalizers");
  }
  if (*type == "NFC") {
    steps_.emplace_back(NormalForm::kNfc);
  } else if (*type == "NFD") {
    steps_.emplace_back(NormalForm::kNfd);
  } else if (*type == "NFKC") {
    steps_.emplace_back(NormalForm::kNfkc);
  } else if (*type == "NFKD") {
    steps_.emplace_back(NormalForm::kNfkd);
  } else if (*type == "Lowercase") {
    steps_.emplace_back(Lower{});
  } else if (*type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{});
  } else if (*type == "Strip") {
    Result<bool> left = GetBool(component, place, "strip_left", true);
    if (!left) return left.error();
    Result<bool> right = GetBool(component, place, "strip_right", true);
    if (!right) return right.error();
    steps_.emplace_back(Strip{*left, *right});
  } else if (*type == "Prepend") {
    Result<std::string> text = GetRequiredString(component, place, "prepend");
    if (!text) return text.error();
    if (text->size() > 1024) {
      return Unsupported(std::string(place) + ".prepend is longer than 1024 bytes");
    }
    steps_.emplace_back(Prepend{std::move(*text)});
  } else if (*type == "Replace") {
    Result<Replacer> replacer = Replacer::FromJson(component, place);
    if (!replacer) return replacer.error();
    steps_.emplace_back(std::move(*replacer));
  } else if (*type == "Sequence") {
    Result<const nlohmann::json*> parts = GetRequiredArray(component, place, "normalizers");
    if (!parts) return parts.error();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      Result<void> added = Add((**parts)[i], Indexed(place, "normalizers", i), depth + 1);
      if (!added) return added.error();
    }
  } else {
    return Unsupported(std::string(place) + ": the normalizer \"" + *type + "\" is not supported");
  }
  return {};
}

std::string Normalizer::Apply(std::string_view text, RegexScratch* scratch) const {
  // Every step may grow its text by a constant factor; together they may not.
  const size_t limit = 64 * 1024 + 16 * text.size();
  std::string current(text);
  for (const Step& step : steps_) {
    if (current.size() > limit) break;
    if (const auto* form = std::get_if<NormalForm>(&step)) {
      current = Normalize(current, *form);
    } else if (std::holds_alternative<Lower>(step)) {
      current = Lowercase(current);
    } else if (std::holds_alternative<ByteLevel>(step)) {
      std::string mapped;
      AppendByteLevel(current, &mapped);
      current = std::move(mapped);
    } else if (const auto* strip = std::get_if<Strip>(&step)) {
      std::string_view kept = current;
      if (strip->left) kept = StripLeft(kept);
      if (strip->right) kept = StripRight(kept);
      current = std::string(kept);
    } else if (const auto* prepend = std::get_if<Prepend>(&step)) {
      if (!current.empty()) current.insert(0, prepend->text);
    } else {
      current = std::get<Replacer>(step).Apply(current, 16 * limit, scratch);
    }
  }
  return current;
}

}  // namespace sluice::text
