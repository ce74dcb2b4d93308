// A compiled pattern of tokenizer.json: Oniguruma's syntax and search order, run by PCRE2.
//
// Limits, so that no pattern and no text can hang the caller: a pattern has at most 64 KiB and
// compiles to at most what PCRE2's 16-bit links allow; one match attempt makes at most
// kMatchLimit steps and uses at most kHeapLimitKib of heap. A search that meets a limit stops:
// FindAll returns where, and callers leave the text from there on unsplit and unchanged. After
// kMaxFailures of them, searches with the same scratch give up at once.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace sluice::text {

struct TextSpan {
  size_t begin;
  size_t end;
};

// Working memory of searches; one per thread and call, reused from search to search.
class RegexScratch {
 public:
  RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;
  ~RegexScratch();

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

// Immutable; searches from any thread, each with its own scratch.
class Regex {
 public:
  static constexpr unsigned kMatchLimit = 2'000'000;
  static constexpr unsigned kHeapLimitKib = 64 * 1024;
  static constexpr int kMaxFailures = 8;

  // The error says what is wrong with the pattern; the caller adds where the pattern stands.
  static Result<Regex> Compile(std::string_view oniguruma_pattern);
  static Result<Regex> CompileLiteral(std::string_view text);

  // Replaces *matches with the successive leftmost matches in `text`. An empty match right behind
  // the previous match does not count. Returns text.size(), or less when a limit was met: then
  // nothing from the returned position on was searched.
  // REQUIRES: `text` is valid UTF-8.
  size_t FindAll(std::string_view text, RegexScratch* scratch,
                 std::vector<TextSpan>* matches) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static Result<Regex> CompileTranslated(std::string_view pattern);

  std::shared_ptr<const Code> code_;
};

}  // namespace sluice::text
