// The `pre_tokenizer` of tokenizer.json: splits normalized text into the pieces ("words") that BPE
// works on. Supported: ByteLevel, Split (string or regular expression, all behaviors, invert),
// Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace and Sequence.
//
// A regular expression that meets its limits (regex.h) splits nothing behind that point: the rest
// of the piece is kept as one piece, whatever the behavior.
#pragma once

#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/regex.h"

namespace sluice::text {

struct Piece {
  std::string_view text;
  bool at_start;  // begins where the whole input begins (Metaspace's "first")
};

// Owns what one call of Apply needs; reusable, one per thread and call.
struct PreTokenizerScratch {
  RegexScratch regex;
  std::vector<TextSpan> matches;
  std::deque<std::string> rewritten;  // texts that pieces point into
};

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Immutable; any thread.
class PreTokenizer {
 public:
  PreTokenizer() = default;  // one piece

  static Result<PreTokenizer> FromJson(const nlohmann::json& component, std::string_view place);

  // When set, pieces are raw bytes and the caller maps them to the byte alphabet (byte_level.h):
  // a ByteLevel at the end is split off, because most pieces come from a cache and need no mapping.
  bool maps_bytes_at_end() const { return maps_bytes_at_end_; }
  // False when Apply always returns its input as one piece.
  bool splits() const { return !steps_.empty(); }

  // The non-empty pieces of `text`, in order; they point into `text` or into scratch->rewritten.
  // REQUIRES: valid UTF-8.
  std::vector<Piece> Apply(Piece text, PreTokenizerScratch* scratch) const;

 private:
  struct MatchSplit {  // Split, and the regular expression of ByteLevel
    std::optional<Regex> regex;
    std::string literal;
    SplitBehavior behavior;
    bool invert;
  };
  struct ClassSplit {  // splits at the characters of a class
    bool (*contains)(char32_t);
    SplitBehavior behavior;
  };
  struct Words {};    // Whitespace: \w+|[^\w\s]+
  struct ByteMap {};  // the byte alphabet
  struct AddPrefix {  // a leading space unless there is one
  };
  struct Metaspace {
    enum class Prepend { kAlways, kFirst, kNever };
    std::string replacement;
    Prepend prepend;
    bool split;
  };
  using Step = std::variant<MatchSplit, ClassSplit, Words, ByteMap, AddPrefix, Metaspace>;

  Result<void> Add(const nlohmann::json& component, std::string_view place, int depth);
  Result<void> AddSplit(const nlohmann::json& component, std::string_view place);
  Result<void> AddByteLevel(const nlohmann::json& component, std::string_view place);
  Result<void> AddMetaspace(const nlohmann::json& component, std::string_view place);
  static void Run(const Step& step, const Piece& piece, PreTokenizerScratch* scratch,
                  std::vector<Piece>* out);

  std::vector<Step> steps_;
  bool maps_bytes_at_end_ = false;
};

}  // namespace sluice::text
