#include <cmath>
#include <cstring>

#include "kernels/common/half.h"
#include "kernels/common/nested.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/nested_fixture.h"

namespace sluice {
namespace {

using cpu::Numbers;

TEST_CASE("A nested panel comes back from its planes unchanged", "[kernels][nested]") {
  Numbers numbers(31);
  for (const NestedFormat format : AllNestedFormats()) {
    for (const int cols : {1, 31, 32, 33, 255, 256, 257, 300, 544}) {
      INFO(Case(format) << " cols " << cols);
      NestedMatrix matrix(format, 40, cols, numbers);
      CHECK(matrix.Intact());
      for (int panel = 0; panel < 3; ++panel) {
        NestedPanel back;
        DecodeNestedPanel(format, cols, panel, matrix.planes, NestedPlanes(format.bits), &back);
        const NestedPanel& source = matrix.panels[panel];
        CHECK(back.codes == source.codes);
        CHECK(back.super_scale == source.super_scale);
        CHECK(back.super_min == source.super_min);
        CHECK(back.scale == source.scale);
        CHECK(back.min == source.min);
      }
    }
  }
}

TEST_CASE("The first planes of a nested panel hold the leading bits of its codes",
          "[kernels][nested]") {
  Numbers numbers(32);
  for (const NestedFormat format : AllNestedFormats()) {
    const int cols = 300;
    NestedMatrix matrix(format, 16, cols, numbers);
    for (int planes = 1; planes <= NestedPlanes(format.bits); ++planes) {
      INFO(Case(format) << " planes " << planes);
      // Later planes may not be looked at: they need not be there.
      const std::byte* prefix[kMaxPlanes] = {};
      for (int i = 0; i < planes; ++i) prefix[i] = matrix.planes[i];
      NestedPanel back;
      DecodeNestedPanel(format, cols, 0, prefix, planes, &back);
      const int dropped = format.bits - NestedPrecision(format.bits, planes);
      int wrong = 0;
      for (size_t i = 0; i < back.codes.size(); ++i) {
        wrong += back.codes[i] != (matrix.panels[0].codes[i] >> dropped << dropped);
      }
      CHECK(wrong == 0);
      CHECK(back.scale == matrix.panels[0].scale);
    }
  }
}

// The words of nested.h, code by code.
int BitAt(const std::byte* codes, int plane_bits, int row, int col, int bit) {
  const int unit = col / 32, quad = col % 32 / 4;
  const std::byte* vector = codes + 64 * (unit * plane_bits + (plane_bits == 2 ? quad / 4 : 0));
  const int at =
      plane_bits == 2 ? 2 * ((quad / 2) % 2) + 4 * (quad % 2) : quad / 2 + 4 * (quad % 2);
  return std::to_integer<int>(vector[4 * row + col % 4]) >> (at + bit) & 1;
}

TEST_CASE("Every bit of a nested matrix lies where its layout says", "[kernels][nested]") {
  Numbers numbers(33);
  for (const NestedFormat format : AllNestedFormats()) {
    const int cols = 320, groups = cols / format.group, supers = 2;
    INFO(Case(format));
    NestedMatrix matrix(format, 32, cols, numbers);
    const NestedPanel& source = matrix.panels[1];
    const size_t panel_bytes = NestedPanelBytes(format, cols, 0);
    const std::byte* panel = matrix.planes[0] + panel_bytes;
    const auto half = [&](size_t at) {
      uint16_t value;
      std::memcpy(&value, panel + at, 2);
      return value;
    };
    const auto byte = [&](size_t at) { return std::to_integer<uint16_t>(panel[at]); };
    // Sizes written out: d and dmin of 2 supers are 64 or 128 bytes, both whole lines.
    size_t super_bytes = 0, scale_bytes = 0;
    int wrong = 0;
    for (int row = 0; row < 16; ++row) {
      switch (format.scales) {
        case ScaleKind::kF16:
        case ScaleKind::kIq4F16:
          scale_bytes = 32 * groups;
          for (int g = 0; g < groups; ++g) {
            wrong += half(32 * g + 2 * row) != source.scale[g * 16 + row];
          }
          break;
        case ScaleKind::kF16Min:
          scale_bytes = 64 * groups;
          for (int g = 0; g < groups; ++g) {
            wrong += half(64 * g + 2 * row) != source.scale[g * 16 + row];
            wrong += half(64 * g + 32 + 2 * row) != source.min[g * 16 + row];
          }
          break;
        case ScaleKind::kU8Min:
          super_bytes = 64 * supers;
          scale_bytes = 32 * groups;
          for (int s = 0; s < supers; ++s) {
            wrong += half(64 * s + 2 * row) != source.super_scale[s * 16 + row];
            wrong += half(64 * s + 32 + 2 * row) != source.super_min[s * 16 + row];
          }
          for (int g = 0; g < groups; ++g) {
            wrong += byte(super_bytes + 32 * g + row) != source.scale[g * 16 + row];
            wrong += byte(super_bytes + 32 * g + 16 + row) != source.min[g * 16 + row];
          }
          break;
        case ScaleKind::kE2m1E8m0:
          scale_bytes = 16 * groups;
          for (int g = 0; g < groups; ++g) {
            wrong += byte(16 * g + row) != source.scale[g * 16 + row];
          }
          break;
        case ScaleKind::kI8:
        case ScaleKind::kIq4I8:
          super_bytes = 32 * supers;
          scale_bytes = 16 * groups;
          for (int s = 0; s < supers; ++s) {
            wrong += half(32 * s + 2 * row) != source.super_scale[s * 16 + row];
          }
          for (int g = 0; g < groups; ++g) {
            wrong += byte(super_bytes + 16 * g + row) != source.scale[g * 16 + row];
          }
          break;
      }
    }
    CHECK(wrong == 0);
    const size_t code_start = super_bytes + (scale_bytes + 63) / 64 * 64;
    CHECK(code_start == panel_bytes - cols / 32 * 128);
    for (int row = 0; row < 16; ++row) {
      for (int col = 0; col < cols; ++col) {
        int code = 0;
        for (int i = 0; i < NestedPlanes(format.bits); ++i) {
          const int bits = NestedPlaneBits(format.bits, i);
          const std::byte* codes =
              i == 0 ? panel + code_start : matrix.planes[i] + cols / 32 * 64 * bits;
          for (int bit = bits - 1; bit >= 0; --bit) {
            code = 2 * code + BitAt(codes, bits, row, col, bit);
          }
        }
        wrong += code != source.codes[row * cols + col];
      }
    }
    CHECK(wrong == 0);
  }
}

// The mean of the values that a table kind's codes have whose leading `p` bits are q, to nearest
// even: of ggml's IQ4 values, or of the E2M1 numbers times eight, for which MXFP4 counts 1/4.
double TableValue(ScaleKind scales, int p, int q) {
  static constexpr double kIq4[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};
  static constexpr double kE2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const bool e2m1 = scales == ScaleKind::kE2m1E8m0;
  const int count = 1 << (4 - p);
  double sum = 0;
  for (int i = q * count; i < (q + 1) * count; ++i) {
    sum += !e2m1 ? kIq4[i] : i < 8 ? -8 * kE2m1[7 - i] : 8 * kE2m1[i - 8];
  }
  return std::nearbyint(sum / count) * (e2m1 ? 0.25 : 1);
}

TEST_CASE("Dequantized rows follow the formula of the layout", "[kernels][nested]") {
  Numbers numbers(34);
  for (const NestedFormat format : AllNestedFormats()) {
    const int cols = 290, rows = 35, padded = 320;
    NestedMatrix matrix(format, rows, cols, numbers);
    for (int planes = 1; planes <= NestedPlanes(format.bits); ++planes) {
      INFO(Case(format) << " planes " << planes);
      const int p = NestedPrecision(format.bits, planes);
      const double h = std::pow(2.0, format.bits - p);
      const bool symmetric = format.scales == ScaleKind::kF16 || format.scales == ScaleKind::kI8;
      const double c = symmetric ? std::pow(2.0, format.bits - 1) : 0;
      const int first = 10, count = 20;  // from the middle of panel 0 into panel 1
      std::vector<float> values(static_cast<size_t>(count) * cols);
      DequantizeNested(format, cols, matrix.planes, planes, DefaultNestedLevel(format, planes),
                       first, count, values.data());
      double worst = 0;
      for (int i = 0; i < count; ++i) {
        const NestedPanel& panel = matrix.panels[(first + i) / 16];
        const int row = (first + i) % 16;
        for (int k = 0; k < cols; ++k) {
          const size_t g = static_cast<size_t>(k / format.group) * 16 + row;
          const size_t super = static_cast<size_t>(k / 256) * 16 + row;
          double s = 0, m = 0;
          switch (format.scales) {
            case ScaleKind::kF16Min:
              m = F16ToF32(panel.min[g]);
              [[fallthrough]];
            case ScaleKind::kF16:
            case ScaleKind::kIq4F16:
              s = F16ToF32(panel.scale[g]);
              break;
            case ScaleKind::kU8Min:
              s = static_cast<double>(F16ToF32(panel.super_scale[super])) * panel.scale[g];
              m = -static_cast<double>(F16ToF32(panel.super_min[super])) * panel.min[g];
              break;
            case ScaleKind::kE2m1E8m0:
              s = std::pow(2.0, panel.scale[g] - 128);
              break;
            case ScaleKind::kI8:
            case ScaleKind::kIq4I8:
              s = static_cast<double>(F16ToF32(panel.super_scale[super])) *
                  static_cast<int8_t>(panel.scale[g]);
              break;
          }
          const int q = panel.codes[row * padded + k] >> (format.bits - p);
          double expected = s * (h * q + (h - 1) / 2 - c) + m;
          if (HasCodeTable(format.scales)) expected = s * TableValue(format.scales, p, q);
          const double size = std::fabs(s) * 256 + std::fabs(m);
          worst = std::max(worst, std::fabs(values[i * cols + k] - expected) / size);
        }
      }
      CHECK(worst < 2e-7);  // three roundings
    }
  }
}

TEST_CASE("Equal nested panels are equal bytes, padding included", "[kernels][nested]") {
  for (const NestedFormat format : AllNestedFormats()) {
    INFO(Case(format));
    Numbers numbers(35), again(35);
    NestedMatrix a(format, 20, 33, numbers, 0x00), b(format, 20, 33, again, 0xff);
    for (int i = 0; i < NestedPlanes(format.bits); ++i) {
      CHECK(std::memcmp(a.planes[i], b.planes[i], NestedPlaneBytes(format, 20, 33, i)) == 0);
    }
  }
}

}  // namespace
}  // namespace sluice
