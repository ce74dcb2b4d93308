// Filters over strings, numbers and single values.

#include <charconv>
#include <cmath>
#include <system_error>

#include "engine/text/template/filters.h"
#include "engine/text/template/format.h"
#include "engine/text/template/json.h"
#include "engine/text/template/methods.h"
#include "engine/text/template/text_search.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

// A filter that is a string method of str(value) with the same arguments.
Value CallMethod(Runtime& rt, const Value& self, std::string_view method, CallArgs& args) {
  return FindStringMethod(method)->function(rt, ToStringValue(rt, self), args);
}

Value Upper(Runtime& rt, const Value& self, CallArgs& args) {
  return CallMethod(rt, self, "upper", args);
}
Value Lower(Runtime& rt, const Value& self, CallArgs& args) {
  return CallMethod(rt, self, "lower", args);
}
Value CapitalizeFilter(Runtime& rt, const Value& self, CallArgs& args) {
  return CallMethod(rt, self, "capitalize", args);
}

Value Trim(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("trim", args, {"chars"});
  CallArgs chars;
  if (a.Has(0)) chars.positional.push_back(a[0]);
  return CallMethod(rt, self, "strip", chars);
}

Value CenterFilter(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("center", args, {"width"});
  CallArgs width;
  width.positional.push_back(a.Or(0, Value::Int(80)));
  return CallMethod(rt, self, "center", width);
}

Value Title(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("title", args);
  const Value subject = ToStringValue(rt, self);
  const std::string_view text = Text(subject);
  rt.Work(text.size() * 8);
  const auto separates = [](char32_t c) {
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || IsSpace(c);
  };
  TextBuilder out(rt);
  for (size_t pos = 0; pos < text.size();) {
    // One word or one run of separators: its first character up, the rest down.
    const size_t begin = pos;
    const bool separator = separates(DecodeNext(text, &pos));
    const size_t first_end = pos;
    while (pos < text.size()) {
      size_t next = pos;
      if (separates(DecodeNext(text, &next)) != separator) break;
      pos = next;
    }
    out.Append(ToUpper(text.substr(begin, first_end - begin)));
    out.Append(ToLower(text.substr(first_end, pos - first_end)));
  }
  return rt.String(out.Take());
}

Value ReplaceFilter(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("replace", args, {"old", "new", "count"}, 2);
  const int64_t count = a.HasSome(2) ? a.Int(2, -1) : -1;
  return rt.String(ReplaceText(rt, Str(rt, self), Str(rt, a[0]), Str(rt, a[1]), count));
}

Value StringFilter(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("string", args);
  return ToStringValue(rt, self);
}

Value Safe(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("safe", args);
  return rt.String(Str(rt, self), true);
}

Value EscapeFilter(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("escape", args);
  return Escape(rt, self);
}

Value ForceEscape(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("forceescape", args);
  return Escape(rt, rt.String(Str(rt, self)));
}

Value FormatFilter(Runtime& rt, const Value& self, CallArgs& args) {
  if (!args.positional.empty() && !args.named.empty()) {
    Fail("format can't handle positional and keyword arguments at the same time");
  }
  const Value subject = ToStringValue(rt, self);
  if (args.named.empty()) return FormatPercent(rt, subject, rt.Tuple(std::move(args.positional)));
  auto* dict = new DictObject(rt);
  const Value mapping = Value::Of(Kind::kDict, dict);
  for (const auto& [name, value] : args.named) dict->Put(name, value);
  return FormatPercent(rt, subject, mapping);
}

Value Indent(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("indent", args, {"width", "first", "blank"});
  const std::string_view text = RequireText(self, "the value that indent works on");
  std::string indention;
  if (a.Has(0) && a[0].IsString()) {
    indention = std::string(Text(a[0]));
  } else {
    const int64_t width = a.Int(0, 4);
    rt.Need(width > 0 ? static_cast<size_t>(width) : 0);
    indention.assign(width > 0 ? static_cast<size_t>(width) : 0, ' ');
  }
  const bool blank = a.Flag(2, false);
  const std::string source = std::string(text) + "\n";
  TextBuilder out(rt);
  if (a.Flag(1, false)) out.Append(indention);
  bool first = true;
  for (std::string_view line : SplitLines(source, false)) {
    rt.Step();
    if (!first) {
      out.Append("\n");
      if (blank || !line.empty()) out.Append(indention);
    }
    first = false;
    out.Append(line);
  }
  return rt.String(out.Take(), self.As<StringObject>().markup);
}

Value Truncate(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("truncate", args, {"length", "killwords", "end", "leeway"});
  const int64_t length = a.Int(0, 255);
  const std::string end = a.Has(2) ? std::string(a.String(2)) : "...";
  const auto end_length = static_cast<int64_t>(CountCharacters(end));
  const int64_t leeway = a.HasSome(3) ? a.Int(3, 5) : 5;
  if (length < end_length) Fail("truncate: the length is shorter than the end mark");
  if (leeway < 0) Fail("truncate: the leeway is negative");
  const auto have = static_cast<int64_t>(Length(self));
  if (have <= length || have - length <= leeway) return self;
  const std::string_view text = RequireText(self, "the value that truncate works on");
  const bool markup = self.As<StringObject>().markup;
  rt.Work(text.size());
  std::string_view kept = text.substr(0, OffsetOf(text, static_cast<size_t>(length - end_length)));
  if (!a.Flag(1, false)) {
    const size_t space = kept.rfind(' ');
    if (space != std::string_view::npos) kept = kept.substr(0, space);
  }
  return rt.String(std::string(kept) + end, markup);
}

Value WordCount(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("wordcount", args);
  const Value subject = ToStringValue(rt, self);
  const std::string_view text = Text(subject);
  rt.Work(text.size() * 4);
  int64_t words = 0;
  bool inside = false;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = DecodeNext(text, &pos);
    const bool word = c == '_' || IsAlnum(c);
    if (word && !inside) ++words;
    inside = word;
  }
  return Value::Int(words);
}

Value Default(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("default", args, {"default_value", "boolean"});
  if (self.IsUndefined() || (a.Flag(1, false) && !Truth(self))) return a.Or(0, rt.String(""));
  return self;
}

// ---- numbers ----

// The text of a Python number literal without surrounding space and with valid underscores removed;
// false where an underscore is misplaced.
bool CleanNumber(std::string_view text, std::string* out) {
  text = StripSpace(text, true, true);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out->push_back(text[i]);
      continue;
    }
    const auto digit = [&](size_t at) {
      return at < text.size() && IsAlnum(static_cast<unsigned char>(text[at]));
    };
    if (i == 0 || !digit(i - 1) || !digit(i + 1)) return false;
  }
  return true;
}

bool ParseFloat(std::string_view text, double* out) {
  std::string clean;
  if (!CleanNumber(text, &clean) || clean.empty()) return false;
  const char* begin = clean.data();
  const char* end = begin + clean.size();
  const bool negative = *begin == '-';
  if (*begin == '+' || *begin == '-') ++begin;
  if (begin == end || *begin == '+' || *begin == '-') return false;
  const auto result = std::from_chars(begin, end, *out);
  if (result.ptr != end || result.ec == std::errc::invalid_argument) return false;
  // "nan(...)" is C's, not Python's.
  if (clean.find('(') != std::string::npos) return false;
  if (result.ec == std::errc::result_out_of_range) {
    const size_t e = clean.find_first_of("eE");
    const bool tiny = e != std::string::npos && e + 1 < clean.size() && clean[e + 1] == '-';
    *out = tiny ? 0.0 : HUGE_VAL;
  }
  if (negative) *out = -*out;
  return true;
}

enum class IntParse { kOk, kBad, kTooLarge };

IntParse ParseInt(std::string_view text, int64_t base, int64_t* out) {
  std::string clean;
  if (!CleanNumber(text, &clean)) return IntParse::kBad;
  std::string_view digits = clean;
  bool negative = false;
  if (!digits.empty() && (digits[0] == '+' || digits[0] == '-')) {
    negative = digits[0] == '-';
    digits.remove_prefix(1);
  }
  if (digits.size() > 2 && digits[0] == '0') {
    const char letter = static_cast<char>(digits[1] | 0x20);
    const int64_t named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      digits.remove_prefix(2);
    }
  }
  if (base == 0) {
    base = 10;
    if (digits.size() > 1 && digits[0] == '0' &&
        digits.find_first_not_of('0') != std::string_view::npos) {
      return IntParse::kBad;
    }
  }
  if (base < 2 || base > 36) return IntParse::kBad;
  if (digits.empty() || digits[0] == '-') return IntParse::kBad;
  uint64_t magnitude = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), magnitude,
                                      static_cast<int>(base));
  if (result.ptr != digits.data() + digits.size()) return IntParse::kBad;
  const uint64_t most = static_cast<uint64_t>(INT64_MAX) + (negative ? 1 : 0);
  if (result.ec == std::errc::result_out_of_range || magnitude > most) return IntParse::kTooLarge;
  if (result.ec != std::errc()) return IntParse::kBad;
  *out = static_cast<int64_t>(negative ? 0 - magnitude : magnitude);
  return IntParse::kOk;
}

Value IntOfDouble(double d, const Value& fallback) {
  if (std::isnan(d) || std::isinf(d)) return fallback;
  if (!(d > -9.2233720368547758e18 && d < 9.2233720368547758e18)) {
    Fail("an integer grew past 64 bits, which chat templates here do not support");
  }
  return Value::Int(static_cast<int64_t>(d));
}

Value IntFilter(Runtime&, const Value& self, CallArgs& args) {
  const Arguments a("int", args, {"default", "base"});
  const Value fallback = a.Or(0, Value::Int(0));
  if (self.IsIntegral()) return Value::Int(self.integer());
  if (self.Is(Kind::kFloat)) {
    if (std::isinf(self.real())) Fail("cannot convert float infinity to integer");
    return IntOfDouble(self.real(), fallback);
  }
  if (self.IsUndefined()) FailUndefined(self);
  if (!self.IsString()) return fallback;
  int64_t value = 0;
  switch (ParseInt(Text(self), a.Int(1, 10), &value)) {
    case IntParse::kOk:
      return Value::Int(value);
    case IntParse::kTooLarge:
      Fail("an integer grew past 64 bits, which chat templates here do not support");
    case IntParse::kBad:
      break;
  }
  double real = 0;
  return ParseFloat(Text(self), &real) ? IntOfDouble(real, fallback) : fallback;
}

Value FloatFilter(Runtime&, const Value& self, CallArgs& args) {
  const Arguments a("float", args, {"default"});
  if (self.IsNumber()) return Value::Float(self.AsDouble());
  if (self.IsUndefined()) FailUndefined(self);
  double real = 0;
  if (self.IsString() && ParseFloat(Text(self), &real)) return Value::Float(real);
  return a.Or(0, Value::Float(0.0));
}

Value Abs(Runtime&, const Value& self, CallArgs& args) {
  NoArguments("abs", args);
  if (self.Is(Kind::kFloat)) return Value::Float(std::fabs(self.real()));
  if (self.IsIntegral()) return self.integer() < 0 ? Negate(self) : Positive(self);
  if (self.IsUndefined()) FailUndefined(self);
  Fail("bad operand type for abs(): '" + std::string(TypeName(self)) + "'");
}

Value RoundCommon(Runtime& rt, const Value& v, int64_t precision) {
  if (v.IsIntegral()) {
    if (precision >= 0) return Value::Int(v.integer());
    if (precision < -18) return Value::Int(0);
    // To the nearest multiple of a power of ten, ties to even, as int.__round__.
    const int64_t unit =
        Binary(rt, BinaryOp::kPow, Value::Int(10), Value::Int(-precision)).integer();
    const int64_t quotient = Binary(rt, BinaryOp::kFloorDiv, v, Value::Int(unit)).integer();
    const int64_t rest = v.integer() - quotient * unit;
    const bool up = rest > unit / 2 || (rest * 2 == unit && (quotient & 1) != 0);
    return Binary(rt, BinaryOp::kMul, Value::Int(quotient + (up ? 1 : 0)), Value::Int(unit));
  }
  const double d = v.real();
  if (std::isnan(d) || std::isinf(d) || precision > 300) return v;
  if (precision < -308) return Value::Float(std::copysign(0.0, d));
  if (precision < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-precision));
    return Value::Float(std::nearbyint(d / unit) * unit);
  }
  // printf rounds the exact binary value correctly, ties to even.
  char buffer[700];
  const int length = std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), d);
  double rounded = 0;
  std::from_chars(buffer, buffer + length, rounded);
  return Value::Float(rounded);
}

Value Round(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("round", args, {"precision", "method"});
  const std::string_view method = a.Has(1) ? a.String(1) : "common";
  if (method != "common" && method != "ceil" && method != "floor") {
    Fail("method must be common, ceil or floor");
  }
  if (self.IsUndefined()) FailUndefined(self);
  if (!self.IsNumber()) Fail("type " + std::string(TypeName(self)) + " cannot be rounded");
  const int64_t precision = a.Int(0, 0);
  if (method == "common") return RoundCommon(rt, self, precision);
  const Value scale = Binary(rt, BinaryOp::kPow, Value::Int(10), Value::Int(precision));
  const double scaled = Binary(rt, BinaryOp::kMul, self, scale).AsDouble();
  const double whole = method == "ceil" ? std::ceil(scaled) : std::floor(scaled);
  if (std::isnan(whole) || std::isinf(whole)) Fail("cannot round infinity or NaN");
  return Value::Float(whole / scale.AsDouble());
}

Value ToJsonFilter(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = a.Flag(0, false);
  style.sort_keys = a.Flag(3, false);
  if (a.HasSome(1)) {
    style.pretty = true;
    style.item_separator = ",";
    if (a[1].IsString()) {
      style.indent = std::string(Text(a[1]));
    } else {
      const int64_t width = a.Int(1, 0);
      rt.Need(width > 0 ? static_cast<size_t>(width) : 0);
      style.indent.assign(width > 0 ? static_cast<size_t>(width) : 0, ' ');
    }
  }
  if (a.HasSome(2)) {
    const Values pair = ToValues(rt, a[2]);
    if (pair.size() != 2) Fail("separators must be two strings");
    style.item_separator = std::string(RequireText(pair[0], "a separator"));
    style.key_separator = std::string(RequireText(pair[1], "a separator"));
  }
  return rt.String(ToJson(rt, self, style));
}

Value AttrFilter(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("attr", args, {"name"}, 1);
  const std::string_view name = a.String(0);
  if (!self.IsDict()) return GetAttribute(rt, self, name);
  const Value method = FindMethod(rt, self, name);
  if (!method.IsMissing()) return method;
  return rt.Undefined("'dict object' has no attribute " + ReprString(name));
}

constexpr BuiltinEntry kFilters[] = {
    {"abs", Abs},
    {"attr", AttrFilter},
    {"capitalize", CapitalizeFilter},
    {"center", CenterFilter},
    {"d", Default},
    {"default", Default},
    {"e", EscapeFilter},
    {"escape", EscapeFilter},
    {"float", FloatFilter},
    {"forceescape", ForceEscape},
    {"format", FormatFilter},
    {"indent", Indent},
    {"int", IntFilter},
    {"lower", Lower},
    {"replace", ReplaceFilter},
    {"round", Round},
    {"safe", Safe},
    {"string", StringFilter},
    {"title", Title},
    {"tojson", ToJsonFilter},
    {"trim", Trim},
    {"truncate", Truncate},
    {"upper", Upper},
    {"wordcount", WordCount},
};

}  // namespace

const BuiltinEntry* FindTextFilter(std::string_view name) { return FindIn(kFilters, name); }

}  // namespace sluice::jinja
