#include "engine/text/json_fields.h"

#include <nlohmann/json.hpp>

#include "engine/base/utf8.h"

namespace sluice::text {
namespace {

Error WrongType(std::string_view place, const char* name, const char* wanted) {
  return Corrupt(std::string(place) + "." + name + " must be " + wanted);
}

}  // namespace

const nlohmann::json* FindMember(const nlohmann::json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(name);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

Result<void> ExpectObject(const nlohmann::json& value, std::string_view place) {
  if (!value.is_object()) return Corrupt(std::string(place) + " must be an object");
  return {};
}

Result<bool> GetBool(const nlohmann::json& object, std::string_view place, const char* name,
                     bool fallback) {
  const nlohmann::json* member = FindMember(object, name);
  if (member == nullptr) return fallback;
  if (!member->is_boolean()) return WrongType(place, name, "true or false");
  return member->get<bool>();
}

Result<std::optional<std::string>> GetString(const nlohmann::json& object, std::string_view place,
                                             const char* name) {
  const nlohmann::json* member = FindMember(object, name);
  if (member == nullptr) return std::optional<std::string>();
  if (!member->is_string()) return WrongType(place, name, "a string");
  return std::optional<std::string>(member->get_ref<const std::string&>());
}

Result<std::string> GetRequiredString(const nlohmann::json& object, std::string_view place,
                                      const char* name) {
  Result<std::optional<std::string>> value = GetString(object, place, name);
  if (!value) return value.error();
  if (!*value) return WrongType(place, name, "a string (it is missing)");
  return std::move(**value);
}

Result<int64_t> GetRequiredInt(const nlohmann::json& object, std::string_view place,
                               const char* name, int64_t low, int64_t high) {
  const nlohmann::json* member = FindMember(object, name);
  if (member != nullptr && member->is_number_integer()) {
    const bool too_large =
        member->is_number_unsigned() && member->get<uint64_t>() > static_cast<uint64_t>(high);
    if (!too_large) {
      const auto value = member->get<int64_t>();
      if (value >= low && value <= high) return value;
    }
  }
  const std::string wanted =
      "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  return WrongType(place, name, wanted.c_str());
}

Result<std::string> GetRequiredCharacter(const nlohmann::json& object, std::string_view place,
                                         const char* name) {
  Result<std::string> value = GetRequiredString(object, place, name);
  if (!value) return value.error();
  if (CountCharacters(*value) != 1) return WrongType(place, name, "one character");
  return value;
}

Result<const nlohmann::json*> GetRequiredArray(const nlohmann::json& object, std::string_view place,
                                               const char* name) {
  const nlohmann::json* member = FindMember(object, name);
  if (member == nullptr || !member->is_array()) return WrongType(place, name, "an array");
  return member;
}

std::string Indexed(std::string_view place, const char* name, size_t index) {
  return std::string(place) + "." + name + "[" + std::to_string(index) + "]";
}

}  // namespace sluice::text
