#include "engine/text/template/text_search.h"

#include <algorithm>
#include <vector>

#include "engine/text/template/operators.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

// Below this length the library's search is used: at most this many comparisons per byte.
constexpr size_t kLongNeedle = 16;

// Calls visit(offset) for each occurrence, overlapping ones too, until it returns false.
template <class Visit>
void ScanLong(Runtime& rt, std::string_view text, std::string_view needle, size_t from,
              const Visit& visit) {
  rt.Need(needle.size() * sizeof(size_t));
  std::vector<size_t> border(needle.size(), 0);
  for (size_t i = 1, k = 0; i < needle.size(); ++i) {
    while (k > 0 && needle[i] != needle[k]) k = border[k - 1];
    if (needle[i] == needle[k]) ++k;
    border[i] = k;
  }
  for (size_t i = from, k = 0; i < text.size(); ++i) {
    while (k > 0 && text[i] != needle[k]) k = border[k - 1];
    if (text[i] == needle[k]) ++k;
    if (k == needle.size()) {
      if (!visit(i + 1 - k)) return;
      k = border[k - 1];
    }
  }
}

Value Piece(Runtime& rt, std::string_view text, bool markup) {
  return rt.String(std::string(text), markup);
}

Values SplitSpace(Runtime& rt, std::string_view text, size_t limit, bool markup) {
  Values parts;
  text = StripSpace(text, true, false);
  while (!text.empty()) {
    if (parts.size() == limit) {
      parts.push_back(Piece(rt, text, markup));
      break;
    }
    size_t end = 0;
    while (end < text.size()) {
      size_t next = end;
      if (IsSpace(DecodeNext(text, &next))) break;
      end = next;
    }
    parts.push_back(Piece(rt, text.substr(0, end), markup));
    text = StripSpace(text.substr(end), true, false);
  }
  return parts;
}

Values SplitSpaceRight(Runtime& rt, std::string_view text, size_t limit, bool markup) {
  Values parts;
  text = StripSpace(text, false, true);
  while (!text.empty()) {
    if (parts.size() == limit) {
      parts.push_back(Piece(rt, text, markup));
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      const size_t previous = PreviousCharacter(text, begin);
      size_t at = previous;
      if (IsSpace(DecodeNext(text, &at))) break;
      begin = previous;
    }
    parts.push_back(Piece(rt, text.substr(begin), markup));
    text = StripSpace(text.substr(0, begin), false, true);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

size_t FindText(Runtime& rt, std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return kNotFound;
  if (needle.size() < kLongNeedle) {
    const size_t found = text.find(needle, from);
    rt.Work((std::min(found, text.size()) - from) * (needle.size() > 1 ? 4 : 1));
    return found == std::string_view::npos ? kNotFound : found;
  }
  size_t found = kNotFound;
  ScanLong(rt, text, needle, from, [&](size_t at) {
    found = at;
    return false;
  });
  rt.Work((std::min(found, text.size()) - from + needle.size()) * 2);
  return found;
}

size_t FindLastText(Runtime& rt, std::string_view text, std::string_view needle) {
  rt.Work(text.size() * 4);
  if (needle.size() < kLongNeedle) {
    const size_t found = text.rfind(needle);
    return found == std::string_view::npos ? kNotFound : found;
  }
  size_t found = kNotFound;
  ScanLong(rt, text, needle, 0, [&](size_t at) {
    found = at;
    return true;
  });
  return found;
}

std::string ReplaceText(Runtime& rt, std::string_view text, std::string_view from,
                        std::string_view to, int64_t count) {
  TextBuilder out(rt);
  size_t left = count < 0 ? kNotFound : static_cast<size_t>(count);
  size_t pos = 0;
  if (from.empty()) {
    // Between all characters and at both ends.
    while (left > 0) {
      --left;
      out.Append(to);
      rt.Step();
      if (pos >= text.size()) return out.Take();
      const size_t begin = pos;
      DecodeNext(text, &pos);
      out.Append(text.substr(begin, pos - begin));
    }
    out.Append(text.substr(pos));
    return out.Take();
  }
  for (; left > 0; --left) {
    const size_t at = FindText(rt, text, from, pos);
    if (at == kNotFound) break;
    rt.Step();
    out.Append(text.substr(pos, at - pos));
    out.Append(to);
    pos = at + from.size();
  }
  out.Append(text.substr(pos));
  return out.Take();
}

Value SplitText(Runtime& rt, const Value& text, const Value& separator, int64_t limit,
                bool from_right) {
  const bool markup = text.As<StringObject>().markup;
  const std::string_view source = Text(text);
  rt.Work(source.size());
  const size_t most = limit < 0 ? kNotFound : static_cast<size_t>(limit);
  if (separator.IsMissing() || separator.IsNone()) {
    return rt.List(from_right ? SplitSpaceRight(rt, source, most, markup)
                              : SplitSpace(rt, source, most, markup));
  }
  const std::string_view sep = RequireText(separator, "the separator of split()");
  if (sep.empty()) Fail("empty separator");
  Values parts;
  if (!from_right) {
    size_t pos = 0;
    while (parts.size() < most) {
      const size_t at = FindText(rt, source, sep, pos);
      if (at == kNotFound) break;
      rt.Step();
      parts.push_back(Piece(rt, source.substr(pos, at - pos), markup));
      pos = at + sep.size();
    }
    parts.push_back(Piece(rt, source.substr(pos), markup));
    return rt.List(std::move(parts));
  }
  std::string_view rest = source;
  while (parts.size() < most) {
    rt.Step();
    // Only the tail is searched, so that many pieces stay linear for short separators.
    const size_t at = sep.size() < kLongNeedle ? rest.rfind(sep) : FindLastText(rt, rest, sep);
    if (at == kNotFound) break;
    rt.Work((rest.size() - at) * 4);
    parts.push_back(Piece(rt, rest.substr(at + sep.size()), markup));
    rest = rest.substr(0, at);
  }
  parts.push_back(Piece(rt, rest, markup));
  std::reverse(parts.begin(), parts.end());
  return rt.List(std::move(parts));
}

}  // namespace sluice::jinja
