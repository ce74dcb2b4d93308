#include "engine/text/template/lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <iterator>

#include "engine/text/template/unicode.h"
#include "engine/text/template/value.h"

namespace sluice::jinja {
namespace {

// Longest first.
constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

[[noreturn]] void FailAt(int line, std::string message) {
  throw RenderError{ErrorCode::kInvalidArgument, std::move(message), line};
}

bool IsDigitByte(char c) { return c >= '0' && c <= '9'; }

// CR LF and CR become LF, and one newline at the end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

// The value of a string literal's inside: Python's unicode-escape after ASCII backslashreplace.
std::string Unescape(std::string_view text, int line) {
  std::string out;
  const auto hex = [&](size_t at, size_t digits) -> char32_t {
    char32_t value = 0;
    for (size_t i = at; i < at + digits; ++i) {
      const char c = i < text.size() ? text[i] : '?';
      const int digit = IsDigitByte(c)         ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) FailAt(line, "a string literal has a truncated escape");
      value = value << 4 | static_cast<char32_t>(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      FailAt(line, "a string literal has an escape that is not a Unicode character");
    }
    return value;
  };
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '\\') {
      out.push_back(text[i++]);
      continue;
    }
    const char c = i + 1 < text.size() ? text[i + 1] : '\0';
    i += 2;
    switch (c) {
      case '\n':
        break;
      case '\\':
      case '\'':
      case '"':
        out.push_back(c);
        break;
      case 'a':
        out.push_back('\a');
        break;
      case 'b':
        out.push_back('\b');
        break;
      case 'f':
        out.push_back('\f');
        break;
      case 'n':
        out.push_back('\n');
        break;
      case 'r':
        out.push_back('\r');
        break;
      case 't':
        out.push_back('\t');
        break;
      case 'v':
        out.push_back('\v');
        break;
      case 'x':
        AppendUtf8(hex(i, 2), &out);
        i += 2;
        break;
      case 'u':
        AppendUtf8(hex(i, 4), &out);
        i += 4;
        break;
      case 'U':
        AppendUtf8(hex(i, 8), &out);
        i += 8;
        break;
      case 'N':
        FailAt(line, "\\N{...} escapes are not supported");
      default:
        if (c >= '0' && c <= '7') {
          char32_t value = static_cast<char32_t>(c - '0');
          for (int k = 0; k < 2 && i < text.size() && text[i] >= '0' && text[i] <= '7'; ++k) {
            value = value * 8 + static_cast<char32_t>(text[i++] - '0');
          }
          AppendUtf8(value, &out);
        } else if (static_cast<unsigned char>(c) >= 0x80) {
          // Python escapes the character first, and the backslash then escapes that escape.
          --i;
          const char32_t code = DecodeNext(text, &i);
          char buffer[16];
          std::snprintf(buffer, sizeof(buffer),
                        code < 0x100     ? "x%02x"
                        : code < 0x10000 ? "u%04x"
                                         : "U%08x",
                        static_cast<unsigned>(code));
          out.push_back('\\');
          out += buffer;
        } else {
          out.push_back('\\');
          out.push_back(c);
        }
    }
  }
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(NormalizeNewlines(source)), source_(text_) {}

  std::vector<Token> Run() {
    while (pos_ < source_.size()) Root();
    Push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Push(TokenKind kind, std::string_view text) {
    tokens_.push_back(Token{kind, line_, std::string(text)});
  }

  void PushData(std::string_view text) {
    if (!text.empty()) Push(TokenKind::kData, text);
  }

  // Moves to `end`, counting lines.
  void Advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    line_starting_ = end > pos_ ? source_[end - 1] == '\n' : line_starting_;
    pos_ = end;
  }

  bool At(size_t pos, std::string_view text) const { return source_.substr(pos).starts_with(text); }

  size_t SkipSpace(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      if (!IsSpace(DecodeNext(source_, &next))) break;
      pos = next;
    }
    return pos;
  }

  // The text before a tag after whitespace control; `sign` is the character after the tag's
  // opening.
  std::string_view Stripped(std::string_view text, char sign, bool variable) const {
    if (sign == '-') return StripSpace(text, false, true);
    if (sign == '+' || variable) return text;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    if (line == 0 && !line_starting_) return text;
    return StripSpace(text.substr(line), true, false).empty() ? text.substr(0, line) : text;
  }

  // End of a closing tag at `pos`, or 0: "-%}" eats whitespace, "+%}" nothing, "%}" one newline.
  size_t CloseTag(size_t pos, std::string_view close) const {
    if (At(pos, "+") && At(pos + 1, close)) return pos + 1 + close.size();
    if (At(pos, "-") && At(pos + 1, close)) return SkipSpace(pos + 1 + close.size());
    if (!At(pos, close)) return 0;
    pos += close.size();
    return At(pos, "\n") ? pos + 1 : pos;
  }

  // When a raw tag opens at `pos`, the end of it; else 0.
  size_t RawTag(size_t pos) const {
    size_t at = pos + 2;
    if (At(at, "-") || At(at, "+")) ++at;
    at = SkipSpace(at);
    if (!At(at, "raw")) return 0;
    at = SkipSpace(at + 3);
    if (At(at, "-%}")) return SkipSpace(at + 3);
    return At(at, "%}") ? at + 2 : 0;
  }

  void Root() {
    size_t open = pos_;
    for (;; ++open) {
      open = source_.find('{', open);
      if (open == std::string_view::npos || open + 1 >= source_.size()) {
        open = std::string_view::npos;
        break;
      }
      if (std::string_view("{%#").find(source_[open + 1]) != std::string_view::npos) break;
    }
    if (open == std::string_view::npos) {
      PushData(source_.substr(pos_));
      return Advance(source_.size());
    }
    const char type = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    PushData(Stripped(source_.substr(pos_, open - pos_), sign, type == '{'));
    Advance(open);
    const size_t raw_end = type == '%' ? RawTag(open) : 0;
    if (raw_end != 0) {
      Advance(raw_end);
      return Raw();
    }
    const size_t inside = open + (sign == '-' || sign == '+' ? 3 : 2);
    if (type == '#') return Comment(inside);
    Push(type == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin,
         type == '{' ? "{{" : "{%");
    Advance(inside);
    Code(type == '{');
  }

  void Comment(size_t pos) {
    const int line = line_;
    Advance(pos);
    if (pos >= source_.size()) return;
    for (;; ++pos) {
      pos = source_.find('#', pos);
      if (pos == std::string_view::npos) FailAt(line, "expected '#}' to end a comment");
      if (!At(pos, "#}")) continue;
      const bool signed_close = pos > pos_ && (source_[pos - 1] == '-' || source_[pos - 1] == '+');
      return Advance(CloseTag(signed_close ? pos - 1 : pos, "#}"));
    }
  }

  void Raw() {
    const int line = line_;
    if (pos_ >= source_.size()) return;
    for (size_t open = pos_;; ++open) {
      open = source_.find("{%", open);
      if (open == std::string_view::npos) FailAt(line, "expected '{% endraw %}'");
      size_t at = open + 2;
      const char sign = at < source_.size() ? source_[at] : '\0';
      if (sign == '-' || sign == '+') ++at;
      at = SkipSpace(at);
      if (!At(at, "endraw")) continue;
      const size_t end = CloseTag(SkipSpace(at + 6), "%}");
      if (end == 0) continue;
      PushData(Stripped(source_.substr(pos_, open - pos_), sign, false));
      return Advance(end);
    }
  }

  // Inside {{ }} or {% %}.
  void Code(bool variable) {
    std::string open_brackets;
    while (pos_ < source_.size()) {
      if (open_brackets.empty()) {
        const size_t end = variable ? CloseVariable() : CloseTag(pos_, "%}");
        if (end != 0) {
          Push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, variable ? "}}" : "%}");
          return Advance(end);
        }
      }
      const size_t after_space = SkipSpace(pos_);
      if (after_space != pos_) {
        Advance(after_space);
        continue;
      }
      if (Number() || Name() || String()) continue;
      Operator(&open_brackets);
    }
  }

  size_t CloseVariable() const {
    if (At(pos_, "-}}")) return SkipSpace(pos_ + 3);
    return At(pos_, "}}") ? pos_ + 2 : 0;
  }

  // End of (\d+_)*\d+ at `pos`, or `pos`.
  size_t Digits(size_t pos) const {
    size_t end = pos;
    while (pos < source_.size() && IsDigitByte(source_[pos])) {
      while (pos < source_.size() && IsDigitByte(source_[pos])) ++pos;
      end = pos;
      if (pos < source_.size() && source_[pos] == '_') ++pos;
    }
    return end;
  }

  bool Number() {
    if (!IsDigitByte(source_[pos_])) return false;
    const size_t whole = Digits(pos_);
    size_t end = whole;
    if (pos_ == 0 || source_[pos_ - 1] != '.') {
      if (At(end, ".") && Digits(end + 1) > end + 1) end = Digits(end + 1);
      if (At(end, "e") || At(end, "E")) {
        const size_t exponent = end + 1 + (At(end + 1, "+") || At(end + 1, "-") ? 1 : 0);
        if (Digits(exponent) > exponent) end = Digits(exponent);
      }
    }
    if (end > whole) {
      std::string text(source_.substr(pos_, end - pos_));
      std::erase(text, '_');
      Push(TokenKind::kFloat, text);
      tokens_.back().real = std::strtod(text.c_str(), nullptr);
      Advance(end);
      return true;
    }
    int base = 10;
    size_t start = pos_;
    const auto digit_of_base = [&](char c) {
      const int digit = IsDigitByte(c)         ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : 99;
      return digit < base;
    };
    if (source_[pos_] == '0') {
      const char letter = pos_ + 1 < source_.size() ? source_[pos_ + 1] : '\0';
      base = letter == 'x' || letter == 'X'   ? 16
             : letter == 'o' || letter == 'O' ? 8
             : letter == 'b' || letter == 'B' ? 2
                                              : 1;
      start = base == 1 ? pos_ : pos_ + 2;
    }
    end = start;
    while (end < source_.size()) {
      const size_t digit = end + (source_[end] == '_' && (end > start || base != 10) ? 1 : 0);
      if (digit >= source_.size() || !digit_of_base(source_[digit])) break;
      end = digit + 1;
    }
    if (end == start) {
      // "0x" without digits is the number 0 and then a name.
      base = 1;
      start = pos_;
      end = pos_ + 1;
    }
    std::string text(source_.substr(start, end - start));
    std::erase(text, '_');
    Token token{TokenKind::kInteger, line_, text};
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), token.integer,
                                        base == 1 ? 10 : base);
    if (parsed.ec != std::errc()) FailAt(line_, "the integer " + text + " does not fit 64 bits");
    tokens_.push_back(std::move(token));
    Advance(end);
    return true;
  }

  bool Name() {
    size_t end = pos_;
    if (!IsNameStart(DecodeNext(source_, &end))) return false;
    while (end < source_.size()) {
      size_t next = end;
      if (!IsNameContinue(DecodeNext(source_, &next))) break;
      end = next;
    }
    Push(TokenKind::kName, source_.substr(pos_, end - pos_));
    Advance(end);
    return true;
  }

  bool String() {
    const char quote = source_[pos_];
    if (quote != '\'' && quote != '"') return false;
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) FailAt(line_, "a string literal is not closed");
    Push(TokenKind::kString, Unescape(source_.substr(pos_ + 1, end - pos_ - 1), line_));
    Advance(end + 1);
    return true;
  }

  void Operator(std::string* open_brackets) {
    const auto* const found =
        std::find_if(std::begin(kOperators), std::end(kOperators),
                     [this](std::string_view symbol) { return At(pos_, symbol); });
    if (found == std::end(kOperators)) {
      size_t end = pos_;
      DecodeNext(source_, &end);
      FailAt(line_, "unexpected character " + ReprString(source_.substr(pos_, end - pos_)));
    }
    const char c = (*found)[0];
    if (c == '{' || c == '(' || c == '[') {
      open_brackets->push_back(c == '{' ? '}' : c == '(' ? ')' : ']');
    } else if (c == '}' || c == ')' || c == ']') {
      if (open_brackets->empty()) FailAt(line_, std::string("unexpected '") + c + "'");
      if (open_brackets->back() != c) {
        FailAt(line_,
               std::string("unexpected '") + c + "', expected '" + open_brackets->back() + "'");
      }
      open_brackets->pop_back();
    }
    Push(TokenKind::kOperator, *found);
    Advance(pos_ + found->size());
  }

  const std::string text_;
  const std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string DescribeToken(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "end of template";
    case TokenKind::kData:
      return "template text";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kInteger:
      return "an integer";
    case TokenKind::kFloat:
      return "a float";
    default:
      return "'" + token.text + "'";
  }
}

std::vector<Token> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace sluice::jinja
