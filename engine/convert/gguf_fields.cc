#include "engine/convert/gguf_fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>
#include <variant>
#include <vector>

#include "engine/base/utf8.h"

namespace sluice {
namespace {

template <class T>
std::optional<int64_t> AsInt(T number) {
  if (std::cmp_greater(number, INT64_MAX)) return std::nullopt;
  return static_cast<int64_t>(number);
}

// The whole number that a value is, or that all its elements are.
std::optional<int64_t> OneInt(const GgufValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(&value)) return AsInt(*number);
  const auto same = [](const auto& list) -> std::optional<int64_t> {
    if (list.empty() || std::any_of(list.begin(), list.end(),
                                    [&](const auto& element) { return element != list[0]; })) {
      return std::nullopt;
    }
    return AsInt(list[0]);
  };
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return same(*list);
  if (const auto* list = std::get_if<std::vector<uint64_t>>(&value)) return same(*list);
  return std::nullopt;
}

double ShortestOfFloat(double number) {
  const auto narrow = static_cast<float>(number);
  if (static_cast<double>(narrow) != number) return number;
  char text[64];
  const auto written = std::to_chars(text, text + sizeof(text), narrow);
  double result = number;
  std::from_chars(text, written.ptr, result);
  return result;
}

}  // namespace

void GgufFields::Fail(Error error) {
  if (!error_) error_ = std::move(error);
}

void GgufFields::Refuse(std::string what) {
  Fail(Unsupported(reader_.path().string() + ": " + std::move(what)));
}

int64_t GgufFields::Int(std::string_view key, std::optional<int64_t> fallback, int64_t low,
                        int64_t high) {
  const int64_t otherwise = fallback.value_or(low);
  const GgufValue* value = reader_.FindMetadata(key);
  const std::string where = reader_.path().string() + ": " + std::string(key);
  if (value == nullptr) {
    if (!fallback) Fail(NotFound(where + " is missing"));
    return otherwise;
  }
  const std::optional<int64_t> number = OneInt(*value);
  if (!number) {
    Fail(Corrupt(where + " is not one whole number"));
    return otherwise;
  }
  if (*number < low || *number > high) {
    Fail(Corrupt(where + " is " + std::to_string(*number) + "; it must be between " +
                 std::to_string(low) + " and " + std::to_string(high)));
    return otherwise;
  }
  return *number;
}

double GgufFields::Number(std::string_view key, std::optional<double> fallback) {
  const GgufValue* value = reader_.FindMetadata(key);
  const std::string where = reader_.path().string() + ": " + std::string(key);
  if (value == nullptr) {
    if (!fallback) Fail(NotFound(where + " is missing"));
    return fallback.value_or(0.0);
  }
  const auto* number = std::get_if<double>(value);
  if (number == nullptr || !std::isfinite(*number)) {
    Fail(Corrupt(where + " is not a finite floating-point number"));
    return fallback.value_or(0.0);
  }
  return ShortestOfFloat(*number);
}

bool GgufFields::Bool(std::string_view key, bool fallback) {
  if (!Has(key)) return fallback;
  const Result<bool> value = reader_.GetBool(key);
  if (!value) Fail(value.error());
  return value ? *value : fallback;
}

std::string GgufFields::Text(std::string_view key) {
  if (!Has(key)) return "";
  Result<std::string> value = reader_.GetString(key);
  if (!value) {
    Fail(value.error());
    return "";
  }
  if (!IsValidUtf8(*value)) {
    Fail(Corrupt(reader_.path().string() + ": " + std::string(key) + " is not valid UTF-8"));
    return "";
  }
  return std::move(*value);
}

std::optional<int64_t> GgufFields::TokenId(std::string_view key, int64_t tokens) {
  const GgufValue* value = reader_.FindMetadata(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> id = OneInt(*value);
  if (id && (*id == -1 || *id == UINT32_MAX)) return std::nullopt;
  if (!id || *id < 0 || *id >= tokens) {
    Fail(Corrupt(reader_.path().string() + ": " + std::string(key) +
                 " is not the id of one of the " + std::to_string(tokens) + " tokens"));
    return std::nullopt;
  }
  return id;
}

}  // namespace sluice
