#include <algorithm>
#include <iterator>

#include "engine/text/template/format.h"
#include "engine/text/template/methods.h"
#include "engine/text/template/text_search.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

bool IsMarkup(const Value& v) { return v.As<StringObject>().markup; }

// A str result of a method keeps the subject's Markup.
Value Same(Runtime& rt, const Value& self, std::string text) {
  return rt.String(std::move(text), IsMarkup(self));
}

template <std::string (*Map)(std::string_view)>
Value MapText(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("the string method", args);
  rt.Work(Text(self).size() * 8);
  rt.Need(Text(self).size() * 3);
  return Same(rt, self, Map(Text(self)));
}

template <bool (*Test)(char32_t)>
Value All(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("the string method", args);
  const std::string_view text = Text(self);
  rt.Work(text.size() * 4);
  for (size_t pos = 0; pos < text.size();) {
    if (!Test(DecodeNext(text, &pos))) return Value::Bool(false);
  }
  return Value::Bool(!text.empty());
}

Value IsPrintableText(Runtime& rt, const Value& self, CallArgs& args) {
  if (Text(self).empty()) return Value::Bool(true);
  return All<IsPrintable>(rt, self, args);
}

Value IsAsciiText(Runtime&, const Value& self, CallArgs& args) {
  NoArguments("isascii", args);
  return Value::Bool(self.As<StringObject>().ascii());
}

Value IsIdentifier(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("isidentifier", args);
  const std::string_view text = Text(self);
  rt.Work(text.size() * 4);
  for (size_t pos = 0; pos < text.size();) {
    const bool first = pos == 0;
    const char32_t c = DecodeNext(text, &pos);
    if (!(first ? IsNameStart(c) : IsNameContinue(c))) return Value::Bool(false);
  }
  return Value::Bool(!text.empty());
}

// str.islower and str.isupper: some cased character, and none of the other case.
template <bool (*Wanted)(char32_t), bool (*Other)(char32_t)>
Value IsCase(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("the string method", args);
  const std::string_view text = Text(self);
  rt.Work(text.size() * 4);
  bool found = false;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = DecodeNext(text, &pos);
    if (Other(c) || IsTitle(c)) return Value::Bool(false);
    found = found || Wanted(c);
  }
  return Value::Bool(found);
}

Value IsTitleText(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("istitle", args);
  const std::string_view text = Text(self);
  rt.Work(text.size() * 4);
  bool found = false;
  bool inside_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = DecodeNext(text, &pos);
    if (IsUpper(c) || IsTitle(c)) {
      if (inside_word) return Value::Bool(false);
      found = inside_word = true;
    } else if (IsLower(c)) {
      if (!inside_word) return Value::Bool(false);
    } else {
      inside_word = false;
    }
  }
  return Value::Bool(found);
}

Value SwapCase(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("swapcase", args);
  if (!self.As<StringObject>().ascii()) FailUnsupported("swapcase() of text beyond ASCII");
  std::string text(Text(self));
  for (char& c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (IsUpper(u) || IsLower(u)) c = static_cast<char>(c ^ 0x20);
  }
  return Same(rt, self, std::move(text));
}

Value StripEnds(Runtime& rt, const Value& self, CallArgs& args, bool left, bool right) {
  const Arguments a("strip", args, {"/chars"});
  std::string_view text = Text(self);
  rt.Work(text.size());
  if (!a.HasSome(0)) return Same(rt, self, std::string(StripSpace(text, left, right)));
  const std::string_view chars = a.String(0);
  const auto in_set = [&](std::string_view one) {
    rt.Work(chars.size());
    for (size_t pos = 0; pos < chars.size();) {
      const size_t begin = pos;
      DecodeNext(chars, &pos);
      if (chars.substr(begin, pos - begin) == one) return true;
    }
    return false;
  };
  while (left && !text.empty()) {
    size_t end = 0;
    DecodeNext(text, &end);
    if (!in_set(text.substr(0, end))) break;
    text.remove_prefix(end);
  }
  while (right && !text.empty()) {
    const size_t begin = PreviousCharacter(text, text.size());
    if (!in_set(text.substr(begin))) break;
    text.remove_suffix(text.size() - begin);
  }
  return Same(rt, self, std::string(text));
}

Value Strip(Runtime& rt, const Value& self, CallArgs& args) {
  return StripEnds(rt, self, args, true, true);
}
Value LeftStrip(Runtime& rt, const Value& self, CallArgs& args) {
  return StripEnds(rt, self, args, true, false);
}
Value RightStrip(Runtime& rt, const Value& self, CallArgs& args) {
  return StripEnds(rt, self, args, false, true);
}

Value Split(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("split", args, {"sep", "maxsplit"});
  return SplitText(rt, self, a[0], a.Int(1, -1), false);
}

Value RightSplit(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("rsplit", args, {"sep", "maxsplit"});
  return SplitText(rt, self, a[0], a.Int(1, -1), true);
}

Value SplitLinesOf(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("splitlines", args, {"keepends"});
  rt.Work(Text(self).size());
  Values lines;
  for (std::string_view line : SplitLines(Text(self), a.Flag(0, false))) {
    rt.Step();
    lines.push_back(Same(rt, self, std::string(line)));
  }
  return rt.List(std::move(lines));
}

// The part of a string that find, count, startswith and their kin look at.
struct Window {
  size_t begin = 0;  // bytes
  size_t end = 0;    // bytes
  size_t first = 0;  // code points before begin
  bool out_of_range = false;
};

Window WindowOf(Runtime& rt, const Value& self, const Arguments& a, size_t start, size_t stop) {
  const auto& string = self.As<StringObject>();
  const auto length = static_cast<int64_t>(string.length);
  const auto clamp = [length](int64_t i) {
    if (i < 0) i = i < -length ? 0 : i + length;
    return std::min(i, length);
  };
  const int64_t raw_start = a.HasSome(start) ? RequireInt(a[start], "a slice index") : 0;
  const int64_t raw_stop = a.HasSome(stop) ? RequireInt(a[stop], "a slice index") : length;
  Window window;
  window.out_of_range = raw_start > length || clamp(raw_stop) < clamp(raw_start);
  window.first = static_cast<size_t>(clamp(raw_start));
  const auto last = static_cast<size_t>(std::max(clamp(raw_start), clamp(raw_stop)));
  if (string.ascii()) {
    window.begin = window.first;
    window.end = last;
  } else {
    rt.Work(string.text.size() * 4);
    window.begin = OffsetOf(string.text, window.first);
    window.end = OffsetOf(string.text, last);
  }
  return window;
}

// Code point index of `needle` in `self`, or -1.
int64_t Search(Runtime& rt, const Value& self, CallArgs& args, std::string_view method, bool last) {
  const Arguments a(method, args, {"/sub", "/start", "/end"}, 1);
  const Window window = WindowOf(rt, self, a, 1, 2);
  const std::string_view needle = a.String(0);
  if (window.out_of_range) return -1;
  const std::string_view part = Text(self).substr(window.begin, window.end - window.begin);
  const size_t at = last ? FindLastText(rt, part, needle) : FindText(rt, part, needle);
  if (at == kNotFound) return -1;
  return static_cast<int64_t>(window.first + CountCharacters(part.substr(0, at)));
}

Value Find(Runtime& rt, const Value& self, CallArgs& args) {
  return Value::Int(Search(rt, self, args, "find", false));
}
Value RightFind(Runtime& rt, const Value& self, CallArgs& args) {
  return Value::Int(Search(rt, self, args, "rfind", true));
}
Value Index(Runtime& rt, const Value& self, CallArgs& args) {
  const int64_t at = Search(rt, self, args, "index", false);
  if (at < 0) Fail("substring not found");
  return Value::Int(at);
}
Value RightIndex(Runtime& rt, const Value& self, CallArgs& args) {
  const int64_t at = Search(rt, self, args, "rindex", true);
  if (at < 0) Fail("substring not found");
  return Value::Int(at);
}

Value Count(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("count", args, {"/sub", "/start", "/end"}, 1);
  const Window window = WindowOf(rt, self, a, 1, 2);
  const std::string_view needle = a.String(0);
  if (window.out_of_range) return Value::Int(0);
  const std::string_view part = Text(self).substr(window.begin, window.end - window.begin);
  if (needle.empty()) return Value::Int(static_cast<int64_t>(CountCharacters(part)) + 1);
  int64_t count = 0;
  for (size_t pos = 0;; ++count) {
    const size_t at = FindText(rt, part, needle, pos);
    if (at == kNotFound) return Value::Int(count);
    rt.Step();
    pos = at + needle.size();
  }
}

Value Affix(Runtime& rt, const Value& self, CallArgs& args, std::string_view method, bool prefix) {
  const Arguments a(method, args, {"/affix", "/start", "/end"}, 1);
  const Window window = WindowOf(rt, self, a, 1, 2);
  const std::string_view part = Text(self).substr(window.begin, window.end - window.begin);
  const auto matches = [&](const Value& affix) {
    const std::string_view text = RequireText(affix, method);
    rt.Work(text.size());
    if (window.out_of_range) return false;
    return prefix ? part.starts_with(text) : part.ends_with(text);
  };
  if (a[0].Is(Kind::kTuple)) {
    for (const Value& affix : a[0].As<ListObject>().items) {
      rt.Step();
      if (matches(affix)) return Value::Bool(true);
    }
    return Value::Bool(false);
  }
  return Value::Bool(matches(a[0]));
}

Value StartsWith(Runtime& rt, const Value& self, CallArgs& args) {
  return Affix(rt, self, args, "startswith", true);
}
Value EndsWith(Runtime& rt, const Value& self, CallArgs& args) {
  return Affix(rt, self, args, "endswith", false);
}

Value RemovePrefix(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("removeprefix", args, {"/prefix"}, 1);
  std::string_view text = Text(self);
  if (text.starts_with(a.String(0))) text.remove_prefix(a.String(0).size());
  return Same(rt, self, std::string(text));
}

Value RemoveSuffix(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("removesuffix", args, {"/suffix"}, 1);
  std::string_view text = Text(self);
  if (text.ends_with(a.String(0))) text.remove_suffix(a.String(0).size());
  return Same(rt, self, std::string(text));
}

Value Replace(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("replace", args, {"/old", "/new", "/count"}, 2);
  a.String(1);
  const Value with = IsMarkup(self) ? Escape(rt, a[1]) : a[1];
  return Same(rt, self, ReplaceText(rt, Text(self), a.String(0), Text(with), a.Int(2, -1)));
}

Value Join(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("join", args, {"/iterable"}, 1);
  TextBuilder out(rt);
  bool first = true;
  for (const Value& item : ToValues(rt, a[0])) {
    rt.Step();
    if (!first) out.Append(Text(self));
    first = false;
    if (IsMarkup(self)) {
      out.Append(Text(Escape(rt, item)));
    } else {
      out.Append(RequireText(item, "an item that join() joins"));
    }
  }
  return Same(rt, self, out.Take());
}

Value PartitionAt(Runtime& rt, const Value& self, CallArgs& args, bool last) {
  const Arguments a("partition", args, {"/sep"}, 1);
  const std::string_view text = Text(self);
  const std::string_view sep = a.String(0);
  if (sep.empty()) Fail("empty separator");
  const size_t at = last ? FindLastText(rt, text, sep) : FindText(rt, text, sep);
  std::string_view head = text;
  std::string_view middle;
  std::string_view tail;
  if (at != kNotFound) {
    head = text.substr(0, at);
    middle = sep;
    tail = text.substr(at + sep.size());
  } else if (last) {
    std::swap(head, tail);
  }
  return rt.Tuple({Same(rt, self, std::string(head)), Same(rt, self, std::string(middle)),
                   Same(rt, self, std::string(tail))});
}

Value Partition(Runtime& rt, const Value& self, CallArgs& args) {
  return PartitionAt(rt, self, args, false);
}
Value RightPartition(Runtime& rt, const Value& self, CallArgs& args) {
  return PartitionAt(rt, self, args, true);
}

enum class Justify { kLeft, kRight, kCenter };

Value Justified(Runtime& rt, const Value& self, CallArgs& args, Justify mode) {
  const Arguments a("the justifying method", args, {"/width", "/fillchar"}, 1);
  const std::string_view fill = a.Has(1) ? a.String(1) : " ";
  if (CountCharacters(fill) != 1) Fail("the fill character must be exactly one character long");
  const auto length = static_cast<int64_t>(Length(self));
  const int64_t width = a.Int(0, 0);
  if (width <= length) return Same(rt, self, std::string(Text(self)));
  const int64_t missing = width - length;
  rt.Need(static_cast<size_t>(missing));
  int64_t left = 0;
  if (mode == Justify::kRight) left = missing;
  // CPython's choice of the longer side.
  if (mode == Justify::kCenter) left = missing / 2 + (missing & width & 1);
  TextBuilder out(rt);
  for (int64_t i = 0; i < left; ++i) out.Append(fill);
  out.Append(Text(self));
  for (int64_t i = left; i < missing; ++i) out.Append(fill);
  return Same(rt, self, out.Take());
}

Value LeftJustify(Runtime& rt, const Value& self, CallArgs& args) {
  return Justified(rt, self, args, Justify::kLeft);
}
Value RightJustify(Runtime& rt, const Value& self, CallArgs& args) {
  return Justified(rt, self, args, Justify::kRight);
}
Value Center(Runtime& rt, const Value& self, CallArgs& args) {
  return Justified(rt, self, args, Justify::kCenter);
}

Value ZeroFill(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("zfill", args, {"/width"}, 1);
  const std::string_view text = Text(self);
  const auto length = static_cast<int64_t>(Length(self));
  if (a.Int(0, 0) <= length) return self;
  const bool sign = !text.empty() && (text[0] == '+' || text[0] == '-');
  TextBuilder out(rt);
  if (sign) out.Append(text.substr(0, 1));
  out.Append(static_cast<size_t>(a.Int(0, 0) - length), '0');
  out.Append(text.substr(sign ? 1 : 0));
  return Same(rt, self, out.Take());
}

Value ExpandTabs(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("expandtabs", args, {"tabsize"});
  const int64_t size = a.Int(0, 8);
  const std::string_view text = Text(self);
  TextBuilder out(rt);
  int64_t column = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = DecodeNext(text, &pos);
    if (c == '\t') {
      if (size > 0) {
        const int64_t spaces = size - column % size;
        out.Append(static_cast<size_t>(spaces), ' ');
        column += spaces;
      }
      continue;
    }
    out.Append(text.substr(begin, pos - begin));
    column = c == '\n' || c == '\r' ? 0 : column + 1;
  }
  return Same(rt, self, out.Take());
}

Value Format(Runtime& rt, const Value& self, CallArgs& args) {
  return FormatBraces(rt, self, args);
}

Value FormatMap(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("format_map", args, {"/mapping"}, 1);
  if (!a[0].IsDict()) Fail("format_map() needs a mapping");
  CallArgs named;
  for (const auto& [key, value] : a[0].As<DictObject>().entries()) {
    if (key.IsString()) named.named.emplace_back(std::string(Text(key)), value);
  }
  return FormatBraces(rt, self, named);
}

constexpr BuiltinEntry kMethods[] = {
    {"capitalize", MapText<Capitalize>},
    {"center", Center},
    {"count", Count},
    {"endswith", EndsWith},
    {"expandtabs", ExpandTabs},
    {"find", Find},
    {"format", Format},
    {"format_map", FormatMap},
    {"index", Index},
    {"isalnum", All<IsAlnum>},
    {"isalpha", All<IsAlpha>},
    {"isascii", IsAsciiText},
    {"isdecimal", All<IsDecimal>},
    {"isdigit", All<IsDigit>},
    {"isidentifier", IsIdentifier},
    {"islower", IsCase<IsLower, IsUpper>},
    {"isnumeric", All<IsNumeric>},
    {"isprintable", IsPrintableText},
    {"isspace", All<IsSpace>},
    {"istitle", IsTitleText},
    {"isupper", IsCase<IsUpper, IsLower>},
    {"join", Join},
    {"ljust", LeftJustify},
    {"lower", MapText<ToLower>},
    {"lstrip", LeftStrip},
    {"partition", Partition},
    {"removeprefix", RemovePrefix},
    {"removesuffix", RemoveSuffix},
    {"replace", Replace},
    {"rfind", RightFind},
    {"rindex", RightIndex},
    {"rjust", RightJustify},
    {"rpartition", RightPartition},
    {"rsplit", RightSplit},
    {"rstrip", RightStrip},
    {"split", Split},
    {"splitlines", SplitLinesOf},
    {"startswith", StartsWith},
    {"strip", Strip},
    {"swapcase", SwapCase},
    {"title", MapText<ToTitle>},
    {"upper", MapText<ToUpper>},
    {"zfill", ZeroFill},
};

}  // namespace

const BuiltinEntry* FindStringMethod(std::string_view name) {
  const auto* const it = std::lower_bound(
      std::begin(kMethods), std::end(kMethods), name,
      [](const BuiltinEntry& entry, std::string_view value) { return entry.name < value; });
  return it != std::end(kMethods) && it->name == name ? it : nullptr;
}

}  // namespace sluice::jinja
