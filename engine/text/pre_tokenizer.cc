#include "engine/text/pre_tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/utf8.h"
#include "engine/text/byte_level.h"
#include "engine/text/json_fields.h"
#include "engine/text/replacer.h"
#include "engine/text/unicode.h"

namespace sluice::text {
namespace {

// The pattern of GPT-2 (encoder.py), which ByteLevel uses unless told otherwise.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Part {
  size_t begin;
  size_t end;
  bool is_match;
};

// Emits the pieces of one text from its parts (matches and what is between them), which come in
// order and cover the text.
class Splitter {
 public:
  Splitter(const Piece& piece, SplitBehavior behavior, std::vector<Piece>* out)
      : piece_(piece), behavior_(behavior), out_(out) {}

  void Add(const Part& part) {
    switch (behavior_) {
      case SplitBehavior::kRemoved:
        if (!part.is_match) Emit(part.begin, part.end);
        return;
      case SplitBehavior::kIsolated:
        Emit(part.begin, part.end);
        return;
      case SplitBehavior::kContiguous:
        Join(part, part.is_match == previous_match_);
        return;
      case SplitBehavior::kMergedWithPrevious:
        Join(part, part.is_match && !previous_match_);
        return;
      case SplitBehavior::kMergedWithNext:
        // A match opens a piece and the part behind it, unless a match too, extends that piece.
        Join(part, !part.is_match && previous_match_);
        return;
    }
  }

  // The unsearched tail of a text becomes a piece of its own.
  void AddTail(size_t begin) {
    Finish();
    Emit(begin, piece_.text.size());
  }

  void Finish() {
    if (open_) Emit(open_begin_, open_end_);
    open_ = false;
  }

 private:
  void Join(const Part& part, bool with_open) {
    if (with_open && open_) {
      open_end_ = part.end;
    } else {
      Finish();
      open_ = true;
      open_begin_ = part.begin;
      open_end_ = part.end;
    }
    previous_match_ = part.is_match;
  }

  void Emit(size_t begin, size_t end) {
    if (begin < end) {
      out_->push_back({piece_.text.substr(begin, end - begin), piece_.at_start && begin == 0});
    }
  }

  const Piece& piece_;
  SplitBehavior behavior_;
  std::vector<Piece>* out_;
  bool previous_match_ = false;
  bool open_ = false;
  size_t open_begin_ = 0;
  size_t open_end_ = 0;
};

void SplitAtMatches(const Piece& piece, const std::vector<TextSpan>& matches, size_t searched,
                    bool invert, SplitBehavior behavior, std::vector<Piece>* out) {
  Splitter splitter(piece, behavior, out);
  size_t previous = 0;
  for (const TextSpan& match : matches) {
    if (previous != match.begin) splitter.Add({previous, match.begin, invert});
    splitter.Add({match.begin, match.end, !invert});
    previous = match.end;
  }
  if (searched < piece.text.size()) {
    splitter.AddTail(previous);
    return;
  }
  if (previous != piece.text.size()) splitter.Add({previous, piece.text.size(), invert});
  splitter.Finish();
}

void FindLiteral(std::string_view text, std::string_view literal, std::vector<TextSpan>* matches) {
  matches->clear();
  for (size_t at = text.find(literal); at != text.npos; at = text.find(literal, at)) {
    matches->push_back({at, at + literal.size()});
    at += literal.size();
  }
}

// Runs of word characters, and runs of characters that are neither those nor whitespace.
void FindWords(std::string_view text, std::vector<TextSpan>* matches) {
  matches->clear();
  enum class Kind { kSpace, kWord, kOther };
  Kind run = Kind::kSpace;
  size_t begin = 0;
  size_t i = 0;
  while (true) {
    const size_t start = i;
    Kind kind = Kind::kSpace;
    if (start < text.size()) {
      const char32_t c = NextCodePoint(text, &i);
      kind = IsWord(c) ? Kind::kWord : IsWhitespace(c) ? Kind::kSpace : Kind::kOther;
    }
    if (kind != run || start == text.size()) {
      if (run != Kind::kSpace) matches->push_back({begin, start});
      begin = start;
      run = kind;
    }
    if (start == text.size()) return;
  }
}

Result<SplitBehavior> ParseBehavior(std::string_view name, std::string_view place) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return Unsupported(std::string(place) + ": the behavior \"" + std::string(name) +
                     "\" is not supported");
}

}  // namespace

Result<PreTokenizer> PreTokenizer::FromJson(const nlohmann::json& component,
                                            std::string_view place) {
  PreTokenizer result;
  if (component.is_null()) return result;
  if (Result<void> added = result.Add(component, place, 0); !added) return added.error();
  std::vector<Step>& steps = result.steps_;
  const auto maps = std::count_if(steps.begin(), steps.end(), [](const Step& step) {
    return std::holds_alternative<ByteMap>(step);
  });
  // Each mapping may double the text.
  if (maps > 2) return Unsupported(std::string(place) + " has more than two ByteLevel steps");
  if (!steps.empty() && std::holds_alternative<ByteMap>(steps.back())) {
    steps.pop_back();
    result.maps_bytes_at_end_ = true;
  }
  return result;
}

Result<void> PreTokenizer::Add(const nlohmann::json& component, std::string_view place, int depth) {
  if (Result<void> object = ExpectObject(component, place); !object) return object.error();
  Result<std::string> type = GetRequiredString(component, place, "type");
  if (!type) return type.error();
  if (depth > kMaxComponentDepth || steps_.size() >= kMaxComponentSteps) {
    return Unsupported(std::string(place) + " has too many or too deeply nested pre-tokenizers");
  }
  if (*type == "ByteLevel") return AddByteLevel(component, place);
  if (*type == "Split") return AddSplit(component, place);
  if (*type == "Metaspace") return AddMetaspace(component, place);
  if (*type == "Whitespace") {
    steps_.emplace_back(Words{});
  } else if (*type == "WhitespaceSplit") {
    steps_.emplace_back(ClassSplit{IsWhitespace, SplitBehavior::kRemoved});
  } else if (*type == "Digits") {
    Result<bool> individual = GetBool(component, place, "individual_digits", false);
    if (!individual) return individual.error();
    steps_.emplace_back(
        ClassSplit{IsNumeric, *individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
  } else if (*type == "Punctuation") {
    Result<std::optional<std::string>> name = GetString(component, place, "behavior");
    if (!name) return name.error();
    Result<SplitBehavior> behavior = ParseBehavior(name->value_or("Isolated"), place);
    if (!behavior) return behavior.error();
    steps_.emplace_back(ClassSplit{IsPunctuation, *behavior});
  } else if (*type == "Sequence") {
    Result<const nlohmann::json*> parts = GetRequiredArray(component, place, "pretokenizers");
    if (!parts) return parts.error();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      Result<void> added = Add((**parts)[i], Indexed(place, "pretokenizers", i), depth + 1);
      if (!added) return added.error();
    }
  } else {
    return Unsupported(std::string(place) + ": the pre-tokenizer \"" + *type +
                       "\" is not supported");
  }
  return {};
}

Result<void> PreTokenizer::AddByteLevel(const nlohmann::json& component, std::string_view place) {
  Result<bool> prefix = GetBool(component, place, "add_prefix_space", true);
  if (!prefix) return prefix.error();
  Result<bool> use_regex = GetBool(component, place, "use_regex", true);
  if (!use_regex) return use_regex.error();
  if (*prefix) steps_.emplace_back(AddPrefix{});
  if (*use_regex) {
    Result<Regex> regex = Regex::Compile(kGpt2Pattern);
    if (!regex) return WithContext(place, regex.error());
    steps_.emplace_back(MatchSplit{std::move(*regex), "", SplitBehavior::kIsolated, false});
  }
  steps_.emplace_back(ByteMap{});
  return {};
}

Result<void> PreTokenizer::AddSplit(const nlohmann::json& component, std::string_view place) {
  MatchSplit split;
  Result<std::optional<Regex>> regex = ParsePattern(component, place, &split.literal);
  if (!regex) return regex.error();
  split.regex = std::move(*regex);
  Result<std::string> name = GetRequiredString(component, place, "behavior");
  if (!name) return name.error();
  Result<SplitBehavior> behavior = ParseBehavior(*name, place);
  if (!behavior) return behavior.error();
  split.behavior = *behavior;
  Result<bool> invert = GetBool(component, place, "invert", false);
  if (!invert) return invert.error();
  split.invert = *invert;
  steps_.emplace_back(std::move(split));
  return {};
}

Result<void> PreTokenizer::AddMetaspace(const nlohmann::json& component, std::string_view place) {
  Metaspace step;
  Result<std::string> replacement = GetRequiredCharacter(component, place, "replacement");
  if (!replacement) return replacement.error();
  step.replacement = std::move(*replacement);
  Result<std::optional<std::string>> scheme = GetString(component, place, "prepend_scheme");
  if (!scheme) return scheme.error();
  const std::string name = scheme->value_or("always");
  if (name == "always") {
    step.prepend = Metaspace::Prepend::kAlways;
  } else if (name == "first") {
    step.prepend = Metaspace::Prepend::kFirst;
  } else if (name == "never") {
    step.prepend = Metaspace::Prepend::kNever;
  } else {
    return Unsupported(std::string(place) + ": the prepend_scheme \"" + name +
                       "\" is not supported");
  }
  // The older form of the setting.
  Result<bool> prefix = GetBool(component, place, "add_prefix_space", true);
  if (!prefix) return prefix.error();
  if (!*prefix) {
    if (step.prepend != Metaspace::Prepend::kNever) {
      return Corrupt(std::string(place) + ": add_prefix_space contradicts prepend_scheme");
    }
  }
  Result<bool> split = GetBool(component, place, "split", true);
  if (!split) return split.error();
  step.split = *split;
  steps_.emplace_back(std::move(step));
  return {};
}

std::vector<Piece> PreTokenizer::Apply(Piece text, PreTokenizerScratch* scratch) const {
  std::vector<Piece> pieces;
  if (!text.text.empty()) pieces.push_back(text);
  std::vector<Piece> next;
  for (const Step& step : steps_) {
    next.clear();
    next.reserve(pieces.size());
    for (const Piece& piece : pieces) Run(step, piece, scratch, &next);
    pieces.swap(next);
  }
  return pieces;
}

void PreTokenizer::Run(const Step& step, const Piece& piece, PreTokenizerScratch* scratch,
                       std::vector<Piece>* out) {
  std::vector<TextSpan>* matches = &scratch->matches;
  // A rewritten piece; deque elements stay where they are.
  auto rewrite = [scratch](std::string text) -> std::string_view {
    return scratch->rewritten.emplace_back(std::move(text));
  };
  if (const auto* split = std::get_if<MatchSplit>(&step)) {
    size_t searched = piece.text.size();
    if (split->regex) {
      searched = split->regex->FindAll(piece.text, &scratch->regex, matches);
    } else {
      FindLiteral(piece.text, split->literal, matches);
    }
    SplitAtMatches(piece, *matches, searched, split->invert, split->behavior, out);
  } else if (const auto* by_class = std::get_if<ClassSplit>(&step)) {
    matches->clear();
    for (size_t i = 0; i < piece.text.size();) {
      const size_t begin = i;
      if (by_class->contains(NextCodePoint(piece.text, &i))) matches->push_back({begin, i});
    }
    SplitAtMatches(piece, *matches, piece.text.size(), false, by_class->behavior, out);
  } else if (std::holds_alternative<Words>(step)) {
    FindWords(piece.text, matches);
    SplitAtMatches(piece, *matches, piece.text.size(), true, SplitBehavior::kRemoved, out);
  } else if (std::holds_alternative<ByteMap>(step)) {
    std::string mapped;
    AppendByteLevel(piece.text, &mapped);
    out->push_back({rewrite(std::move(mapped)), piece.at_start});
  } else if (std::holds_alternative<AddPrefix>(step)) {
    if (piece.text.starts_with(' ')) {
      out->push_back(piece);
    } else {
      out->push_back({rewrite(" " + std::string(piece.text)), piece.at_start});
    }
  } else {
    const auto& metaspace = std::get<Metaspace>(step);
    std::string text;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += metaspace.replacement;
      } else {
        text += c;
      }
    }
    const bool wanted = metaspace.prepend == Metaspace::Prepend::kAlways ||
                        (metaspace.prepend == Metaspace::Prepend::kFirst && piece.at_start);
    if (wanted && !text.starts_with(metaspace.replacement)) text.insert(0, metaspace.replacement);
    const Piece whole = {rewrite(std::move(text)), piece.at_start};
    if (!metaspace.split) {
      out->push_back(whole);
      return;
    }
    FindLiteral(whole.text, metaspace.replacement, matches);
    SplitAtMatches(whole, *matches, whole.text.size(), false, SplitBehavior::kMergedWithNext, out);
  }
}

}  // namespace sluice::text
