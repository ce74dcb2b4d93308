#include "engine/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "engine/text/regex_syntax.h"

namespace sluice::text {
namespace {

constexpr size_t kMaxPatternBytes = 64 * 1024;
constexpr size_t kJitStackStartBytes = 32 * 1024;
constexpr size_t kJitStackMaxBytes = 1024 * 1024;

struct ContextDeleter {
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};

}  // namespace

struct Regex::Code {
  explicit Code(pcre2_code* c) : code(c) {}
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  pcre2_code* code;
};

struct RegexScratch::State {
  State()
      : data(pcre2_match_data_create(1, nullptr)), context(pcre2_match_context_create(nullptr)) {
    SLUICE_CHECK(data != nullptr && context != nullptr, "out of memory");
    pcre2_set_match_limit(context, Regex::kMatchLimit);
    pcre2_set_heap_limit(context, Regex::kHeapLimitKib);
  }
  ~State() {
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_jit_stack_free(jit_stack);
  }

  pcre2_match_data* data;
  pcre2_match_context* context;
  int failures = 0;                      // searches that met a limit
  pcre2_jit_stack* jit_stack = nullptr;  // made when a match first outgrows the built-in 32 KiB
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {}
RegexScratch::~RegexScratch() = default;

Result<Regex> Regex::Compile(std::string_view oniguruma_pattern) {
  if (oniguruma_pattern.size() > kMaxPatternBytes) {
    return Unsupported("the regular expression is longer than " + std::to_string(kMaxPatternBytes) +
                       " bytes");
  }
  Result<std::string> translated = TranslateOniguruma(oniguruma_pattern);
  if (!translated) return translated.error();
  return CompileTranslated(*translated);
}

Result<Regex> Regex::CompileLiteral(std::string_view text) {
  if (text.size() > kMaxPatternBytes / 8) return Unsupported("the text to search is too long");
  return CompileTranslated(EscapeForRegex(text));
}

Result<Regex> Regex::CompileTranslated(std::string_view pattern) {
  const std::unique_ptr<pcre2_compile_context, ContextDeleter> context(
      pcre2_compile_context_create(nullptr));
  SLUICE_CHECK(context != nullptr, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &offset, context.get());
  if (code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof message);
    return InvalidArgument("the regular expression does not compile: " +
                           std::string(reinterpret_cast<const char*>(message)));
  }
  // Without a JIT (not built in, or no executable memory allowed) the interpreter runs instead.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return Regex(std::make_shared<const Code>(code));
}

size_t Regex::FindAll(std::string_view text, RegexScratch* scratch,
                      std::vector<TextSpan>* matches) const {
  matches->clear();
  RegexScratch::State& state = *scratch->state_;
  if (state.failures >= kMaxFailures) return 0;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(state.data);
  size_t from = 0;
  size_t last_end = static_cast<size_t>(-1);
  while (from <= text.size()) {
    constexpr uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc =
        pcre2_match(code_->code, subject, text.size(), from, options, state.data, state.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && state.jit_stack == nullptr) {
      state.jit_stack = pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr);
      if (state.jit_stack != nullptr) {
        pcre2_jit_stack_assign(state.context, nullptr, state.jit_stack);
        rc = pcre2_match(code_->code, subject, text.size(), from, options, state.data,
                         state.context);
      }
    }
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      // The interpreter keeps its stack on the heap, up to the heap limit.
      rc = pcre2_match(code_->code, subject, text.size(), from, options | PCRE2_NO_JIT, state.data,
                       state.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return text.size();
    if (rc < 0) {
      ++state.failures;
      return from;
    }
    const size_t begin = offsets[0], end = offsets[1];
    // Lookarounds may not move a match backwards; \K, which could, is refused.
    SLUICE_CHECK(begin <= end && end <= text.size() && begin >= from);
    if (begin == end && end == last_end) {
      if (from == text.size()) break;
      NextCodePoint(text, &from);
      continue;
    }
    matches->push_back({begin, end});
    from = last_end = end;
  }
  return text.size();
}

}  // namespace sluice::text
