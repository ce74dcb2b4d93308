#include "engine/base/utf8.h"

#include <cstdint>
#include <cstring>

namespace sluice {
namespace {

uint8_t ByteAt(std::string_view bytes, size_t i) { return static_cast<uint8_t>(bytes[i]); }

// Length of the run of ASCII bytes that starts at `position`.
size_t AsciiRun(std::string_view bytes, size_t position) {
  size_t i = position;
  while (i + 8 <= bytes.size()) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    if (word & 0x8080808080808080u) break;
    i += 8;
  }
  while (i < bytes.size() && ByteAt(bytes, i) < 0x80) ++i;
  return i - position;
}

}  // namespace

Utf8Step ReadUtf8(std::string_view bytes, size_t position) {
  using Kind = Utf8Step::Kind;
  const uint8_t lead = ByteAt(bytes, position);
  if (lead < 0x80) return {Kind::kCharacter, 1};
  size_t length;
  uint8_t low = 0x80, high = 0xBF;  // what the second byte may be (Unicode table 3-7)
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Kind::kInvalid, 1};
  }
  for (size_t i = 1; i < length; ++i) {
    if (position + i == bytes.size()) return {Kind::kIncomplete, i};
    const uint8_t byte = ByteAt(bytes, position + i);
    if (byte < low || byte > high) return {Kind::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::kCharacter, length};
}

bool IsValidUtf8(std::string_view bytes) {
  size_t i = 0;
  while (true) {
    i += AsciiRun(bytes, i);
    if (i == bytes.size()) return true;
    const Utf8Step step = ReadUtf8(bytes, i);
    if (step.kind != Utf8Step::Kind::kCharacter) return false;
    i += step.length;
  }
}

size_t AppendRepairedUtf8(std::string_view bytes, std::string* out) {
  size_t i = 0;
  while (true) {
    const size_t good_start = i;
    Utf8Step step = {Utf8Step::Kind::kCharacter, 0};
    while (true) {
      i += AsciiRun(bytes, i);
      if (i == bytes.size()) break;
      step = ReadUtf8(bytes, i);
      if (step.kind != Utf8Step::Kind::kCharacter) break;
      i += step.length;
    }
    out->append(bytes.substr(good_start, i - good_start));
    if (i == bytes.size() || step.kind == Utf8Step::Kind::kIncomplete) return i;
    out->append(kReplacementUtf8);
    i += step.length;
  }
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (AppendRepairedUtf8(bytes, &out) < bytes.size()) out.append(kReplacementUtf8);
  return out;
}

size_t IncompleteUtf8Suffix(std::string_view bytes) {
  for (size_t back = 1; back <= 3 && back <= bytes.size(); ++back) {
    const size_t i = bytes.size() - back;
    if ((ByteAt(bytes, i) & 0xC0) == 0x80) continue;
    return ReadUtf8(bytes, i).kind == Utf8Step::Kind::kIncomplete ? back : 0;
  }
  return 0;
}

char32_t NextCodePoint(std::string_view text, size_t* position) {
  const size_t i = *position;
  const uint32_t lead = ByteAt(text, i);
  auto low6 = [&](size_t k) { return ByteAt(text, i + k) & 0x3Fu; };
  if (lead < 0x80) {
    *position = i + 1;
    return lead;
  }
  if (lead < 0xE0) {
    *position = i + 2;
    return (lead & 0x1Fu) << 6 | low6(1);
  }
  if (lead < 0xF0) {
    *position = i + 3;
    return (lead & 0x0Fu) << 12 | low6(1) << 6 | low6(2);
  }
  *position = i + 4;
  return (lead & 0x07u) << 18 | low6(1) << 12 | low6(2) << 6 | low6(3);
}

size_t PreviousCharacter(std::string_view text, size_t end) {
  size_t i = end - 1;
  while (i > 0 && (ByteAt(text, i) & 0xC0) == 0x80) --i;
  return i;
}

void AppendUtf8(char32_t code_point, std::string* out) {
  const auto c = static_cast<uint32_t>(code_point);
  auto put = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

size_t CountCharacters(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80;
  return count;
}

}  // namespace sluice
