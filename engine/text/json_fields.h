// Typed reads of JSON members with errors that say where: every function takes the object, its
// place ("tokenizer.json: pre_tokenizer.pretokenizers[1]") and the member's name.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace sluice::text {

// How deep Sequence components may nest, and how many steps all of one kind may have in total.
inline constexpr int kMaxComponentDepth = 8;
inline constexpr size_t kMaxComponentSteps = 32;

// Null when the member is absent or JSON null.
const nlohmann::json* FindMember(const nlohmann::json& object, const char* name);

// Fails unless `value` is an object.
Result<void> ExpectObject(const nlohmann::json& value, std::string_view place);

// Absent and null give `fallback`; another type is an error.
Result<bool> GetBool(const nlohmann::json& object, std::string_view place, const char* name,
                     bool fallback);
Result<std::optional<std::string>> GetString(const nlohmann::json& object, std::string_view place,
                                             const char* name);
// Required.
Result<std::string> GetRequiredString(const nlohmann::json& object, std::string_view place,
                                      const char* name);
Result<int64_t> GetRequiredInt(const nlohmann::json& object, std::string_view place,
                               const char* name, int64_t low, int64_t high);
// A required string that holds exactly one character.
Result<std::string> GetRequiredCharacter(const nlohmann::json& object, std::string_view place,
                                         const char* name);
// The required array of a Sequence component.
Result<const nlohmann::json*> GetRequiredArray(const nlohmann::json& object, std::string_view place,
                                               const char* name);

std::string Indexed(std::string_view place, const char* name, size_t index);

}  // namespace sluice::text
