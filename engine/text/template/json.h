// Values from and to JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "engine/text/template/value.h"

namespace sluice::jinja {

// Throws for text that is not UTF-8, integers past 64 bits and nesting past the Runtime's depth.
Value FromJson(Runtime& rt, const nlohmann::ordered_json& json);

// Python's json.dumps arguments, as the tojson filter of transformers takes them.
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool pretty = false;  // an indent was given
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
std::string ToJson(Runtime& rt, const Value& v, const JsonStyle& style);

}  // namespace sluice::jinja
