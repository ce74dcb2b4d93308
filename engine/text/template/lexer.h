// Template source to tokens, as Jinja2's lexer with trim_blocks and lstrip_blocks on and
// keep_trailing_newline off: whitespace control, raw blocks and comments end here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::jinja {

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;  // data, name, unescaped string, or operator
  int64_t integer = 0;
  double real = 0;
};

// For messages: "'name'", "'}}'", "end of template".
std::string DescribeToken(const Token& token);

// The tokens of `source`, the last of kind kEnd. Throws RenderError with a line.
// REQUIRES: valid UTF-8.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace sluice::jinja
