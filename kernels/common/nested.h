// Bit-nested quantized matrices: their layout on disk and in memory (the same), sizes, and the
// portable encoder and decoder that define it.
//
// A weight is an unsigned code of B bits (2, 3, 4, 5, 6 or 8) with a scale and an offset that its
// group of 16 or 32 columns shares. The code is cut into planes, high bits first: planes of
// 2 | 1 | 1 | 2 | 2 bits (B = 5: 2 | 1 | 1 | 1). The planes of a prefix hold the code's leading
// bits, so they are the same matrix at a lower precision, with the same scales. *Precision* counts
// bits: a matrix of 8 bits can be used at 2, 3, 4, 6 and 8.
//
// Value of a weight. With q the leading p bits of a code of B bits, h = 2^(B - p):
//   w = s * (h * q + (h - 1) / 2 - c) + m        (the middle of the codes that share these bits)
// where s, c and m are, by ScaleKind:
//   kF16     s = F16 per group;               c = 2^(B-1);  m = 0          (ggml Q4_0, Q5_0, Q8_0)
//   kF16Min  s = F16 per group;               c = 0;        m = F16 per group       (Q4_1, Q5_1)
//   kU8Min   s = d * sc, sc unsigned 8 bits;  c = 0;        m = -(dmin * mn), mn unsigned 8 bits;
//            d, dmin F16 per 256 columns of a row                            (Q2_K, Q4_K, Q5_K)
//   kI8      s = d * sc, sc signed 8 bits;    c = 2^(B-1);  m = 0; d as above        (Q3_K, Q6_K)
// Products d * sc and dmin * mn are rounded to F32; so is each later operation. At full precision
// that is what ggml computes for these types. h and (h - 1) / 2 - c are the level's `mul` and
// `add`; a matrix may carry fitted ones for its lower precisions (NestedLevel).
//
// Table kinds (B = 4, groups of 32) have codes that are indices: T, kCodeTables of the kind and of
// the precision, takes the place of q, and with default levels w = s * v * (T[q] - 128), m = 0:
//   kIq4F16    s = F16 per group;         v = 1                                  (ggml IQ4_NL)
//   kIq4I8     s = d * sc as for kI8;     v = 1                                  (IQ4_XS)
//   kE2m1E8m0  s = 2^(e - 128), e a byte; v = 1 / 4                              (MXFP4)
// Tables ascend, so the leading bits of an index name a range of values, and the table of a lower
// precision holds the range's mean.
//
// Layout. Rows come in panels of 16 (the last padded with zeros), columns in units of 32 (padded
// with code 0). A matrix is `planes` separate byte ranges; plane i of all panels is contiguous,
// panel after panel, and every range that is named below starts at a multiple of 64 bytes from the
// start of its plane.
//   plane 0 of a panel:  [super scales][group scales][2-bit codes]
//     super scales  kU8Min: per 256 columns d[16] then dmin[16] (F16); kI8, kIq4I8: d[16]; others:
//                   none
//     group scales  per group, ascending columns: kF16, kIq4F16: s[16] F16; kF16Min: s[16], m[16]
//                   F16; kU8Min: sc[16], mn[16] bytes; kI8, kIq4I8: sc[16] bytes; kE2m1E8m0: e[16]
//                   bytes
//     (each of the two is padded to a multiple of 64 bytes)
//   other planes of a panel: codes alone.
// Codes of one unit (16 rows by 32 columns): columns are taken four at a time as *quads* 0..7; byte
// 4 * row + (column % 4) of a 64-byte vector belongs to that row and column of a quad, so that a
// 32-bit lane is one row's four consecutive inputs.
//   2-bit plane: two vectors; quads 0..3 in the first, 4..7 in the second. Within a byte, quad j
//     stands at bit 2 * ((j / 2) % 2) + 4 * (j % 2).
//   1-bit plane: one vector. Within a byte, quad j stands at bit j / 2 + 4 * (j % 2).
// Even quads thus lie in low nibbles and odd quads in high ones: with one shift and one mask per
// plane, two quads of a 4-bit code are assembled at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice {

inline constexpr int kNestedRows = 16;
inline constexpr int kNestedUnitCols = 32;
inline constexpr int kNestedSuperCols = 256;
inline constexpr int kMaxPlanes = 5;

enum class ScaleKind : uint8_t {
  kF16 = 0,
  kF16Min = 1,
  kU8Min = 2,
  kI8 = 3,
  kIq4F16 = 4,
  kIq4I8 = 5,
  kE2m1E8m0 = 6,
};
inline constexpr int kScaleKinds = 7;

// T + 128 by table (IQ4, E2M1) and planes - 1. IQ4: ggml's kvalues_iq4nl (src/ggml-common.h). E2M1:
// eight times the values of the OCP Microscaling format in ascending order, -0 before 0; ggml's
// code of a negative value is 8 + n where the index here is 7 - n, and of others n, here 8 + n.
// Means are rounded to nearest even.
inline constexpr uint8_t kCodeTables[2][3][16] = {
    {{33, 99, 147, 209},
     {12, 54, 86, 112, 135, 160, 189, 229},
     {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241}},
    {{98, 122, 134, 158},
     {88, 108, 118, 126, 130, 138, 148, 168},
     {80, 96, 104, 112, 116, 120, 124, 128, 128, 132, 136, 140, 144, 152, 160, 176}}};
inline constexpr int kCodeTableCentre = 128;

struct NestedFormat {
  ScaleKind scales = ScaleKind::kU8Min;
  uint8_t group = 32;  // columns that share a scale: 32; for kU8Min and kI8 also 16
  uint8_t bits = 4;    // of the full code: 2, 3, 4, 5, 6 or 8; table kinds: 4

  bool operator==(const NestedFormat&) const = default;
};

constexpr bool HasCodeTable(ScaleKind scales) { return scales >= ScaleKind::kIq4F16; }
// Kinds with a scale of scales per 256 columns; with a minimum; without, and codes round a centre.
constexpr bool HasSuperScales(ScaleKind scales) {
  return scales == ScaleKind::kU8Min || scales == ScaleKind::kI8 || scales == ScaleKind::kIq4I8;
}
constexpr bool HasGroupMinima(ScaleKind scales) {
  return scales == ScaleKind::kU8Min || scales == ScaleKind::kF16Min;
}

// False for combinations that do not exist.
constexpr bool ValidNestedFormat(NestedFormat f) {
  if (static_cast<int>(f.scales) >= kScaleKinds) return false;
  if (HasCodeTable(f.scales)) return f.bits == 4 && f.group == 32;
  const bool bits = f.bits >= 2 && f.bits <= 8 && f.bits != 7;
  const bool wide = f.scales == ScaleKind::kF16 || f.scales == ScaleKind::kF16Min;
  return bits && (f.group == 32 || (f.group == 16 && !wide));
}

// Planes of a code of `bits` bits, and the bits in plane i.
constexpr int NestedPlanes(int bits) {
  return bits == 2 ? 1 : bits == 3 ? 2 : bits == 4 ? 3 : bits == 8 ? 5 : 4;
}
constexpr int NestedPlaneBits(int bits, int plane) {
  return plane == 0 ? 2 : plane <= 2 ? 1 : bits == 5 ? 1 : 2;
}
// The precision in bits that the first `planes` planes give.
constexpr int NestedPrecision(int bits, int planes) {
  int precision = 0;
  for (int i = 0; i < planes; ++i) precision += NestedPlaneBits(bits, i);
  return precision;
}
// The most planes whose precision is at most `precision` (at least 1).
constexpr int NestedPlanesFor(int bits, int precision) {
  int planes = 1;
  while (planes < NestedPlanes(bits) && NestedPrecision(bits, planes + 1) <= precision) ++planes;
  return planes;
}

// w = s * (mul * q + add) + m for the leading bits q, or for the table's T[q] + 128.
struct NestedLevel {
  float mul = 1;
  float add = 0;

  bool operator==(const NestedLevel&) const = default;
};
// The middle of the codes that share their leading bits.
constexpr NestedLevel DefaultNestedLevel(NestedFormat f, int planes) {
  if (HasCodeTable(f.scales)) {
    const float unit = f.scales == ScaleKind::kE2m1E8m0 ? 0.25f : 1.0f;
    return {unit, -unit * kCodeTableCentre};
  }
  const int h = 1 << (f.bits - NestedPrecision(f.bits, planes));
  const bool symmetric = f.scales == ScaleKind::kF16 || f.scales == ScaleKind::kI8;
  const int centre = symmetric ? 1 << (f.bits - 1) : 0;
  return {static_cast<float>(h), static_cast<float>(h - 1) / 2 - static_cast<float>(centre)};
}

constexpr int NestedUnits(int cols) { return (cols + kNestedUnitCols - 1) / kNestedUnitCols; }
constexpr int NestedPaddedCols(int cols) { return NestedUnits(cols) * kNestedUnitCols; }
constexpr int NestedGroups(NestedFormat f, int cols) {
  return NestedPaddedCols(cols) / (f.group == 0 ? 32 : f.group);
}
constexpr int NestedSupers(int cols) { return (cols + kNestedSuperCols - 1) / kNestedSuperCols; }
constexpr size_t NestedAlign(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Offsets within plane 0 of one panel.
constexpr size_t NestedSuperBytes(NestedFormat f, int cols) {
  const size_t halves = f.scales == ScaleKind::kU8Min ? 2 : HasSuperScales(f.scales) ? 1 : 0;
  return NestedAlign(halves * 2 * kNestedRows * static_cast<size_t>(NestedSupers(cols)));
}
constexpr size_t NestedScaleBytes(NestedFormat f, int cols) {
  const bool byte = f.scales == ScaleKind::kI8 || f.scales == ScaleKind::kIq4I8 ||
                    f.scales == ScaleKind::kE2m1E8m0;
  const size_t per_row = f.scales == ScaleKind::kF16Min ? 4 : byte ? 1 : 2;
  return NestedAlign(per_row * kNestedRows * static_cast<size_t>(NestedGroups(f, cols)));
}
// Bytes of one panel in plane i, and of the whole plane.
constexpr size_t NestedPanelBytes(NestedFormat f, int cols, int plane) {
  const size_t codes = static_cast<size_t>(NestedUnits(cols)) * 64 * NestedPlaneBits(f.bits, plane);
  return plane > 0 ? codes : NestedSuperBytes(f, cols) + NestedScaleBytes(f, cols) + codes;
}
constexpr size_t NestedPlaneBytes(NestedFormat f, int rows, int cols, int plane) {
  return NestedPanelBytes(f, cols, plane) *
         static_cast<size_t>((rows + kNestedRows - 1) / kNestedRows);
}
// Of the first `planes` planes together.
constexpr size_t NestedBytes(NestedFormat f, int rows, int cols, int planes) {
  size_t bytes = 0;
  for (int i = 0; i < planes; ++i) bytes += NestedPlaneBytes(f, rows, cols, i);
  return bytes;
}

// One panel, unpacked: what the encoder takes and the decoder gives. Raw fields; F16 as its bits.
struct NestedPanel {
  std::vector<uint8_t> codes;         // [16][padded cols], each below 2^bits
  std::vector<uint16_t> super_scale;  // [supers][16] d      (HasSuperScales)
  std::vector<uint16_t> super_min;    // [supers][16] dmin   (kU8Min)
  std::vector<uint16_t> scale;        // [groups][16] F16 bits, or a byte (kI8, kIq4I8: two's
                                      // complement)
  std::vector<uint16_t> min;          // [groups][16]        (HasGroupMinima)

  // Sizes all fields for the format and sets them to zero.
  void Resize(NestedFormat format, int cols);
};

// Scale and offset of a group in row `row` of a panel: the s and m of the formula above.
struct NestedAffine {
  float scale;
  float min;
};
NestedAffine NestedAffineOf(NestedFormat format, const NestedPanel& panel, int group, int row);

// Writes panel `panel` of a matrix: its part of each plane, planes[i] being the start of plane i of
// the matrix. REQUIRES: fields sized as by Resize, ValidNestedFormat(format).
void EncodeNestedPanel(NestedFormat format, int cols, const NestedPanel& source, int panel,
                       std::byte* const* planes);
// The inverse, from the first `plane_count` planes; the missing low bits of codes are zero.
void DecodeNestedPanel(NestedFormat format, int cols, int panel, const std::byte* const* planes,
                       int plane_count, NestedPanel* out);

// Rows [first_row, first_row + row_count) as F32, [row_count, cols]: the formula above, at the
// precision of `plane_count` planes. The oracle of every kernel.
void DequantizeNested(NestedFormat format, int cols, const std::byte* const* planes,
                      int plane_count, NestedLevel level, int first_row, int row_count, float* out);

}  // namespace sluice
