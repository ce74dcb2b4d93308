#include "server/openai/json.h"

#include <nlohmann/json.hpp>
#include <vector>

namespace sluice::openai {
namespace {

// A pass over the bytes that counts brackets and commas outside strings. It need not validate: the
// parser does that afterwards, on a text whose nesting and width are already bounded.
const char* BoundsViolation(std::string_view body) {
  struct Level {
    bool object;
    int commas;
  };
  std::vector<Level> levels;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        break;
      case '{':
      case '[':
        if (levels.size() == kMaxJsonDepth) return "it is nested too deeply (64 levels at most)";
        levels.push_back({c == '{', 0});
        break;
      case '}':
      case ']':
        if (!levels.empty()) levels.pop_back();
        break;
      case ',':
        if (!levels.empty() && levels.back().object &&
            ++levels.back().commas >= kMaxObjectMembers) {
          return "an object has too many members (1024 at most)";
        }
        break;
      default:
        break;
    }
  }
  return nullptr;
}

// nlohmann's message without its "[json.exception.parse_error.101] " prefix.
std::string Reason(const std::string& what) {
  const size_t end = what.find("] ");
  std::string reason = end == std::string::npos ? what : what.substr(end + 2);
  if (reason.size() > 300) reason.resize(300);
  return reason;
}

}  // namespace

Parsed<Json> ParseBody(std::string_view body) {
  if (const char* violation = BoundsViolation(body)) {
    return BadRequest({}, std::string("The body was refused: ") + violation + ".");
  }
  Json value;
  try {
    value = Json::parse(body);
  } catch (const nlohmann::json::exception& error) {
    return BadRequest({}, "The body is not valid JSON: " + Reason(error.what()));
  }
  if (!value.is_object()) {
    return BadRequest(
        {}, std::string("The body must be a JSON object, not ") + value.type_name() + ".");
  }
  return value;
}

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace sluice::openai
