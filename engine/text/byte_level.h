// The byte alphabet of byte-level BPE (GPT-2, encoder.py): each of the 256 bytes is written as one
// printable character, so that vocabularies and merges are plain text. Printable Latin-1 bytes
// stand for themselves; the other 68 are U+0100 to U+0143 in order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sluice::text {

char32_t ByteLevelCharacter(uint8_t byte);
std::optional<uint8_t> ByteLevelByte(char32_t character);

// Appends `bytes` in the byte alphabet (1 or 2 UTF-8 bytes for each byte).
void AppendByteLevel(std::string_view bytes, std::string* out);

// The bytes that `token` spells, or `token` itself when any of its characters is not of the
// alphabet. REQUIRES: valid UTF-8.
void AppendByteLevelDecoded(std::string_view token, std::string* out);

}  // namespace sluice::text
