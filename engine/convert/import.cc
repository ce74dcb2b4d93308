// GGUF blocks to nested panels, code by code: nothing is rounded. Layouts of the blocks as in
// engine/formats/gguf_types.cc (ggml, src/ggml-common.h).
#include <array>
#include <cstring>

#include "engine/base/check.h"
#include "engine/convert/quantizer.h"

namespace sluice {
namespace {

constexpr int kSuper = kNestedSuperCols;  // values of a K-quant's block
constexpr int kLanes = kNestedRows;       // distance of a group's fields of one row

uint16_t LoadHalf(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

// One row of a panel: where its fields go.
struct RowFields {
  uint8_t* codes;         // [padded cols]
  uint16_t* super_scale;  // [supers] at kLanes, as the next three
  uint16_t* super_min;
  uint16_t* scale;
  uint16_t* min;
};

// Low nibbles are values 0..15, high nibbles 16..31; `high` has their fifth bits, or is zero.
void Nibbles(const uint8_t* packed, uint32_t high, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = packed[i] & 15;
    codes[16 + i] = packed[i] >> 4;
  }
  if (high == 0) return;
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>(((high >> i) & 1u) << 4);
}

uint32_t LoadWord(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// Blocks of 32: index counts groups.
void ImportQ4_0(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = LoadHalf(b);
  Nibbles(b + 2, 0, row.codes + index * 32);
}
void ImportQ4_1(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = LoadHalf(b);
  row.min[index * kLanes] = LoadHalf(b + 2);
  Nibbles(b + 4, 0, row.codes + index * 32);
}
void ImportQ5_0(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = LoadHalf(b);
  Nibbles(b + 6, LoadWord(b + 2), row.codes + index * 32);
}
void ImportQ5_1(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = LoadHalf(b);
  row.min[index * kLanes] = LoadHalf(b + 2);
  Nibbles(b + 8, LoadWord(b + 4), row.codes + index * 32);
}
void ImportQ8_0(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = LoadHalf(b);
  for (int i = 0; i < 32; ++i) row.codes[index * 32 + i] = b[2 + i] ^ 0x80;
}

void ImportIq4Nl(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = LoadHalf(b);
  Nibbles(b + 2, 0, row.codes + index * 32);
}
void ImportMxfp4(const uint8_t* b, int index, const RowFields& row) {
  row.scale[index * kLanes] = b[0];
  uint8_t* codes = row.codes + index * 32;
  Nibbles(b + 1, 0, codes);
  // A sign and a magnitude there, ascending values here.
  for (int i = 0; i < 32; ++i) {
    codes[i] = static_cast<uint8_t>(codes[i] < 8 ? codes[i] + 8 : 15 - codes[i]);
  }
}

// Blocks of 256: index counts supers.
void ImportIq4Xs(const uint8_t* b, int index, const RowFields& row) {
  row.super_scale[index * kLanes] = LoadHalf(b);
  const uint16_t high = LoadHalf(b + 2);
  for (int g = 0; g < 8; ++g) {
    const int low = (b[4 + g / 2] >> (4 * (g % 2))) & 15;
    const int scale = low | ((high >> (2 * g)) & 3) << 4;
    row.scale[(index * 8 + g) * kLanes] = static_cast<uint8_t>(scale - 32);
    Nibbles(b + 8 + 16 * g, 0, row.codes + index * kSuper + 32 * g);
  }
}
void ImportQ2_K(const uint8_t* b, int index, const RowFields& row) {
  row.super_scale[index * kLanes] = LoadHalf(b + 80);
  row.super_min[index * kLanes] = LoadHalf(b + 82);
  for (int g = 0; g < 16; ++g) {
    row.scale[(index * 16 + g) * kLanes] = b[g] & 15;
    row.min[(index * 16 + g) * kLanes] = b[g] >> 4;
  }
  uint8_t* codes = row.codes + index * kSuper;
  for (int half = 0; half < 2; ++half) {
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 32; ++i) {
        codes[half * 128 + part * 32 + i] = (b[16 + half * 32 + i] >> (2 * part)) & 3;
      }
    }
  }
}
void ImportQ3_K(const uint8_t* b, int index, const RowFields& row) {
  row.super_scale[index * kLanes] = LoadHalf(b + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? b[96 + g] & 15 : b[96 + g - 8] >> 4;
    const int high = (b[104 + g % 4] >> (2 * (g / 4))) & 3;
    row.scale[(index * 16 + g) * kLanes] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  uint8_t* codes = row.codes + index * kSuper;
  for (int half = 0; half < 2; ++half) {
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 32; ++i) {
        const int low = (b[32 + half * 32 + i] >> (2 * part)) & 3;
        const int high = (b[i] >> (half * 4 + part)) & 1;
        codes[half * 128 + part * 32 + i] = static_cast<uint8_t>(low | high << 2);
      }
    }
  }
}

// The eight 6-bit scales and minima of Q4_K and Q5_K in 12 bytes.
void ScalesAndMins(const uint8_t* s, int index, const RowFields& row) {
  for (int g = 0; g < 8; ++g) {
    const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    const int min = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | (s[g] >> 6) << 4;
    row.scale[(index * 8 + g) * kLanes] = static_cast<uint16_t>(scale);
    row.min[(index * 8 + g) * kLanes] = static_cast<uint16_t>(min);
  }
}
void ImportQ4_K(const uint8_t* b, int index, const RowFields& row) {
  row.super_scale[index * kLanes] = LoadHalf(b);
  row.super_min[index * kLanes] = LoadHalf(b + 2);
  ScalesAndMins(b + 4, index, row);
  uint8_t* codes = row.codes + index * kSuper;
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      codes[pair * 64 + i] = b[16 + pair * 32 + i] & 15;
      codes[pair * 64 + 32 + i] = b[16 + pair * 32 + i] >> 4;
    }
  }
}
void ImportQ5_K(const uint8_t* b, int index, const RowFields& row) {
  row.super_scale[index * kLanes] = LoadHalf(b);
  row.super_min[index * kLanes] = LoadHalf(b + 2);
  ScalesAndMins(b + 4, index, row);
  uint8_t* codes = row.codes + index * kSuper;
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      const int byte = b[48 + pair * 32 + i];
      const int high = b[16 + i] >> (2 * pair);
      codes[pair * 64 + i] = static_cast<uint8_t>((byte & 15) | (high & 1) << 4);
      codes[pair * 64 + 32 + i] = static_cast<uint8_t>((byte >> 4) | (high & 2) << 3);
    }
  }
}
void ImportQ6_K(const uint8_t* b, int index, const RowFields& row) {
  row.super_scale[index * kLanes] = LoadHalf(b + 208);
  for (int g = 0; g < 16; ++g) row.scale[(index * 16 + g) * kLanes] = b[192 + g];
  uint8_t* codes = row.codes + index * kSuper;
  for (int half = 0; half < 2; ++half) {
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 32; ++i) {
        const int byte = b[half * 64 + part % 2 * 32 + i];
        const int low = part < 2 ? byte & 15 : byte >> 4;
        const int high = (b[128 + half * 32 + i] >> (2 * part)) & 3;
        codes[half * 128 + part * 32 + i] = static_cast<uint8_t>(low | high << 4);
      }
    }
  }
}

using ImportBlock = void (*)(const uint8_t*, int, const RowFields&);
struct Import {
  GgufType type;
  NestedFormat format;
  ImportBlock block;
};
constexpr std::array<Import, 13> kImports = {{
    {GgufType::kQ4_0, {ScaleKind::kF16, 32, 4}, ImportQ4_0},
    {GgufType::kQ4_1, {ScaleKind::kF16Min, 32, 4}, ImportQ4_1},
    {GgufType::kQ5_0, {ScaleKind::kF16, 32, 5}, ImportQ5_0},
    {GgufType::kQ5_1, {ScaleKind::kF16Min, 32, 5}, ImportQ5_1},
    {GgufType::kQ8_0, {ScaleKind::kF16, 32, 8}, ImportQ8_0},
    {GgufType::kQ2_K, {ScaleKind::kU8Min, 16, 2}, ImportQ2_K},
    {GgufType::kQ3_K, {ScaleKind::kI8, 16, 3}, ImportQ3_K},
    {GgufType::kQ4_K, {ScaleKind::kU8Min, 32, 4}, ImportQ4_K},
    {GgufType::kQ5_K, {ScaleKind::kU8Min, 32, 5}, ImportQ5_K},
    {GgufType::kQ6_K, {ScaleKind::kI8, 16, 6}, ImportQ6_K},
    {GgufType::kIq4Nl, {ScaleKind::kIq4F16, 32, 4}, ImportIq4Nl},
    {GgufType::kIq4Xs, {ScaleKind::kIq4I8, 32, 4}, ImportIq4Xs},
    {GgufType::kMxfp4, {ScaleKind::kE2m1E8m0, 32, 4}, ImportMxfp4},
}};

const Import* FindImport(GgufType type) {
  for (const Import& import : kImports) {
    if (import.type == type) return &import;
  }
  return nullptr;
}

}  // namespace

std::optional<NestedFormat> ExactFormat(GgufType type) {
  const Import* import = FindImport(type);
  if (import == nullptr) return std::nullopt;
  return import->format;
}

void ImportPanel(const GgufTypeInfo& type, const std::byte* blocks, int row_count, int cols,
                 NestedPanel* out) {
  const Import* import = FindImport(type.type);
  SLUICE_CHECK(import != nullptr, "a type without an exact nested format");
  SLUICE_CHECK(row_count >= 1 && row_count <= kNestedRows && cols % type.block_values == 0);
  out->Resize(import->format, cols);
  const int row_blocks = cols / type.block_values;
  const auto* block = reinterpret_cast<const uint8_t*>(blocks);
  for (int r = 0; r < row_count; ++r) {
    const RowFields row = {
        .codes = out->codes.data() + static_cast<size_t>(r) * NestedPaddedCols(cols),
        .super_scale = out->super_scale.data() + r,
        .super_min = out->super_min.data() + r,
        .scale = out->scale.data() + r,
        .min = out->min.data() + r};
    for (int i = 0; i < row_blocks; ++i, block += type.block_bytes) import->block(block, i, row);
  }
}

}  // namespace sluice
