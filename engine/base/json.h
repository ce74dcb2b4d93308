// JSON from files that nobody vouches for: bounded depth, bounded size, no duplicate keys.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "engine/base/result.h"

namespace sluice {

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  size_t max_values = size_t{4} << 20;  // objects, arrays, scalars and keys together
  int max_depth = 64;                   // of nested objects and arrays
};

// Parses one JSON text (RFC 8259; comments and trailing commas are errors). `what` names the text
// in errors ("config.json"). A failure says where in the text it is and what is wrong.
Result<nlohmann::json> ParseJson(std::string_view text, std::string_view what,
                                 const JsonLimits& limits = {});

}  // namespace sluice
