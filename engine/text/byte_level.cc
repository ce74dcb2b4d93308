#include "engine/text/byte_level.h"

#include <array>

#include "engine/base/utf8.h"

namespace sluice::text {
namespace {

constexpr char32_t kFirstShifted = 0x100;

constexpr bool StandsForItself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<uint16_t, 256> character{};
  std::array<int16_t, kFirstShifted + 68> byte{};  // -1: not of the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& b : alphabet.byte) b = -1;
  uint32_t next = kFirstShifted;
  for (uint32_t b = 0; b < 256; ++b) {
    const uint32_t c = StandsForItself(b) ? b : next++;
    alphabet.character[b] = static_cast<uint16_t>(c);
    alphabet.byte[c] = static_cast<int16_t>(b);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

char32_t ByteLevelCharacter(uint8_t byte) { return kAlphabet.character[byte]; }

std::optional<uint8_t> ByteLevelByte(char32_t character) {
  if (character >= kAlphabet.byte.size() || kAlphabet.byte[character] < 0) return std::nullopt;
  return static_cast<uint8_t>(kAlphabet.byte[character]);
}

void AppendByteLevel(std::string_view bytes, std::string* out) {
  for (const char b : bytes) {
    const uint32_t c = kAlphabet.character[static_cast<uint8_t>(b)];
    if (c < 0x80) {
      out->push_back(static_cast<char>(c));
    } else {
      out->push_back(static_cast<char>(0xC0 | c >> 6));
      out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
    }
  }
}

void AppendByteLevelDecoded(std::string_view token, std::string* out) {
  const size_t start = out->size();
  for (size_t i = 0; i < token.size();) {
    const std::optional<uint8_t> byte = ByteLevelByte(NextCodePoint(token, &i));
    if (!byte) {
      out->resize(start);
      out->append(token);
      return;
    }
    out->push_back(static_cast<char>(*byte));
  }
}

}  // namespace sluice::text
