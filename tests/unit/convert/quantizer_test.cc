#include "engine/convert/quantizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/convert_ops.h"
#include "tests/support/catch.h"
#include "tests/unit/convert/nested_matrix.h"

namespace sluice {
namespace {

constexpr NestedFormat kFormats[] = {
    {ScaleKind::kU8Min, 32, 2}, {ScaleKind::kU8Min, 32, 3}, {ScaleKind::kU8Min, 32, 4},
    {ScaleKind::kU8Min, 32, 5}, {ScaleKind::kU8Min, 16, 6}, {ScaleKind::kU8Min, 32, 8},
    {ScaleKind::kF16, 32, 4},   {ScaleKind::kF16, 32, 8},   {ScaleKind::kF16Min, 32, 4},
    {ScaleKind::kI8, 16, 3},    {ScaleKind::kI8, 16, 6},    {ScaleKind::kI8, 32, 8}};

std::vector<float> Gaussian(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

testing::NestedMatrix Quantize(const QuantizerOptions& options, const InputStatistics& statistics,
                               const std::vector<float>& values, int rows, int cols) {
  testing::NestedMatrix matrix(options.format, rows, cols);
  NestedPanel panel;
  for (int first = 0; first < rows; first += kNestedRows) {
    QuantizePanel(options, statistics, values.data() + static_cast<ptrdiff_t>(first) * cols,
                  std::min(kNestedRows, rows - first), cols, &panel);
    matrix.Encode(panel, first / kNestedRows);
  }
  return matrix;
}

// Squared error relative to the values, columns weighted when weights are given.
double Error(const std::vector<float>& values, const std::vector<float>& got,
             const std::vector<float>& weights = {}) {
  double lost = 0, total = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double weight = weights.empty() ? 1 : weights[i % weights.size()];
    lost += weight * std::pow(double{values[i]} - got[i], 2);
    total += weight * double{values[i]} * values[i];
  }
  return lost / total;
}

// A little above what optimal scales reach on Gaussian weights (techniques.md, section 8).
double Acceptable(NestedFormat format, int bits) {
  const bool with_min = format.scales == ScaleKind::kU8Min || format.scales == ScaleKind::kF16Min;
  const double slack = with_min ? 1.35 : 1.7;
  switch (bits) {
    case 2:
      return 0.095 * slack;
    case 3:
      return 0.0232 * slack;
    case 4:
      return 0.0055 * slack;
    case 5:
      return 0.0014 * slack;
    case 6:
      return 3.3e-4 * slack;
    default:
      return 3.5e-5 * slack;
  }
}

TEST_CASE("Every format and every precision of it comes near the best error", "[quantizer]") {
  const int rows = 37, cols = 500;  // a short last panel, super and group
  const std::vector<float> values = Gaussian(static_cast<size_t>(rows) * cols, 3);
  for (const NestedFormat format : kFormats) {
    const testing::NestedMatrix matrix = Quantize({format, {}}, {}, values, rows, cols);
    for (int planes = 1; planes <= matrix.planes(); ++planes) {
      const int bits = NestedPrecision(format.bits, planes);
      const double error = Error(values, matrix.Values(planes));
      INFO("kind " << static_cast<int>(format.scales) << " group " << int{format.group} << " bits "
                   << int{format.bits} << " used at " << bits);
      CHECK(error < Acceptable(format, bits));
    }
  }
}

TEST_CASE("Weights that a format can express come back exactly", "[quantizer]") {
  const std::vector<float> zeros(3 * 40, 0.0f);
  std::vector<float> ones(3 * 40, 1.0f);
  for (const NestedFormat format : kFormats) {
    CHECK(Error(ones, Quantize({format, {}}, {}, ones, 3, 40).Values(NestedPlanes(format.bits))) <
          1e-5);
    const auto got = Quantize({format, {}}, {}, zeros, 3, 40).Values(NestedPlanes(format.bits));
    CHECK(std::all_of(got.begin(), got.end(), [](float v) { return v == 0; }));
  }
}

TEST_CASE("Weights of any size and sign give finite values of their size", "[quantizer]") {
  for (const NestedFormat format : kFormats) {
    for (const float size : {1e-6f, 1e-3f, 50.0f, 3e4f}) {
      std::vector<float> values = Gaussian(20 * 64, 5);
      for (float& v : values) v *= size / 0.02f;
      const auto got = Quantize({format, {}}, {}, values, 20, 64).Values(NestedPlanes(format.bits));
      INFO("kind " << static_cast<int>(format.scales) << " bits " << int{format.bits} << " size "
                   << size);
      CHECK(std::all_of(got.begin(), got.end(), [](float v) { return std::isfinite(v); }));
      // F16 fields cannot hold steps far below 1e-7.
      if (size >= 1e-3f) CHECK(Error(values, got) < 0.2);
    }
  }
}

TEST_CASE("Weights that are not finite do not disturb other rows", "[quantizer]") {
  std::vector<float> values = Gaussian(16 * 64, 6);
  for (const NestedFormat format : kFormats) {
    const auto clean = Quantize({format, {}}, {}, values, 16, 64).Values(NestedPlanes(format.bits));
    std::vector<float> damaged = values;
    damaged[64 * 5 + 3] = std::numeric_limits<float>::quiet_NaN();
    damaged[64 * 9 + 40] = std::numeric_limits<float>::infinity();
    const auto got = Quantize({format, {}}, {}, damaged, 16, 64).Values(NestedPlanes(format.bits));
    for (int r = 0; r < 16; ++r) {
      if (r == 5 || r == 9) continue;
      CHECK(std::equal(got.begin() + r * 64, got.begin() + (r + 1) * 64, clean.begin() + r * 64));
    }
  }
}

TEST_CASE("Columns that inputs make important lose less", "[quantizer]") {
  const int rows = 32, cols = 256;
  const std::vector<float> values = Gaussian(static_cast<size_t>(rows) * cols, 8);
  std::vector<float> squares(static_cast<size_t>(cols), 1.0f);
  for (int k = 0; k < cols; k += 5) squares[k] = 40.0f;
  for (const NestedFormat format : {NestedFormat{ScaleKind::kU8Min, 32, 2},
                                    {ScaleKind::kU8Min, 32, 4},
                                    {ScaleKind::kF16, 32, 4}}) {
    const int planes = NestedPlanes(format.bits);
    const auto blind = Quantize({format, {}}, {}, values, rows, cols).Values(planes);
    const auto told =
        Quantize({format, {}}, {.mean_square = squares, .compensation = {}}, values, rows, cols)
            .Values(planes);
    CHECK(Error(values, told, squares) < 0.9 * Error(values, blind, squares));
  }
}

TEST_CASE("A level's weight buys its error at the others' expense", "[quantizer]") {
  const int rows = 32, cols = 512;
  const std::vector<float> values = Gaussian(static_cast<size_t>(rows) * cols, 9);
  const NestedFormat format = {ScaleKind::kU8Min, 32, 4};
  const auto low = Quantize({format, {1, 0, 1}}, {}, values, rows, cols);
  const auto full = Quantize({format, {0, 0, 1}}, {}, values, rows, cols);
  CHECK(Error(values, low.Values(1)) < 0.95 * Error(values, full.Values(1)));
  CHECK(Error(values, low.Values(3)) > Error(values, full.Values(3)));
}

TEST_CASE("Every instruction set chooses the same scales and codes", "[quantizer]") {
  const std::vector<float> x = Gaussian(32 * 16, 10);
  std::vector<float> weight(32, 1.0f);
  weight[7] = 9;
  for (const bool symmetric : {false, true}) {
    for (int levels = 1; levels <= kMaxPlanes; ++levels) {
      cpu::GroupFitArgs args{};
      args.cols = 32;
      args.max_code = 255;
      args.symmetric = symmetric;
      args.min_at_most_zero = !symmetric;
      args.levels = levels;
      for (int l = 0; l < levels; ++l) {
        args.level[l] = {.dropped = l,
                         .add = static_cast<float>((1 << l) - 1) / 2 - (symmetric ? 128.0f : 0.0f),
                         .weight = 1.0f / static_cast<float>(1 + l)};
      }
      args.x = x.data();
      args.weight = weight.data();
      struct Outcome {
        float scale[16], min[16], error[16];
        int32_t codes[32 * 16];
      };
      const auto run = [&](cpu::Isa isa) {
        Outcome o{};
        const cpu::ConvertOps* fit = cpu::SelectConvertOps(isa);
        fit->fit(args, o.scale, o.min);
        fit->score(args, o.scale, o.min, o.error);
        fit->encode(args, o.scale, o.min, o.codes);
        return o;
      };
      const Outcome expected = run(cpu::Isa::kScalar);
      for (const cpu::Isa isa : {cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kNeon}) {
        if (cpu::SelectConvertOps(isa) == nullptr) continue;
        const Outcome got = run(isa);
        INFO(cpu::SelectConvertOps(isa)->name << ", " << levels << " levels");
        CHECK(std::equal(got.scale, got.scale + 16, expected.scale));
        CHECK(std::equal(got.min, got.min + 16, expected.min));
        CHECK(std::equal(got.error, got.error + 16, expected.error));
        CHECK(std::equal(got.codes, got.codes + 32 * 16, expected.codes));
      }
    }
  }
}

}  // namespace
}  // namespace sluice
