#include "engine/text/template/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

namespace sluice::jinja {
namespace {

// Code points whose uppercase or titlecase is more than one code point (SpecialCasing.txt,
// unconditional mappings). Sorted.
struct SpecialCase {
  char32_t code_point;
  std::u32string_view upper;
  std::u32string_view title;
};
constexpr SpecialCase kSpecialCases[] = {
    {U'\u00df', U"\u0053\u0053", U"\u0053\u0073"},
    {U'\u0149', U"\u02bc\u004e", U"\u02bc\u004e"},
    {U'\u01f0', U"\u004a\u030c", U"\u004a\u030c"},
    {U'\u0390', U"\u0399\u0308\u0301", U"\u0399\u0308\u0301"},
    {U'\u03b0', U"\u03a5\u0308\u0301", U"\u03a5\u0308\u0301"},
    {U'\u0587', U"\u0535\u0552", U"\u0535\u0582"},
    {U'\u1e96', U"\u0048\u0331", U"\u0048\u0331"},
    {U'\u1e97', U"\u0054\u0308", U"\u0054\u0308"},
    {U'\u1e98', U"\u0057\u030a", U"\u0057\u030a"},
    {U'\u1e99', U"\u0059\u030a", U"\u0059\u030a"},
    {U'\u1e9a', U"\u0041\u02be", U"\u0041\u02be"},
    {U'\u1f50', U"\u03a5\u0313", U"\u03a5\u0313"},
    {U'\u1f52', U"\u03a5\u0313\u0300", U"\u03a5\u0313\u0300"},
    {U'\u1f54', U"\u03a5\u0313\u0301", U"\u03a5\u0313\u0301"},
    {U'\u1f56', U"\u03a5\u0313\u0342", U"\u03a5\u0313\u0342"},
    {U'\u1f80', U"\u1f08\u0399", U"\u1f88"},
    {U'\u1f81', U"\u1f09\u0399", U"\u1f89"},
    {U'\u1f82', U"\u1f0a\u0399", U"\u1f8a"},
    {U'\u1f83', U"\u1f0b\u0399", U"\u1f8b"},
    {U'\u1f84', U"\u1f0c\u0399", U"\u1f8c"},
    {U'\u1f85', U"\u1f0d\u0399", U"\u1f8d"},
    {U'\u1f86', U"\u1f0e\u0399", U"\u1f8e"},
    {U'\u1f87', U"\u1f0f\u0399", U"\u1f8f"},
    {U'\u1f88', U"\u1f08\u0399", U"\u1f88"},
    {U'\u1f89', U"\u1f09\u0399", U"\u1f89"},
    {U'\u1f8a', U"\u1f0a\u0399", U"\u1f8a"},
    {U'\u1f8b', U"\u1f0b\u0399", U"\u1f8b"},
    {U'\u1f8c', U"\u1f0c\u0399", U"\u1f8c"},
    {U'\u1f8d', U"\u1f0d\u0399", U"\u1f8d"},
    {U'\u1f8e', U"\u1f0e\u0399", U"\u1f8e"},
    {U'\u1f8f', U"\u1f0f\u0399", U"\u1f8f"},
    {U'\u1f90', U"\u1f28\u0399", U"\u1f98"},
    {U'\u1f91', U"\u1f29\u0399", U"\u1f99"},
    {U'\u1f92', U"\u1f2a\u0399", U"\u1f9a"},
    {U'\u1f93', U"\u1f2b\u0399", U"\u1f9b"},
    {U'\u1f94', U"\u1f2c\u0399", U"\u1f9c"},
    {U'\u1f95', U"\u1f2d\u0399", U"\u1f9d"},
    {U'\u1f96', U"\u1f2e\u0399", U"\u1f9e"},
    {U'\u1f97', U"\u1f2f\u0399", U"\u1f9f"},
    {U'\u1f98', U"\u1f28\u0399", U"\u1f98"},
    {U'\u1f99', U"\u1f29\u0399", U"\u1f99"},
    {U'\u1f9a', U"\u1f2a\u0399", U"\u1f9a"},
    {U'\u1f9b', U"\u1f2b\u0399", U"\u1f9b"},
    {U'\u1f9c', U"\u1f2c\u0399", U"\u1f9c"},
    {U'\u1f9d', U"\u1f2d\u0399", U"\u1f9d"},
    {U'\u1f9e', U"\u1f2e\u0399", U"\u1f9e"},
    {U'\u1f9f', U"\u1f2f\u0399", U"\u1f9f"},
    {U'\u1fa0', U"\u1f68\u0399", U"\u1fa8"},
    {U'\u1fa1', U"\u1f69\u0399", U"\u1fa9"},
    {U'\u1fa2', U"\u1f6a\u0399", U"\u1faa"},
    {U'\u1fa3', U"\u1f6b\u0399", U"\u1fab"},
    {U'\u1fa4', U"\u1f6c\u0399", U"\u1fac"},
    {U'\u1fa5', U"\u1f6d\u0399", U"\u1fad"},
    {U'\u1fa6', U"\u1f6e\u0399", U"\u1fae"},
    {U'\u1fa7', U"\u1f6f\u0399", U"\u1faf"},
    {U'\u1fa8', U"\u1f68\u0399", U"\u1fa8"},
    {U'\u1fa9', U"\u1f69\u0399", U"\u1fa9"},
    {U'\u1faa', U"\u1f6a\u0399", U"\u1faa"},
    {U'\u1fab', U"\u1f6b\u0399", U"\u1fab"},
    {U'\u1fac', U"\u1f6c\u0399", U"\u1fac"},
    {U'\u1fad', U"\u1f6d\u0399", U"\u1fad"},
    {U'\u1fae', U"\u1f6e\u0399", U"\u1fae"},
    {U'\u1faf', U"\u1f6f\u0399", U"\u1faf"},
    {U'\u1fb2', U"\u1fba\u0399", U"\u1fba\u0345"},
    {U'\u1fb3', U"\u0391\u0399", U"\u1fbc"},
    {U'\u1fb4', U"\u0386\u0399", U"\u0386\u0345"},
    {U'\u1fb6', U"\u0391\u0342", U"\u0391\u0342"},
    {U'\u1fb7', U"\u0391\u0342\u0399", U"\u0391\u0342\u0345"},
    {U'\u1fbc', U"\u0391\u0399", U"\u1fbc"},
    {U'\u1fc2', U"\u1fca\u0399", U"\u1fca\u0345"},
    {U'\u1fc3', U"\u0397\u0399", U"\u1fcc"},
    {U'\u1fc4', U"\u0389\u0399", U"\u0389\u0345"},
    {U'\u1fc6', U"\u0397\u0342", U"\u0397\u0342"},
    {U'\u1fc7', U"\u0397\u0342\u0399", U"\u0397\u0342\u0345"},
    {U'\u1fcc', U"\u0397\u0399", U"\u1fcc"},
    {U'\u1fd2', U"\u0399\u0308\u0300", U"\u0399\u0308\u0300"},
    {U'\u1fd3', U"\u0399\u0308\u0301", U"\u0399\u0308\u0301"},
    {U'\u1fd6', U"\u0399\u0342", U"\u0399\u0342"},
    {U'\u1fd7', U"\u0399\u0308\u0342", U"\u0399\u0308\u0342"},
    {U'\u1fe2', U"\u03a5\u0308\u0300", U"\u03a5\u0308\u0300"},
    {U'\u1fe3', U"\u03a5\u0308\u0301", U"\u03a5\u0308\u0301"},
    {U'\u1fe4', U"\u03a1\u0313", U"\u03a1\u0313"},
    {U'\u1fe6', U"\u03a5\u0342", U"\u03a5\u0342"},
    {U'\u1fe7', U"\u03a5\u0308\u0342", U"\u03a5\u0308\u0342"},
    {U'\u1ff2', U"\u1ffa\u0399", U"\u1ffa\u0345"},
    {U'\u1ff3', U"\u03a9\u0399", U"\u1ffc"},
    {U'\u1ff4', U"\u038f\u0399", U"\u038f\u0345"},
    {U'\u1ff6', U"\u03a9\u0342", U"\u03a9\u0342"},
    {U'\u1ff7', U"\u03a9\u0342\u0399", U"\u03a9\u0342\u0345"},
    {U'\u1ffc', U"\u03a9\u0399", U"\u1ffc"},
    {U'\ufb00', U"\u0046\u0046", U"\u0046\u0066"},
    {U'\ufb01', U"\u0046\u0049", U"\u0046\u0069"},
    {U'\ufb02', U"\u0046\u004c", U"\u0046\u006c"},
    {U'\ufb03', U"\u0046\u0046\u0049", U"\u0046\u0066\u0069"},
    {U'\ufb04', U"\u0046\u0046\u004c", U"\u0046\u0066\u006c"},
    {U'\ufb05', U"\u0053\u0054", U"\u0053\u0074"},
    {U'\ufb06', U"\u0053\u0054", U"\u0053\u0074"},
    {U'\ufb13', U"\u0544\u0546", U"\u0544\u0576"},
    {U'\ufb14', U"\u0544\u0535", U"\u0544\u0565"},
    {U'\ufb15', U"\u0544\u053b", U"\u0544\u056b"},
    {U'\ufb16', U"\u054e\u0546", U"\u054e\u0576"},
    {U'\ufb17', U"\u0544\u053d", U"\u0544\u056d"},
};

const SpecialCase* FindSpecialCase(char32_t c) {
  if (c < 0xDF) return nullptr;
  const auto* it = std::lower_bound(
      std::begin(kSpecialCases), std::end(kSpecialCases), c,
      [](const SpecialCase& entry, char32_t value) { return entry.code_point < value; });
  return it != std::end(kSpecialCases) && it->code_point == c ? it : nullptr;
}

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

void AppendAll(std::u32string_view text, std::string* out) {
  for (char32_t c : text) AppendUtf8(c, out);
}

void AppendUpper(char32_t c, std::string* out) {
  if (const SpecialCase* special = FindSpecialCase(c)) return AppendAll(special->upper, out);
  AppendUtf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
}

void AppendTitle(char32_t c, std::string* out) {
  if (const SpecialCase* special = FindSpecialCase(c)) return AppendAll(special->title, out);
  AppendUtf8(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), out);
}

bool IsCased(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return IsUpper(c) || IsLower(c) || IsTitle(c);
}

// Characters that the final-sigma rule skips (Case_Ignorable).
bool IsCaseIgnorable(char32_t c) {
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x387 || c == 0x55F ||
             c == 0x5F4 || c == 0x2018 || c == 0x2019 || c == 0x2024 || c == 0x2027 ||
             c == 0xFE13 || c == 0xFE52 || c == 0xFE55 || c == 0xFF07 || c == 0xFF0E || c == 0xFF1A;
  }
}

// Unicode's Final_Sigma: a cased letter before, none after, skipping case-ignorable characters.
bool IsFinalSigma(std::string_view text, size_t begin, size_t end) {
  bool cased_before = false;
  for (size_t pos = begin; pos > 0;) {
    pos = PreviousCharacter(text, pos);
    size_t at = pos;
    const char32_t c = DecodeNext(text, &at);
    if (IsCaseIgnorable(c)) continue;
    cased_before = IsCased(c);
    break;
  }
  if (!cased_before) return false;
  for (size_t pos = end; pos < text.size();) {
    const char32_t c = DecodeNext(text, &pos);
    if (IsCaseIgnorable(c)) continue;
    return !IsCased(c);
  }
  return true;
}

// Appends the lowercase of the code point in [begin, end) of `text`.
void AppendLower(std::string_view text, size_t begin, size_t end, std::string* out) {
  size_t at = begin;
  const char32_t c = DecodeNext(text, &at);
  if (c < 0x80) {
    out->push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : static_cast<char>(c));
  } else if (c == 0x130) {
    out->append("i\xCC\x87");
  } else if (c == 0x3A3) {
    AppendUtf8(IsFinalSigma(text, begin, end) ? 0x3C2 : 0x3C3, out);
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  }
}

struct Range {
  char32_t first, last;
};

bool InRanges(const Range* begin, const Range* end, char32_t c) {
  return std::any_of(begin, end, [c](const Range& r) { return c >= r.first && c <= r.last; });
}

// Numeric_Type=Digit without being decimal: superscripts, circled digits and the like.
constexpr Range kOtherDigits[] = {
    {0xB2, 0xB3},       {0xB9, 0xB9},       {0x1369, 0x1371},   {0x19DA, 0x19DA},
    {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
    {0x2474, 0x247C},   {0x2488, 0x2490},   {0x24EA, 0x24EA},   {0x24F5, 0x24FD},
    {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},   {0x278A, 0x2792},
    {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A}};

// Letters with a numeric value that ordinary text holds: the CJK numerals.
constexpr char32_t kNumericLetters[] = {
    0x3405, 0x3483, 0x382A, 0x3B4D, 0x4E00, 0x4E03, 0x4E07, 0x4E09, 0x4E5D, 0x4E8C, 0x4E94, 0x4E96,
    0x4EBF, 0x4EC0, 0x4EDF, 0x4EE8, 0x4F0D, 0x4F70, 0x5104, 0x5146, 0x5169, 0x516B, 0x516D, 0x5341,
    0x5343, 0x5344, 0x5345, 0x534C, 0x53C1, 0x53C2, 0x53C3, 0x53C4, 0x56DB, 0x58F1, 0x58F9, 0x5E7A,
    0x5EFE, 0x5EFF, 0x5F0C, 0x5F0D, 0x5F0E, 0x5F10, 0x62FE, 0x634C, 0x67D2, 0x6F06, 0x7396, 0x767E,
    0x8086, 0x842C, 0x8CAE, 0x8CB3, 0x8D30, 0x9621, 0x9646, 0x964C, 0x9678, 0x96F6};

}  // namespace

char32_t DecodeNext(std::string_view text, size_t* pos) {
  const auto lead = static_cast<unsigned char>(text[(*pos)++]);
  if (lead < 0x80) return lead;
  const int extra = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  char32_t c = lead & (0x3F >> extra);
  for (int k = 0; k < extra && *pos < text.size(); ++k) {
    c = c << 6 | (static_cast<unsigned char>(text[(*pos)++]) & 0x3F);
  }
  return c;
}

size_t OffsetOf(std::string_view text, size_t index) {
  size_t pos = 0;
  while (index > 0 && pos < text.size()) {
    DecodeNext(text, &pos);
    --index;
  }
  return pos;
}

bool IsSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsAlpha(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return true;
    default:
      return false;
  }
}

bool IsDecimal(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  return Category(c) == UTF8PROC_CATEGORY_ND;
}

bool IsDigit(char32_t c) {
  return IsDecimal(c) || InRanges(std::begin(kOtherDigits), std::end(kOtherDigits), c);
}

bool IsNumeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const utf8proc_category_t category = Category(c);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO ||
         std::binary_search(std::begin(kNumericLetters), std::end(kNumericLetters), c);
}

bool IsAlnum(char32_t c) { return IsAlpha(c) || IsNumeric(c); }

bool IsUpper(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z';
  return Category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F) ||
         (c >= 0x24B6 && c <= 0x24CF);
}

bool IsLower(char32_t c) {
  if (c < 0x80) return c >= 'a' && c <= 'z';
  return Category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA ||
         (c >= 0x2170 && c <= 0x217F) || (c >= 0x24D0 && c <= 0x24E9);
}

bool IsTitle(char32_t c) { return c >= 0x80 && Category(c) == UTF8PROC_CATEGORY_LT; }

bool IsPrintable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c != 0x7F;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool IsNameStart(char32_t c) {
  if (c < 0x80) return c == '_' || IsAlpha(c);
  return IsAlpha(c) || Category(c) == UTF8PROC_CATEGORY_NL;
}

bool IsNameContinue(char32_t c) {
  if (c < 0x80) return IsNameStart(c) || (c >= '0' && c <= '9');
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return IsNameStart(c) || c == 0xB7;
  }
}

std::string ToUpper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = DecodeNext(text, &pos);
    if (c < 0x80) {
      out.push_back(c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : static_cast<char>(c));
    } else {
      AppendUpper(c, &out);
    }
  }
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    DecodeNext(text, &pos);
    AppendLower(text, begin, pos, &out);
  }
  return out;
}

std::string ToTitle(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool inside_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = DecodeNext(text, &pos);
    if (inside_word) {
      AppendLower(text, begin, pos, &out);
    } else {
      AppendTitle(c, &out);
    }
    inside_word = IsCased(c);
  }
  return out;
}

std::string Capitalize(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = DecodeNext(text, &pos);
    if (begin == 0) {
      AppendTitle(c, &out);
    } else {
      AppendLower(text, begin, pos, &out);
    }
  }
  return out;
}

std::string_view StripSpace(std::string_view text, bool left, bool right) {
  size_t begin = 0;
  size_t end = text.size();
  while (left && begin < end) {
    size_t next = begin;
    if (!IsSpace(DecodeNext(text, &next))) break;
    begin = next;
  }
  while (right && end > begin) {
    const size_t previous = PreviousCharacter(text, end);
    size_t at = previous;
    if (!IsSpace(DecodeNext(text, &at))) break;
    end = previous;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t start = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = DecodeNext(text, &pos);
    if (!IsLineBreak(c)) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.push_back(text.substr(start, (keep_ends ? pos : at) - start));
    start = pos;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::string ReprString(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out(1, quote);
  const auto append_hex = [&out](char32_t c, char letter, int digits) {
    out.push_back('\\');
    out.push_back(letter);
    for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4) out.push_back(kHex[c >> shift & 15]);
  };
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = DecodeNext(text, &pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      AppendUtf8(c, &out);
    } else if (c < 0x100) {
      append_hex(c, 'x', 2);
    } else if (c < 0x10000) {
      append_hex(c, 'u', 4);
    } else {
      append_hex(c, 'U', 8);
    }
  }
  out.push_back(quote);
  return out;
}

}  // namespace sluice::jinja
