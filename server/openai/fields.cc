#include "server/openai/fields.h"

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

namespace sluice::openai {
namespace {

std::string Quote(std::string_view name) { return "`" + std::string(name) + "`"; }

}  // namespace

std::string PlainNumber(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 6);
  return std::string(text, end.ptr);
}

Fields::Fields(const Json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

const Json* Fields::Find(std::string_view name) const {
  const auto it = object_.find(std::string(name));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void Fields::Fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

void Fields::Fail(std::string_view name, std::string message) {
  Fail(BadRequest(prefix_ + std::string(name), std::move(message)));
}

double Fields::Number(std::string_view name, double fallback, double min, double max) {
  const Json* value = Find(name);
  if (!value || failed()) return fallback;
  const double number =
      value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= min && number <= max)) {
    Fail(name, Quote(prefix_ + std::string(name)) + " must be a number from " + PlainNumber(min) +
                   " to " + PlainNumber(max) + ".");
    return fallback;
  }
  return number;
}

std::optional<int64_t> Fields::OptionalInteger(std::string_view name, int64_t min, int64_t max) {
  const Json* value = Find(name);
  if (!value || failed()) return std::nullopt;
  bool fits = value->is_number_integer();
  if (value->is_number_unsigned() &&
      value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fits = false;
  }
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    Fail(name, Quote(prefix_ + std::string(name)) + " must be an integer from " +
                   std::to_string(min) + " to " + std::to_string(max) + ".");
    return std::nullopt;
  }
  return value->get<int64_t>();
}

int64_t Fields::Integer(std::string_view name, int64_t fallback, int64_t min, int64_t max) {
  return OptionalInteger(name, min, max).value_or(fallback);
}

bool Fields::Boolean(std::string_view name, bool fallback) {
  const Json* value = Find(name);
  if (!value || failed()) return fallback;
  if (!value->is_boolean()) {
    Fail(name, Quote(prefix_ + std::string(name)) + " must be true or false.");
    return fallback;
  }
  return value->get<bool>();
}

std::string Fields::String(std::string_view name, std::string fallback) {
  const Json* value = Find(name);
  if (!value || failed()) return fallback;
  if (!value->is_string()) {
    Fail(name, Quote(prefix_ + std::string(name)) + " must be a string.");
    return fallback;
  }
  return value->get<std::string>();
}

std::vector<int32_t> Fields::TokenIds(std::string_view name, size_t max_count) {
  const Json* value = Find(name);
  std::vector<int32_t> ids;
  if (!value || failed()) return ids;
  if (!value->is_array() || value->size() > max_count || !ReadTokenIds(*value, &ids)) {
    Fail(name, Quote(prefix_ + std::string(name)) + " must be an array of at most " +
                   std::to_string(max_count) + " token ids.");
    ids.clear();
  }
  return ids;
}

bool ReadTokenIds(const Json& array, std::vector<int32_t>* ids) {
  ids->clear();
  ids->reserve(array.size());
  for (const Json& item : array) {
    if (!item.is_number_unsigned()) return false;
    const uint64_t id = item.get<uint64_t>();
    if (id > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) return false;
    ids->push_back(static_cast<int32_t>(id));
  }
  return true;
}

}  // namespace sluice::openai
