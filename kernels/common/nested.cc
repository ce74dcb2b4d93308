#include "kernels/common/nested.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/common/half.h"

namespace sluice {
namespace {

constexpr int kQuads = kNestedUnitCols / 4;
constexpr size_t kVectorBytes = 64;

// Four codes of one bit or two, one in each byte.
constexpr uint64_t ByteMask(int bits) {
  return bits == 1 ? 0x0101010101010101u : 0x0303030303030303u;
}

// A row's 32 codes of one unit as they are computed on: word k holds quad 2k in its low half and
// quad 2k + 1 in its high half, which is how the codes lie in memory on little-endian machines.
struct UnitRow {
  uint64_t pair[kQuads / 2];
};

// Where the part of a panel lies in plane 0.
struct ScalePlaces {
  size_t supers;
  size_t scales;
  size_t codes;
};
ScalePlaces PlacesOf(NestedFormat f, int cols) {
  const size_t scales = NestedSuperBytes(f, cols);
  return {0, scales, scales + NestedScaleBytes(f, cols)};
}

// The bits of a code below plane i.
int BitsBelow(NestedFormat f, int plane) { return f.bits - NestedPrecision(f.bits, plane + 1); }

// Quads of a word's low half go to low nibbles, those of its high half to high ones.
uint32_t Interleave(uint64_t fields) {
  return static_cast<uint32_t>(fields) | static_cast<uint32_t>(fields >> 32) << 4;
}
uint64_t Separate(uint32_t nibbles) {
  return (nibbles & 0x0f0f0f0fu) | static_cast<uint64_t>(nibbles >> 4 & 0x0f0f0f0fu) << 32;
}

template <int bits>
void EncodePlane(const uint8_t* codes, size_t row_codes, int units, int shift, std::byte* out) {
  constexpr uint64_t kMask = ByteMask(bits);
  for (int unit = 0; unit < units; ++unit) {
    for (int row = 0; row < kNestedRows; ++row) {
      UnitRow v;
      std::memcpy(&v, codes + row * row_codes + static_cast<size_t>(unit) * kNestedUnitCols,
                  sizeof v);
      for (uint64_t& pair : v.pair) pair = pair >> shift & kMask;
      if constexpr (bits == 1) {
        const uint32_t word =
            Interleave(v.pair[0] | v.pair[1] << 1 | v.pair[2] << 2 | v.pair[3] << 3);
        std::memcpy(out + 4 * row, &word, 4);
      } else {
        const uint32_t low = Interleave(v.pair[0] | v.pair[1] << 2);
        const uint32_t high = Interleave(v.pair[2] | v.pair[3] << 2);
        std::memcpy(out + 4 * row, &low, 4);
        std::memcpy(out + kVectorBytes + 4 * row, &high, 4);
      }
    }
    out += kVectorBytes * bits;
  }
}

// Adds the plane's bits to codes, which hold those of the planes before it.
template <int bits>
void DecodePlane(const std::byte* in, size_t row_codes, int units, int shift, uint8_t* codes) {
  constexpr uint64_t kMask = ByteMask(bits);
  for (int unit = 0; unit < units; ++unit) {
    for (int row = 0; row < kNestedRows; ++row) {
      uint32_t words[bits];
      for (int i = 0; i < bits; ++i) {
        std::memcpy(&words[i], in + kVectorBytes * i + 4 * row, 4);
      }
      uint8_t* at = codes + row * row_codes + static_cast<size_t>(unit) * kNestedUnitCols;
      UnitRow v;
      std::memcpy(&v, at, sizeof v);
      for (int k = 0; k < kQuads / 2; ++k) {
        const uint64_t fields =
            bits == 1 ? Separate(words[0]) >> k : Separate(words[k / 2 % bits]) >> (2 * (k % 2));
        v.pair[k] |= (fields & kMask) << shift;
      }
      std::memcpy(at, &v, sizeof v);
    }
    in += kVectorBytes * bits;
  }
}

void PutHalves(const std::vector<uint16_t>& values, int index, std::byte* out) {
  std::memcpy(out, values.data() + static_cast<size_t>(index) * kNestedRows, 2 * kNestedRows);
}
void GetHalves(const std::byte* in, int index, std::vector<uint16_t>* values) {
  std::memcpy(values->data() + static_cast<size_t>(index) * kNestedRows, in, 2 * kNestedRows);
}
void PutBytes(const std::vector<uint16_t>& values, int index, std::byte* out) {
  const uint16_t* from = values.data() + static_cast<size_t>(index) * kNestedRows;
  for (int row = 0; row < kNestedRows; ++row) out[row] = static_cast<std::byte>(from[row] & 0xff);
}
void GetBytes(const std::byte* in, int index, std::vector<uint16_t>* values) {
  uint16_t* to = values->data() + static_cast<size_t>(index) * kNestedRows;
  for (int row = 0; row < kNestedRows; ++row) to[row] = std::to_integer<uint16_t>(in[row]);
}

bool HasSupers(NestedFormat f) { return HasSuperScales(f.scales); }
bool HasMin(NestedFormat f) { return HasGroupMinima(f.scales); }
bool HasByteScales(NestedFormat f) { return HasSupers(f) || f.scales == ScaleKind::kE2m1E8m0; }

// 2^(e - 128), subnormal numbers included.
float HalfPowerOf(uint16_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

}  // namespace

NestedAffine NestedAffineOf(NestedFormat f, const NestedPanel& panel, int group, int row) {
  const size_t at = static_cast<size_t>(group) * kNestedRows + row;
  const size_t super = static_cast<size_t>(group) * f.group / kNestedSuperCols * kNestedRows + row;
  switch (f.scales) {
    case ScaleKind::kF16:
    case ScaleKind::kIq4F16:
      return {F16ToF32(panel.scale[at]), 0};
    case ScaleKind::kF16Min:
      return {F16ToF32(panel.scale[at]), F16ToF32(panel.min[at])};
    case ScaleKind::kU8Min:
      return {F16ToF32(panel.super_scale[super]) * static_cast<float>(panel.scale[at]),
              -(F16ToF32(panel.super_min[super]) * static_cast<float>(panel.min[at]))};
    case ScaleKind::kE2m1E8m0:
      return {HalfPowerOf(panel.scale[at] & 0xff), 0};
    case ScaleKind::kI8:
    case ScaleKind::kIq4I8:
      break;
  }
  const auto steps = static_cast<int8_t>(panel.scale[at] & 0xff);
  return {F16ToF32(panel.super_scale[super]) * static_cast<float>(steps), 0};
}

void NestedPanel::Resize(NestedFormat format, int cols) {
  const auto supers = static_cast<size_t>(HasSupers(format) ? NestedSupers(cols) : 0);
  const auto groups = static_cast<size_t>(NestedGroups(format, cols));
  codes.assign(static_cast<size_t>(kNestedRows) * NestedPaddedCols(cols), 0);
  super_scale.assign(supers * kNestedRows, 0);
  super_min.assign(format.scales == ScaleKind::kU8Min ? supers * kNestedRows : 0, 0);
  scale.assign(groups * kNestedRows, 0);
  min.assign(HasMin(format) ? groups * kNestedRows : 0, 0);
}

void EncodeNestedPanel(NestedFormat format, int cols, const NestedPanel& source, int panel,
                       std::byte* const* planes) {
  const ScalePlaces places = PlacesOf(format, cols);
  std::byte* first = planes[0] + NestedPanelBytes(format, cols, 0) * static_cast<size_t>(panel);
  // Padding between the parts is zero, so that equal matrices are equal bytes.
  std::memset(first, 0, places.codes);
  if (HasSupers(format)) {
    std::byte* out = first + places.supers;
    for (int super = 0; super < NestedSupers(cols); ++super) {
      PutHalves(source.super_scale, super, out);
      out += 2 * kNestedRows;
      if (format.scales == ScaleKind::kU8Min) {
        PutHalves(source.super_min, super, out);
        out += 2 * kNestedRows;
      }
    }
  }
  std::byte* out = first + places.scales;
  const auto put = HasByteScales(format) ? PutBytes : PutHalves;
  const size_t step = HasByteScales(format) ? kNestedRows : 2 * kNestedRows;
  for (int group = 0; group < NestedGroups(format, cols); ++group) {
    put(source.scale, group, out);
    out += step;
    if (HasMin(format)) {
      put(source.min, group, out);
      out += step;
    }
  }
  const auto row_codes = static_cast<size_t>(NestedPaddedCols(cols));
  for (int i = 0; i < NestedPlanes(format.bits); ++i) {
    std::byte* codes =
        i == 0 ? first + places.codes
               : planes[i] + NestedPanelBytes(format, cols, i) * static_cast<size_t>(panel);
    const auto encode = NestedPlaneBits(format.bits, i) == 1 ? EncodePlane<1> : EncodePlane<2>;
    encode(source.codes.data(), row_codes, NestedUnits(cols), BitsBelow(format, i), codes);
  }
}

void DecodeNestedPanel(NestedFormat format, int cols, int panel, const std::byte* const* planes,
                       int plane_count, NestedPanel* out) {
  out->Resize(format, cols);
  const ScalePlaces places = PlacesOf(format, cols);
  const std::byte* first =
      planes[0] + NestedPanelBytes(format, cols, 0) * static_cast<size_t>(panel);
  if (HasSupers(format)) {
    const std::byte* in = first + places.supers;
    for (int super = 0; super < NestedSupers(cols); ++super) {
      GetHalves(in, super, &out->super_scale);
      in += 2 * kNestedRows;
      if (format.scales == ScaleKind::kU8Min) {
        GetHalves(in, super, &out->super_min);
        in += 2 * kNestedRows;
      }
    }
  }
  const std::byte* in = first + places.scales;
  const auto get = HasByteScales(format) ? GetBytes : GetHalves;
  const size_t step = HasByteScales(format) ? kNestedRows : 2 * kNestedRows;
  for (int group = 0; group < NestedGroups(format, cols); ++group) {
    get(in, group, &out->scale);
    in += step;
    if (HasMin(format)) {
      get(in, group, &out->min);
      in += step;
    }
  }
  const auto row_codes = static_cast<size_t>(NestedPaddedCols(cols));
  for (int i = 0; i < plane_count; ++i) {
    const std::byte* codes =
        i == 0 ? first + places.codes
               : planes[i] + NestedPanelBytes(format, cols, i) * static_cast<size_t>(panel);
    const auto decode = NestedPlaneBits(format.bits, i) == 1 ? DecodePlane<1> : DecodePlane<2>;
    decode(codes, row_codes, NestedUnits(cols), BitsBelow(format, i), out->codes.data());
  }
}

void DequantizeNested(NestedFormat format, int cols, const std::byte* const* planes,
                      int plane_count, NestedLevel level, int first_row, int row_count,
                      float* out) {
  const int dropped = format.bits - NestedPrecision(format.bits, plane_count);
  const auto row_codes = static_cast<size_t>(NestedPaddedCols(cols));
  // What a code counts for.
  float values[256];
  const bool e2m1 = format.scales == ScaleKind::kE2m1E8m0;
  for (int q = 0; q < 1 << (format.bits - dropped); ++q) {
    values[q] = static_cast<float>(
        HasCodeTable(format.scales) ? kCodeTables[e2m1 ? 1 : 0][plane_count - 1][q] : q);
  }
  NestedPanel panel;
  int decoded = -1;
  for (int i = 0; i < row_count; ++i) {
    const int row = (first_row + i) % kNestedRows;
    if (const int wanted = (first_row + i) / kNestedRows; wanted != decoded) {
      DecodeNestedPanel(format, cols, wanted, planes, plane_count, &panel);
      decoded = wanted;
    }
    const uint8_t* codes = panel.codes.data() + row * row_codes;
    float* to = out + static_cast<size_t>(i) * cols;
    for (int begin = 0, group = 0; begin < cols; begin += format.group, ++group) {
      const NestedAffine affine = NestedAffineOf(format, panel, group, row);
      const int end = std::min<int>(begin + format.group, cols);
      for (int k = begin; k < end; ++k) {
        const float q = values[codes[k] >> dropped];
        to[k] = affine.scale * (level.mul * q + level.add) + affine.min;
      }
    }
  }
}

}  // namespace sluice
