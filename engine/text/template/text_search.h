// Searching and splitting of text in linear time whatever the pattern (Knuth, Morris and Pratt for
// long needles), in steps of the Runtime.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/template/value.h"

namespace sluice::jinja {

constexpr size_t kNotFound = static_cast<size_t>(-1);

// Byte offset of the first (or last) occurrence at or after `from`, or kNotFound.
size_t FindText(Runtime& rt, std::string_view text, std::string_view needle, size_t from = 0);
size_t FindLastText(Runtime& rt, std::string_view text, std::string_view needle);

// str.replace; count < 0 replaces all.
std::string ReplaceText(Runtime& rt, std::string_view text, std::string_view from,
                        std::string_view to, int64_t count);

// str.split and str.rsplit as a list; no separator splits at runs of whitespace.
Value SplitText(Runtime& rt, const Value& text, const Value& separator, int64_t limit,
                bool from_right);

}  // namespace sluice::jinja
