#include "engine/text/template/format.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "engine/text/template/operators.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

constexpr int64_t kMaxWidth = 100000;
constexpr int64_t kMaxPrecision = 1000;

// What a conversion asks for; shared by both notations.
struct Spec {
  std::string fill = " ";
  char align = 0;  // '<' '>' '^' '=' or 0 for the type's own
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  char group = 0;  // ',' or '_'
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

void Pad(std::string_view sign, std::string_view body, const Spec& spec, char default_align,
         TextBuilder* out) {
  const size_t length = CountCharacters(body) + sign.size();
  const auto width = static_cast<size_t>(spec.width);
  const size_t missing = width > length ? width - length : 0;
  const char align = spec.align != 0 ? spec.align : default_align;
  size_t before = align == '>' || align == '=' ? missing : align == '^' ? missing / 2 : 0;
  const size_t after = missing - before;
  if (align == '=') {
    out->Append(sign);
    sign = {};
  }
  for (; before > 0; --before) out->Append(spec.fill);
  out->Append(sign);
  out->Append(body);
  for (size_t i = 0; i < after; ++i) out->Append(spec.fill);
}

std::string Group(std::string digits, char separator, size_t every) {
  if (separator == 0) return digits;
  for (size_t i = digits.size(); i > every; i -= every) {
    digits.insert(i - every, 1, separator);
  }
  return digits;
}

std::string Uppercase(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  return text;
}

std::string_view SignOf(bool negative, char rule) {
  return negative ? "-" : rule == '+' ? "+" : rule == ' ' ? " " : "";
}

void AppendInt(int64_t value, const Spec& spec, TextBuilder* out) {
  const bool negative = value < 0;
  const uint64_t magnitude =
      negative ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  const int base = spec.type == 'x' || spec.type == 'X' ? 16
                   : spec.type == 'o'                   ? 8
                   : spec.type == 'b'                   ? 2
                                                        : 10;
  char buffer[80];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), magnitude, base);
  std::string digits(buffer, end.ptr);
  if (spec.type == 'X') digits = Uppercase(digits);
  if (spec.precision > static_cast<int64_t>(digits.size())) {
    digits.insert(0, static_cast<size_t>(spec.precision) - digits.size(), '0');
  }
  digits = Group(std::move(digits), spec.group, base == 10 ? 3 : 4);
  std::string sign(SignOf(negative, spec.sign));
  if (spec.alternate && base != 10) {
    sign += '0';
    sign += spec.type;
  }
  Pad(sign, digits, spec, '>', out);
}

// Digits of |value| in the style of printf's f, e or g.
std::string FloatDigits(double magnitude, char style, int precision, bool alternate) {
  if (std::isinf(magnitude)) return "inf";
  if (std::isnan(magnitude)) return "nan";
  const char format[] = {'%',
                         alternate ? '#' : '.',
                         alternate ? '.' : '*',
                         alternate ? '*' : style,
                         alternate ? style : '\0',
                         '\0'};
  std::array<char, 1500> buffer{};
  const int length = std::snprintf(buffer.data(), buffer.size(), format, precision, magnitude);
  return std::string(buffer.data(), static_cast<size_t>(std::max(length, 0)));
}

void AppendFloat(double value, const Spec& spec, TextBuilder* out) {
  const bool negative = std::signbit(value) && !std::isnan(value);
  const double magnitude = std::fabs(value);
  const auto precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
  std::string body;
  switch (spec.type) {
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
      body = FloatDigits(magnitude, spec.type == 'F' ? 'f' : spec.type, precision, spec.alternate);
      break;
    case '%':
      body = FloatDigits(magnitude * 100, 'f', precision, spec.alternate) + "%";
      break;
    case 0:
      if (spec.precision >= 0) {
        body = FloatDigits(magnitude, 'g', precision == 0 ? 1 : precision, spec.alternate);
        if (body.find_first_of(".en") == std::string::npos) body += ".0";
      } else {
        body = FloatRepr(magnitude);
      }
      break;
    default:
      Fail(std::string("unknown format code '") + spec.type + "' for a float");
  }
  if (spec.group != 0) {
    const size_t whole = std::min(body.find_first_of(".e%"), body.size());
    body = Group(body.substr(0, whole), spec.group, 3) + body.substr(whole);
  }
  Pad(SignOf(negative, spec.sign), body, spec, '>', out);
}

std::string_view Truncated(std::string_view text, int64_t code_points) {
  if (code_points < 0) return text;
  return text.substr(0, OffsetOf(text, static_cast<size_t>(code_points)));
}

// Reads digits at *pos; -1 when there are none.
int64_t ReadNumber(std::string_view text, size_t* pos, int64_t limit, std::string_view what) {
  if (*pos >= text.size() || !IsDecimal(static_cast<unsigned char>(text[*pos]))) return -1;
  int64_t number = 0;
  while (*pos < text.size() && text[*pos] >= '0' && text[*pos] <= '9') {
    number = number * 10 + (text[(*pos)++] - '0');
    if (number > limit) Fail("the " + std::string(what) + " of a format is too large");
  }
  return number;
}

// ---- '%' formatting ----

class PercentFormatter {
 public:
  PercentFormatter(Runtime& rt, const Value& text, const Value& argument)
      : rt_(rt), text_(Text(text)), markup_(text.As<StringObject>().markup), out_(rt) {
    if (argument.Is(Kind::kTuple)) {
      arguments_ = argument.As<ListObject>().items;
    } else {
      arguments_ = {argument};
      if (argument.IsDict()) mapping_ = argument;
      // Whatever has __getitem__ may stay unused.
      may_ignore_ = argument.IsDict() || argument.Is(Kind::kList) || argument.Is(Kind::kRange) ||
                    argument.IsUndefined();
    }
  }

  Value Run() {
    size_t pos = 0;
    while (pos < text_.size()) {
      const size_t percent = std::min(text_.find('%', pos), text_.size());
      out_.Append(text_.substr(pos, percent - pos));
      pos = percent;
      if (pos < text_.size()) Conversion(&pos);
    }
    if (next_ < arguments_.size() && !may_ignore_) {
      Fail("not all arguments converted during string formatting");
    }
    return rt_.String(out_.Take(), markup_);
  }

 private:
  Value NextArgument() {
    if (next_ >= arguments_.size()) Fail("not enough arguments for format string");
    return arguments_[next_++];
  }

  void Conversion(size_t* pos) {
    rt_.Step();
    ++*pos;
    Value argument;
    if (*pos < text_.size() && text_[*pos] == '(') {
      const size_t close = text_.find(')', *pos);
      if (close == std::string_view::npos) Fail("incomplete format key");
      if (mapping_.IsMissing()) Fail("format requires a mapping");
      const std::string_view key = text_.substr(*pos + 1, close - *pos - 1);
      const Value* found = mapping_.As<DictObject>().Find(key);
      if (found == nullptr) Fail("the format string names a missing key " + ReprString(key));
      argument = *found;
      *pos = close + 1;
    }
    Spec spec;
    bool left = false;
    for (; *pos < text_.size(); ++*pos) {
      const char flag = text_[*pos];
      if (flag == '-') {
        left = true;
      } else if (flag == '+') {
        spec.sign = '+';
      } else if (flag == ' ') {
        if (spec.sign != '+') spec.sign = ' ';
      } else if (flag == '#') {
        spec.alternate = true;
      } else if (flag == '0') {
        spec.zero = true;
      } else {
        break;
      }
    }
    ReadWidth(pos, &spec, &left);
    if (left) {
      spec.align = '<';
    } else if (spec.zero) {
      spec.align = '=';
      spec.fill = "0";
    }
    while (*pos < text_.size() &&
           (text_[*pos] == 'l' || text_[*pos] == 'h' || text_[*pos] == 'L')) {
      ++*pos;
    }
    if (*pos >= text_.size()) Fail("incomplete format");
    spec.type = text_[(*pos)++];
    if (spec.type == '%') return out_.Append("%");
    if (argument.IsMissing()) argument = NextArgument();
    Convert(argument, spec, left);
  }

  void ReadWidth(size_t* pos, Spec* spec, bool* left) {
    if (*pos < text_.size() && text_[*pos] == '*') {
      ++*pos;
      spec->width = RequireInt(NextArgument(), "the width of a format");
      if (spec->width < 0) {
        *left = true;
        spec->width = spec->width < -kMaxWidth ? kMaxWidth + 1 : -spec->width;
      }
      if (spec->width > kMaxWidth) Fail("the width of a format is too large");
    } else {
      spec->width = std::max<int64_t>(0, ReadNumber(text_, pos, kMaxWidth, "width"));
    }
    if (*pos < text_.size() && text_[*pos] == '.') {
      ++*pos;
      if (*pos < text_.size() && text_[*pos] == '*') {
        ++*pos;
        spec->precision = RequireInt(NextArgument(), "the precision of a format");
        if (spec->precision > kMaxPrecision) Fail("the precision of a format is too large");
        spec->precision = std::max<int64_t>(0, spec->precision);
      } else {
        spec->precision = std::max<int64_t>(0, ReadNumber(text_, pos, kMaxPrecision, "precision"));
      }
    }
  }

  void Convert(const Value& argument, Spec spec, bool left) {
    switch (spec.type) {
      case 's':
      case 'r':
      case 'a': {
        if (spec.type == 'a') FailUnsupported("the %a conversion");
        TextBuilder text(rt_);
        if (spec.type == 's') {
          AppendStr(argument, &text);
        } else {
          AppendRepr(argument, &text);
        }
        Value body = rt_.String(text.Take(), argument.IsString() && spec.type == 's' &&
                                                 argument.As<StringObject>().markup);
        if (markup_) body = Escape(rt_, body);
        spec.align = left ? '<' : '>';
        spec.fill = " ";
        return Pad("", Truncated(Text(body), spec.precision), spec, '>', &out_);
      }
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o': {
        const bool decimal = spec.type == 'd' || spec.type == 'i' || spec.type == 'u';
        if (decimal) spec.type = 'd';
        if (decimal && argument.Is(Kind::kFloat)) {
          const double whole = std::trunc(argument.real());
          if (!(whole > -9.2e18 && whole < 9.2e18)) Fail("a float is too large for %d");
          return AppendInt(static_cast<int64_t>(whole), spec, &out_);
        }
        if (argument.IsUndefined()) FailUndefined(argument);
        if (!argument.IsIntegral()) {
          Fail(std::string("%") + spec.type + " format: a number is required, not " +
               std::string(TypeName(argument)));
        }
        return AppendInt(argument.integer(), spec, &out_);
      }
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        if (argument.IsUndefined()) FailUndefined(argument);
        if (!argument.IsNumber()) {
          Fail("must be real number, not " + std::string(TypeName(argument)));
        }
        return AppendFloat(argument.AsDouble(), spec, &out_);
      case 'c': {
        std::string character;
        if (argument.IsString() && Length(argument) == 1) {
          character = std::string(Text(argument));
        } else {
          const int64_t code = RequireInt(argument, "%c");
          if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
            Fail("%c arg not in range");
          }
          AppendUtf8(static_cast<char32_t>(code), &character);
        }
        spec.align = left ? '<' : '>';
        spec.fill = " ";
        return Pad("", character, spec, '>', &out_);
      }
      default:
        Fail(std::string("unsupported format character '") + spec.type + "'");
    }
  }

  Runtime& rt_;
  std::string_view text_;
  bool markup_;
  TextBuilder out_;
  Values arguments_;
  Value mapping_;
  bool may_ignore_ = false;
  size_t next_ = 0;
};

// ---- str.format ----

Spec ParseSpec(std::string_view text) {
  Spec spec;
  size_t pos = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!text.empty()) {
    size_t after_first = 0;
    DecodeNext(text, &after_first);
    if (after_first < text.size() && is_align(text[after_first])) {
      spec.fill = std::string(text.substr(0, after_first));
      spec.align = text[after_first];
      pos = after_first + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      pos = 1;
    }
  }
  const auto take = [&](char c) {
    if (pos >= text.size() || text[pos] != c) return false;
    ++pos;
    return true;
  };
  if (take('+')) {
    spec.sign = '+';
  } else if (take(' ')) {
    spec.sign = ' ';
  } else {
    take('-');
  }
  spec.alternate = take('#');
  if (take('0')) {
    spec.zero = true;
    if (spec.align == 0) {
      spec.align = '=';
      spec.fill = "0";
    }
  }
  spec.width = std::max<int64_t>(0, ReadNumber(text, &pos, kMaxWidth, "width"));
  if (take(',')) {
    spec.group = ',';
  } else if (take('_')) {
    spec.group = '_';
  }
  if (take('.')) {
    spec.precision = ReadNumber(text, &pos, kMaxPrecision, "precision");
    if (spec.precision < 0) Fail("format specifier missing precision");
  }
  if (pos < text.size()) spec.type = text[pos++];
  if (pos < text.size()) Fail("invalid format specifier " + ReprString(text));
  return spec;
}

class BraceFormatter {
 public:
  BraceFormatter(Runtime& rt, const Value& text, const CallArgs& args)
      : rt_(rt), args_(args), markup_(text.As<StringObject>().markup) {}

  std::string Run(std::string_view text, int level) {
    if (level > 2) Fail("max string recursion exceeded");
    TextBuilder out(rt_);
    size_t pos = 0;
    while (pos < text.size()) {
      const size_t brace = std::min(text.find_first_of("{}", pos), text.size());
      out.Append(text.substr(pos, brace - pos));
      pos = brace;
      if (pos == text.size()) break;
      if (pos + 1 < text.size() && text[pos + 1] == text[pos]) {
        out.Append(text.substr(pos, 1));
        pos += 2;
        continue;
      }
      if (text[pos] == '}') Fail("single '}' encountered in format string");
      Field(text, &pos, level, &out);
    }
    return out.Take();
  }

 private:
  void Field(std::string_view text, size_t* pos, int level, TextBuilder* out) {
    rt_.Step();
    size_t end = *pos + 1;
    int depth = 1;
    for (; end < text.size(); ++end) {
      if (text[end] == '{') ++depth;
      if (text[end] == '}' && --depth == 0) break;
    }
    if (depth != 0) Fail("expected '}' before end of string");
    std::string_view field = text.substr(*pos + 1, end - *pos - 1);
    *pos = end + 1;
    size_t name_end = 0;
    bool bracket = false;
    for (; name_end < field.size(); ++name_end) {
      const char c = field[name_end];
      if (c == '[') bracket = true;
      if (c == ']') bracket = false;
      if (!bracket && (c == '!' || c == ':')) break;
    }
    Value value = Lookup(field.substr(0, name_end));
    std::string_view rest = field.substr(name_end);
    char conversion = 0;
    if (!rest.empty() && rest[0] == '!') {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':')) {
        Fail("expected ':' after conversion specifier");
      }
      conversion = rest[1];
      rest = rest.substr(2);
    }
    if (conversion == 'r') {
      TextBuilder repr(rt_);
      AppendRepr(value, &repr);
      value = rt_.String(repr.Take());
    } else if (conversion == 's') {
      value = rt_.String(Str(rt_, value));
    } else if (conversion != 0) {
      FailUnsupported(std::string("the conversion !") + conversion + " of a format string");
    }
    const std::string spec = rest.empty() ? "" : Run(rest.substr(1), level + 1);
    Format(value, spec, out);
  }

  Value Lookup(std::string_view name) {
    const size_t first_end = std::min(name.find_first_of(".["), name.size());
    const std::string_view first = name.substr(0, first_end);
    Value value;
    const bool numeric =
        !first.empty() && first.find_first_not_of("0123456789") == std::string_view::npos;
    if (first.empty() || numeric) {
      size_t index = automatic_;
      if (numeric) {
        size_t at = 0;
        index = static_cast<size_t>(ReadNumber(first, &at, kMaxWidth, "index"));
        numbered_ = true;
      } else {
        ++automatic_;
      }
      if (numbered_ && automatic_ > 0) {
        Fail("cannot mix automatic and manual field numbering in a format string");
      }
      if (index >= args_.positional.size()) Fail("a format string names an argument out of range");
      value = args_.positional[index];
    } else {
      for (const auto& [key, held] : args_.named) {
        if (key == first) value = held;
      }
      if (value.IsMissing()) Fail("a format string names a missing key " + ReprString(first));
    }
    size_t pos = first_end;
    while (pos < name.size()) {
      if (name[pos] == '.') {
        const size_t end = std::min(name.find_first_of(".[", pos + 1), name.size());
        value = GetAttribute(rt_, value, name.substr(pos + 1, end - pos - 1));
        pos = end;
      } else if (name[pos] == '[') {
        const size_t close = name.find(']', pos);
        if (close == std::string_view::npos) Fail("missing ']' in format string");
        const std::string_view key = name.substr(pos + 1, close - pos - 1);
        const bool index = !key.empty() && key.size() < 10 &&
                           key.find_first_not_of("0123456789") == std::string_view::npos;
        value = GetItem(
            rt_, value,
            index ? Value::Int(std::stoll(std::string(key))) : rt_.String(std::string(key)));
        pos = close + 1;
      } else {
        Fail("only '.' or '[' may follow ']' in format field specifier");
      }
    }
    return value;
  }

  void Format(const Value& value, std::string_view spec_text, TextBuilder* out) {
    if (spec_text.empty()) {
      const Value text = markup_ ? Escape(rt_, value) : value;
      return AppendStr(text, out);
    }
    Spec spec = ParseSpec(spec_text);
    if (value.IsString()) {
      if (spec.type != 0 && spec.type != 's') {
        Fail(std::string("unknown format code '") + spec.type + "' for a string");
      }
      if (spec.sign != '-' || spec.alternate || spec.group != 0) {
        Fail("a sign, '#' or ',' is not allowed in a string format specifier");
      }
      if (spec.align == '=') {
        if (!spec.zero) Fail("'=' alignment not allowed in string format specifier");
        spec.align = '<';
      }
      const Value text = markup_ ? Escape(rt_, value) : value;
      return Pad("", Truncated(Text(text), spec.precision), spec, '<', out);
    }
    if (value.IsIntegral()) {
      const bool plain_bool = value.Is(Kind::kBool) && spec.type == 0;
      if (plain_bool) spec.type = 'd';
      switch (spec.type) {
        case 0:
        case 'd':
        case 'n':
        case 'x':
        case 'X':
        case 'o':
        case 'b':
          if (spec.precision >= 0) Fail("precision not allowed in integer format specifier");
          if (spec.zero && spec.group != 0) FailUnsupported("zero padding with digit groups");
          return AppendInt(value.integer(), spec, out);
        case 'e':
        case 'E':
        case 'f':
        case 'F':
        case 'g':
        case 'G':
        case '%':
          return AppendFloat(value.AsDouble(), spec, out);
        default:
          Fail(std::string("unknown format code '") + spec.type + "' for an integer");
      }
    }
    if (value.Is(Kind::kFloat)) {
      if (spec.zero && spec.group != 0) FailUnsupported("zero padding with digit groups");
      return AppendFloat(value.real(), spec, out);
    }
    Fail("unsupported format string passed to " + std::string(TypeName(value)) + ".__format__");
  }

  Runtime& rt_;
  const CallArgs& args_;
  bool markup_;
  size_t automatic_ = 0;
  bool numbered_ = false;
};

}  // namespace

Value FormatPercent(Runtime& rt, const Value& text, const Value& argument) {
  return PercentFormatter(rt, text, argument).Run();
}

Value FormatBraces(Runtime& rt, const Value& text, const CallArgs& args) {
  return rt.String(BraceFormatter(rt, text, args).Run(Text(text), 0),
                   text.As<StringObject>().markup);
}

}  // namespace sluice::jinja
