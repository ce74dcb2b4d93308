// JSON of request bodies: untrusted, so bounded before anything recursive or quadratic sees it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "server/openai/error.h"

namespace sluice::openai {

// Keeps the order of keys: chat templates print messages as the client wrote them.
using Json = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;
inline constexpr int kMaxObjectMembers = 1024;  // lookups in ordered_json are linear

// Parses a body that must be one JSON object. Refuses (400) what is not JSON, not an object, not
// valid UTF-8, nested deeper than kMaxJsonDepth or wider than kMaxObjectMembers. Of duplicate keys
// the last one counts, as in Python's json.
Parsed<Json> ParseBody(std::string_view body);

// Serializes on one line; bytes that are not UTF-8 become U+FFFD.
std::string Dump(const Json& value);

}  // namespace sluice::openai
