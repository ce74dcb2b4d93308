// UTF-8: checking, repairing and walking. "Valid" means RFC 3629: no overlong forms, no surrogates,
// nothing past U+10FFFF. Invalid input is repaired as the Unicode standard recommends (section 3.9,
// "maximal subparts") and as Python's errors="replace" and Rust's from_utf8_lossy do: each maximal
// piece of an ill-formed sequence becomes one U+FFFD.
//
// All functions are pure; none allocates unless it returns or appends to a string.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace sluice {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

// What stands at one position of a byte string.
struct Utf8Step {
  enum class Kind {
    kCharacter,   // a whole character of `length` bytes
    kInvalid,     // `length` bytes (1..3) that no continuation can make valid
    kIncomplete,  // the text ends inside a character: its last `length` bytes (1..3) may begin one
  };
  Kind kind;
  size_t length;
};

// REQUIRES: position < bytes.size().
Utf8Step ReadUtf8(std::string_view bytes, size_t position);

bool IsValidUtf8(std::string_view bytes);

// `bytes` with every ill-formed piece, also one cut off at the end, replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view bytes);

// Streaming form: appends the repaired text of `bytes` to `out`, except that an incomplete
// character at the very end is left alone. Returns how many bytes were used; the caller puts the
// rest (0..3 bytes) in front of its next piece.
size_t AppendRepairedUtf8(std::string_view bytes, std::string* out);

// Number of bytes (0..3) at the end of `bytes` that begin a character without finishing it.
size_t IncompleteUtf8Suffix(std::string_view bytes);

// The character at `position`, which is moved behind it.
// REQUIRES: `text` is valid UTF-8 and `position` is at the start of a character.
char32_t NextCodePoint(std::string_view text, size_t* position);

// The start of the character that ends at `end`. REQUIRES: valid UTF-8 and 0 < end <= text.size().
size_t PreviousCharacter(std::string_view text, size_t end);

// REQUIRES: a scalar value (not a surrogate, at most U+10FFFF).
void AppendUtf8(char32_t code_point, std::string* out);

// Number of characters. REQUIRES: valid UTF-8.
size_t CountCharacters(std::string_view text);

}  // namespace sluice
