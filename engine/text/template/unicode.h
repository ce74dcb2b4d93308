// Python's view of text over UTF-8: code points, whitespace, character classes, case mapping.
// Every function that takes a string_view expects valid UTF-8 (engine/base/utf8.h, which also has
// what is not special to Python). Categories and simple case mappings are utf8proc's; the
// one-to-many mappings of Unicode's SpecialCasing.txt are tables here.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/utf8.h"

namespace sluice::jinja {

// The code point at byte `*pos`, which moves past it. REQUIRES: *pos < text.size().
char32_t DecodeNext(std::string_view text, size_t* pos);

// The byte offset of code point number `index`, or text.size() past the end.
size_t OffsetOf(std::string_view text, size_t index);

bool IsSpace(char32_t c);      // str.isspace, and \s of re
bool IsLineBreak(char32_t c);  // str.splitlines
bool IsAlpha(char32_t c);      // str.isalpha
bool IsDecimal(char32_t c);    // str.isdecimal
bool IsDigit(char32_t c);      // str.isdigit
bool IsNumeric(char32_t c);    // str.isnumeric
bool IsAlnum(char32_t c);      // str.isalnum
bool IsUpper(char32_t c);      // str.isupper, of one character
bool IsLower(char32_t c);      // str.islower
bool IsTitle(char32_t c);      // a titlecase letter
bool IsPrintable(char32_t c);  // str.isprintable; decides what repr escapes
bool IsNameStart(char32_t c);  // first character of an identifier
bool IsNameContinue(char32_t c);

std::string ToUpper(std::string_view text);     // str.upper
std::string ToLower(std::string_view text);     // str.lower
std::string ToTitle(std::string_view text);     // str.title
std::string Capitalize(std::string_view text);  // str.capitalize

// The part of `text` left after removing whitespace from the chosen ends.
std::string_view StripSpace(std::string_view text, bool left, bool right);

// str.splitlines. The views point into `text`.
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

// repr() of a Python string: quotes chosen as Python does, unprintable characters escaped.
std::string ReprString(std::string_view text);

}  // namespace sluice::jinja
