// The regular expressions in tokenizer.json are written for Oniguruma (Ruby syntax), which the
// Python `tokenizers` library uses. This rewrites one to the PCRE2 pattern that matches the same
// text. What differs: `$` and `^` work on lines; \h is a hexadecimal digit and \v one character;
// \s and \w have other members; {n,m}+ is not possessive and {n}? not lazy; [a[bc]] is a union;
// properties have long names, and scripts do not include script extensions.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace sluice::text {

// Meant for PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE with newline LF. kUnsupported for what has no
// counterpart here (set intersection, \K, absent operator, verbs, extended mode, calls); syntax
// errors that PCRE2 will report anyway may pass. REQUIRES: valid UTF-8.
Result<std::string> TranslateOniguruma(std::string_view pattern);

// `text` as a pattern that matches just itself.
std::string EscapeForRegex(std::string_view text);

}  // namespace sluice::text
