#include "engine/text/regex_syntax.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/utf8.h"
#include "engine/text/unicode.h"

namespace sluice::text {
namespace {

// Members of Oniguruma's classes, as the inside of a PCRE2 class. They end in a property, so that a
// hyphen behind them cannot form a range.
constexpr std::string_view kSpaceSet = "\\t-\\r\\x{85}\\p{Z}";
constexpr std::string_view kHexSet = "0-9A-Fa-f";
constexpr std::string_view kNotHexSet =
    "\\x{0}-\\x{2f}\\x{3a}-\\x{40}G-Z\\x{5b}-\\x{60}g-\\x{10ffff}";
// Besides letters, marks, decimal digits, letter numbers and connectors: the Latin-1 superscripts
// and fractions, and the circled and squared letters.
constexpr std::string_view kWordExtras =
    "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
    "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";

std::string Hex(char32_t c) {
  std::array<char, 16> buffer;
  std::snprintf(buffer.data(), buffer.size(), "\\x{%x}", static_cast<unsigned>(c));
  return buffer.data();
}

bool IsAsciiAlnum(char32_t c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

std::string Literal(char32_t c) {
  if (c < 0x80 && !IsAsciiAlnum(c)) return Hex(c);
  std::string out;
  AppendUtf8(c, &out);
  return out;
}

// The newer characters whose category starts with `category` ("L", "Lu"), as ranges of a class.
std::string NewerOf(std::string_view category) {
  std::string out;
  for (const CodePointRange& range : NewerCharacters()) {
    if (!std::string_view(range.category).starts_with(category)) continue;
    out += Hex(range.first);
    if (range.last != range.first) out += "-" + Hex(range.last);
  }
  return out;
}

std::string WordSet() {
  std::string out(kWordExtras);
  for (const char* category : {"L", "M", "Nd", "Nl", "Pc"}) out += NewerOf(category);
  return out + "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}";
}

struct CategoryName {
  std::string_view name;  // lower case, without '_', '-' and blanks
  std::string_view category;
};
constexpr CategoryName kCategories[] = {
    {"l", "L"},
    {"letter", "L"},
    {"lu", "Lu"},
    {"uppercaseletter", "Lu"},
    {"ll", "Ll"},
    {"lowercaseletter", "Ll"},
    {"lt", "Lt"},
    {"titlecaseletter", "Lt"},
    {"lm", "Lm"},
    {"modifierletter", "Lm"},
    {"lo", "Lo"},
    {"otherletter", "Lo"},
    {"m", "M"},
    {"mark", "M"},
    {"combiningmark", "M"},
    {"mn", "Mn"},
    {"nonspacingmark", "Mn"},
    {"mc", "Mc"},
    {"spacingmark", "Mc"},
    {"me", "Me"},
    {"enclosingmark", "Me"},
    {"n", "N"},
    {"number", "N"},
    {"nd", "Nd"},
    {"digit", "Nd"},
    {"decimalnumber", "Nd"},
    {"nl", "Nl"},
    {"letternumber", "Nl"},
    {"no", "No"},
    {"othernumber", "No"},
    {"p", "P"},
    {"punctuation", "P"},
    {"pc", "Pc"},
    {"connectorpunctuation", "Pc"},
    {"pd", "Pd"},
    {"dashpunctuation", "Pd"},
    {"ps", "Ps"},
    {"openpunctuation", "Ps"},
    {"pe", "Pe"},
    {"closepunctuation", "Pe"},
    {"pi", "Pi"},
    {"initialpunctuation", "Pi"},
    {"pf", "Pf"},
    {"finalpunctuation", "Pf"},
    {"po", "Po"},
    {"otherpunctuation", "Po"},
    {"s", "S"},
    {"symbol", "S"},
    {"sm", "Sm"},
    {"mathsymbol", "Sm"},
    {"sc", "Sc"},
    {"currencysymbol", "Sc"},
    {"sk", "Sk"},
    {"modifiersymbol", "Sk"},
    {"so", "So"},
    {"othersymbol", "So"},
    {"z", "Z"},
    {"separator", "Z"},
    {"zs", "Zs"},
    {"spaceseparator", "Zs"},
    {"zl", "Zl"},
    {"lineseparator", "Zl"},
    {"zp", "Zp"},
    {"paragraphseparator", "Zp"},
    {"cc", "Cc"},
    {"control", "Cc"},
    {"cf", "Cf"},
    {"format", "Cf"},
    {"co", "Co"},
    {"privateuse", "Co"},
};

// A set of characters, written as the inside of a class; `complement` is the inside of the class of
// all others, where one can be written.
struct CharacterSet {
  std::string inside;
  std::optional<std::string> complement;
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> Run() {
    while (!AtEnd()) {
      if (Result<void> done = Item(); !done) return done.error();
    }
    return std::move(out_);
  }

 private:
  static constexpr size_t kNoAtom = static_cast<size_t>(-1);
  static constexpr int kMaxClassDepth = 16;

  bool AtEnd() const { return at_ >= in_.size(); }
  char Peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool Starts(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  char32_t Take() { return NextCodePoint(in_, &at_); }

  Error Refuse(const std::string& what) const {
    return Unsupported("the regular expression uses " + what + " at byte " + std::to_string(at_) +
                       ", which is not supported");
  }

  void Atom(std::string_view text) {
    atom_ = out_.size();
    out_ += text;
  }

  // One item outside of character classes.
  Result<void> Item() {
    switch (Peek()) {
      case '\\':
        return Escape();
      case '[': {
        ++at_;
        Result<std::string> set = Class(0);
        if (!set) return set.error();
        Atom(*set);
        return {};
      }
      case '(':
        return OpenGroup();
      case ')':
        ++at_;
        out_ += ')';
        // An unbalanced one is left for PCRE2 to report.
        atom_ = kNoAtom;
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        return {};
      case '|':
      case '^':
      case '$':
        out_ += in_[at_++];
        atom_ = kNoAtom;
        return {};
      case '*':
      case '+':
      case '?':
        out_ += in_[at_++];
        if (Peek() == '?' || Peek() == '+') out_ += in_[at_++];
        return {};
      case '{':
        return Interval();
      case '.':
        ++at_;
        Atom(".");
        return {};
      default:
        Atom(Literal(Take()));
        return {};
    }
  }

  Result<void> OpenGroup() {
    if (Starts("(*")) return Refuse("a verb");
    if (Starts("(?#")) {
      const size_t end = in_.find(')', at_);
      if (end == in_.npos) return InvalidArgument("the regular expression has an open comment");
      at_ = end + 1;
      return {};
    }
    groups_.push_back(out_.size());
    atom_ = kNoAtom;
    for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (!Starts(opening)) continue;
      out_ += opening;
      at_ += opening.size();
      return {};
    }
    if (Starts("(?<")) {
      const size_t end = in_.find('>', at_);
      if (end == in_.npos) return InvalidArgument("the regular expression has an open group name");
      out_ += in_.substr(at_, end + 1 - at_);
      at_ = end + 1;
      return {};
    }
    if (!Starts("(?")) {
      out_ += '(';
      ++at_;
      return {};
    }
    // Options, for the rest of the enclosing group or for a group of their own. Ruby's m lets the
    // dot match newlines, which is s in PCRE2.
    size_t i = at_ + 2;
    std::string options = "(?";
    while (i < in_.size() && (in_[i] == 'i' || in_[i] == 'm' || in_[i] == '-')) {
      options += in_[i] == 'm' ? 's' : in_[i];
      ++i;
    }
    if (i >= in_.size() || (in_[i] != ':' && in_[i] != ')')) return Refuse("a group of this kind");
    // With ")" it closes through the next Item, which pops the group.
    at_ = i;
    out_ += options;
    if (in_[i] == ':') {
      out_ += ':';
      ++at_;
    }
    return {};
  }

  Result<void> Interval() {
    size_t i = at_ + 1;
    auto number = [&]() -> std::optional<int> {
      int value = 0;
      const size_t start = i;
      while (i < in_.size() && std::isdigit(static_cast<unsigned char>(in_[i])) && i - start < 6) {
        value = value * 10 + (in_[i++] - '0');
      }
      if (i == start) return std::nullopt;
      return value;
    };
    const std::optional<int> low = number();
    std::optional<int> high;
    const bool comma = i < in_.size() && in_[i] == ',';
    if (comma) {
      ++i;
      high = number();
    }
    if (i >= in_.size() || in_[i] != '}' || (!low && !high)) {
      ++at_;
      Atom("\\{");
      return {};
    }
    at_ = i + 1;
    std::string interval = "{" + std::to_string(low.value_or(0));
    if (comma) interval += "," + (high ? std::to_string(*high) : std::string());
    interval += "}";
    out_ += interval;
    const bool again = Peek() == '+' || Peek() == '*' || (Peek() == '?' && !comma);
    if (again && atom_ != kNoAtom) {
      // A second quantifier on the repeated item, not a modifier of the first.
      out_.insert(atom_, "(?:");
      out_ += ')';
    } else if (Peek() == '?') {
      out_ += in_[at_++];
    }
    return {};
  }

  Result<void> Escape() {
    if (at_ + 1 >= in_.size()) {
      return InvalidArgument("the regular expression ends in a backslash");
    }
    const char kind = in_[at_ + 1];
    switch (kind) {
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
        out_ += in_.substr(at_, 2);
        at_ += 2;
        atom_ = kNoAtom;
        return {};
      case 'b':
      case 'B': {
        at_ += 2;
        const std::string word = "[" + WordSet() + "]";
        const bool inner = kind == 'B';
        Atom("(?:(?<=" + word + ")(?" + (inner ? "=" : "!") + word + ")|(?<!" + word + ")(?" +
             (inner ? "!" : "=") + word + "))");
        return {};
      }
      case 'R':
      case 'X':
        Atom(in_.substr(at_, 2));
        at_ += 2;
        return {};
      default:
        break;
    }
    if (kind >= '1' && kind <= '9') {
      if (std::isdigit(static_cast<unsigned char>(Peek(2)))) return Refuse("a two-digit escape");
      Atom(in_.substr(at_, 2));
      at_ += 2;
      return {};
    }
    Result<std::optional<CharacterSet>> set = SetEscape();
    if (!set) return set.error();
    if (*set) {
      Atom("[" + (*set)->inside + "]");
      return {};
    }
    Result<char32_t> c = LiteralEscape();
    if (!c) return c.error();
    Atom(Literal(*c));
    return {};
  }

  // \d \s \w \h \p{...} and their complements; nothing is consumed when it is none of them. The
  // result for a complement is inverted already (`inside` is what it matches).
  Result<std::optional<CharacterSet>> SetEscape() {
    const char kind = Peek(1);
    std::optional<CharacterSet> set;
    switch (kind) {
      case 'd':
      case 'D':
        set = Category("Nd");
        break;
      case 's':
      case 'S':
        set = Space();
        break;
      case 'w':
      case 'W':
        set = CharacterSet{WordSet(), std::nullopt};
        break;
      case 'h':
      case 'H':
        set = CharacterSet{std::string(kHexSet), std::string(kNotHexSet)};
        break;
      case 'p':
      case 'P':
        return Property();
      default:
        return std::optional<CharacterSet>();
    }
    if (std::isupper(static_cast<unsigned char>(kind))) {
      if (!in_class_) {
        set->inside = "^" + set->inside;
      } else if (set->complement) {
        set->inside = *set->complement;
      } else {
        return Refuse(std::string("\\") + kind + " inside a class");
      }
    }
    at_ += 2;
    return set;
  }

  static CharacterSet Space() {
    // PCRE2's \S leaves out U+180E as well.
    return {std::string(kSpaceSet), "\\S\\x{180e}"};
  }

  static CharacterSet Category(std::string_view category) {
    const std::string name(category);
    return {NewerOf(category) + "\\p{" + name + "}", "\\P{" + name + "}"};
  }

  Result<std::optional<CharacterSet>> Property() {
    bool negated = Peek(1) == 'P';
    if (Peek(2) != '{') return Refuse("a property without braces");
    const size_t end = in_.find('}', at_);
    if (end == in_.npos) return InvalidArgument("the regular expression has an open property");
    std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
    if (name.starts_with("^")) {
      negated = !negated;
      name.remove_prefix(1);
    }
    std::string key;
    for (const char c : name) {
      if (c == '_' || c == '-' || c == ' ') continue;
      if (!std::isalnum(static_cast<unsigned char>(c))) return Refuse("an unknown property");
      key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    CharacterSet set;
    const auto* row = std::find_if(std::begin(kCategories), std::end(kCategories),
                                   [&](const CategoryName& c) { return c.name == key; });
    if (row != std::end(kCategories)) {
      set = Category(row->category);
    } else if (key == "space" || key == "whitespace") {
      set = Space();
    } else if (key == "word") {
      set = {WordSet(), std::nullopt};
    } else if (key == "any") {
      set = {"\\p{Any}", std::nullopt};
    } else if (key.size() > 2 && key != "alpha" && key != "alphabetic" && key != "alnum" &&
               key != "upper" && key != "uppercase" && key != "lower" && key != "lowercase" &&
               key != "punct" && key != "graph" && key != "print" && key != "blank" &&
               key != "cntrl" && key != "ascii" && key != "xdigit") {
      set = Script(name, key);
    } else {
      return Refuse("the property \"" + std::string(name) + "\"");
    }
    if (negated) {
      if (!in_class_) {
        set.inside = "^" + set.inside;
      } else if (set.complement) {
        set.inside = *set.complement;
      } else {
        return Refuse("a complement inside a class");
      }
    }
    at_ = end + 1;
    return std::optional<CharacterSet>(std::move(set));
  }

  static CharacterSet Script(std::string_view name, const std::string& key) {
#if PCRE2_MAJOR > 10 || PCRE2_MINOR >= 40
    const std::string property = "sc:" + std::string(name);
#else
    const std::string property(name);
#endif
    std::string inside;
    if (key == "han") inside = "\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
    return {inside + "\\p{" + property + "}", "\\P{" + property + "}"};
  }

  // An escape that stands for one character; consumes it.
  Result<char32_t> LiteralEscape() {
    const char kind = Peek(1);
    auto hex = [&](size_t from, size_t digits) -> std::optional<char32_t> {
      if (digits == 0 || digits > 6 || from + digits > in_.size()) return std::nullopt;
      char32_t value = 0;
      for (size_t i = from; i < from + digits; ++i) {
        const auto c = static_cast<unsigned char>(in_[i]);
        if (!std::isxdigit(c)) return std::nullopt;
        value = value * 16 +
                static_cast<char32_t>(std::isdigit(c) ? c - '0' : std::tolower(c) - 'a' + 10);
      }
      if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return std::nullopt;
      return value;
    };
    auto simple = [&](char32_t c) -> Result<char32_t> {
      at_ += 2;
      return c;
    };
    switch (kind) {
      case 'n':
        return simple('\n');
      case 't':
        return simple('\t');
      case 'r':
        return simple('\r');
      case 'f':
        return simple('\f');
      case 'v':
        return simple('\v');
      case 'a':
        return simple('\a');
      case 'e':
        return simple(0x1B);
      case 'b':
        if (in_class_) return simple('\b');
        break;
      case 'x': {
        if (Peek(2) == '{') {
          const size_t end = in_.find('}', at_);
          const auto value = end == in_.npos ? std::nullopt : hex(at_ + 3, end - at_ - 3);
          if (!value) return Refuse("a bad \\x{...}");
          at_ = end + 1;
          return *value;
        }
        const auto value = hex(at_ + 2, 2);
        if (!value || *value > 0x7F) return Refuse("a bad or non-ASCII \\x escape");
        at_ += 4;
        return *value;
      }
      case 'u': {
        const auto value = hex(at_ + 2, 4);
        if (!value) return Refuse("a bad \\u escape");
        at_ += 6;
        return *value;
      }
      default:
        break;
    }
    if (IsAsciiAlnum(static_cast<unsigned char>(kind))) {
      return Refuse(std::string("the escape \\") + kind);
    }
    ++at_;
    return Take();
  }

  // Behind the '[' of a class: the whole class as PCRE2 text, or, for a nested one, its inside.
  Result<std::string> Class(int depth) {
    if (depth > kMaxClassDepth) return Refuse("too many nested classes");
    const bool outer_in_class = std::exchange(in_class_, true);
    bool negated = false;
    if (Peek() == '^') {
      negated = true;
      ++at_;
    }
    if (negated && depth > 0) return Refuse("a negated class inside a class");
    std::string inside;
    bool first = true;
    while (true) {
      if (AtEnd()) return InvalidArgument("the regular expression has an open character class");
      if (Peek() == ']' && !first) {
        ++at_;
        break;
      }
      first = false;
      if (Starts("&&")) return Refuse("a set intersection (&&)");
      if (Starts("[:")) {
        Result<std::string> set = PosixBracket();
        if (!set) return set.error();
        inside += *set;
        continue;
      }
      if (Peek() == '[') {
        ++at_;
        Result<std::string> nested = Class(depth + 1);
        if (!nested) return nested.error();
        inside += *nested;
        continue;
      }
      Result<std::optional<char32_t>> low = ClassItem(&inside);
      if (!low) return low.error();
      if (!*low) continue;
      inside += Literal(**low);
      // A range, unless the hyphen is the last character or a set follows it.
      if (Peek() != '-' || Peek(1) == ']' || Peek(1) == '[' || AtEnd()) continue;
      ++at_;
      std::string set;
      Result<std::optional<char32_t>> high = ClassItem(&set);
      if (!high) return high.error();
      inside += *high ? "-" + Literal(**high) : Hex('-') + set;
    }
    in_class_ = outer_in_class;
    if (depth > 0) return inside;
    return (negated ? "[^" : "[") + inside + "]";
  }

  // One character of a class, or nothing after appending a set to `inside`.
  Result<std::optional<char32_t>> ClassItem(std::string* inside) {
    if (Peek() != '\\' || AtEnd()) {
      if (AtEnd()) return InvalidArgument("the regular expression has an open character class");
      return std::optional<char32_t>(Take());
    }
    if (at_ + 1 >= in_.size()) {
      return InvalidArgument("the regular expression ends in a backslash");
    }
    Result<std::optional<CharacterSet>> set = SetEscape();
    if (!set) return set.error();
    if (*set) {
      *inside += (*set)->inside;
      return std::optional<char32_t>();
    }
    Result<char32_t> c = LiteralEscape();
    if (!c) return c.error();
    return std::optional<char32_t>(*c);
  }

  Result<std::string> PosixBracket() {
    const std::pair<std::string_view, std::string> kinds[] = {
        {"[:space:]", Space().inside},
        {"[:digit:]", Category("Nd").inside},
        {"[:word:]", WordSet()},
        {"[:xdigit:]", std::string(kHexSet)},
        {"[:punct:]", Category("P").inside + Category("S").inside},
    };
    for (const auto& [name, inside] : kinds) {
      if (!Starts(name)) continue;
      at_ += name.size();
      return inside;
    }
    return Refuse("this bracket expression");
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = kNoAtom;       // where the item that a quantifier would repeat starts in out_
  std::vector<size_t> groups_;  // where the open groups start in out_
  bool in_class_ = false;
};

}  // namespace

Result<std::string> TranslateOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

std::string EscapeForRegex(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) out += Literal(NextCodePoint(text, &i));
  return out;
}

}  // namespace sluice::text
