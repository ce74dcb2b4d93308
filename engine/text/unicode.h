// Character classes, normal forms and lower case, exactly as the Python `tokenizers` library (0.23)
// sees them. That library mixes four sources of Unicode data of different ages; where a class below
// departs from the current standard, it is because theirs does. Base data: utf8proc, topped up
// with the characters that Unicode 15 to 16 added (older systems' libraries lack them).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sluice::text {

struct CodePointRange {
  char32_t first;
  char32_t last;
  char category[3];  // "Lo"
};

// Characters of Unicode 15 to 16 with their general categories, ascending. Regular expressions add
// them to \p{...} (regex_syntax.cc), because PCRE2 may be older than they are.
std::span<const CodePointRange> NewerCharacters();

bool IsWhitespace(char32_t c);   // property White_Space, as Rust's char::is_whitespace
bool IsNumeric(char32_t c);      // category N, as Rust's char::is_numeric
bool IsPunctuation(char32_t c);  // ASCII punctuation and category P as of Unicode 8
bool IsWord(char32_t c);         // \w of Rust's regex crate

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode normalization with the data of Unicode 9, in O(n log n) whatever the input (a run of many
// combining marks too). REQUIRES: valid UTF-8.
std::string Normalize(std::string_view text, NormalForm form);

// Character by character, without context, as Rust's char::to_lowercase. REQUIRES: valid UTF-8.
std::string Lowercase(std::string_view text);

}  // namespace sluice::text
