// Bit-nested matrices through the CPU backend, beside the same weights dequantized.
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/tensor/cpu_backend.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

uint32_t Next(uint32_t& seed) { return (seed = seed * 1664525u + 1013904223u) >> 8; }

std::vector<float> Values(size_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(Next(seed)) / 8388608.0f - 1.0f;
  return values;
}

// A matrix of random codes with scales of about 1/64.
struct Matrix {
  std::vector<float> values;  // dequantized, row-major
  DeviceBuffer memory;
  PackedMatrix packed;
};

Matrix MakeMatrix(int rows, int cols, int bits, uint32_t seed) {
  const NestedFormat format = {ScaleKind::kU8Min, 32, static_cast<uint8_t>(bits)};
  Matrix matrix;
  auto memory = DeviceBuffer::Host(NestedBytes(format, rows, cols, NestedPlanes(bits)), "a test");
  REQUIRE(memory.has_value());
  matrix.memory = std::move(*memory);
  std::byte* planes[kMaxPlanes] = {};
  matrix.packed.rows = rows;
  matrix.packed.cols = cols;
  NestedPlanesView& view = matrix.packed.nested;
  view = {.format = format,
          .level = DefaultNestedLevel(format, NestedPlanes(bits)),
          .count = NestedPlanes(bits)};
  size_t at = 0;
  for (int i = 0; i < view.count; ++i) {
    planes[i] = matrix.memory.as<std::byte>() + at;
    view.planes[i] = planes[i];
    at += NestedPlaneBytes(format, rows, cols, i);
  }
  NestedPanel panel;
  for (int p = 0; p < matrix.packed.panels(); ++p) {
    panel.Resize(format, cols);
    for (uint8_t& code : panel.codes) code = static_cast<uint8_t>(Next(seed) % (1u << bits));
    for (uint16_t& d : panel.super_scale) d = 0x1400;  // 2^-10 in F16
    for (uint16_t& d : panel.super_min) d = 0x1400;
    for (uint16_t& scale : panel.scale) scale = static_cast<uint16_t>(8 + Next(seed) % 16);
    for (uint16_t& min : panel.min) min = static_cast<uint16_t>(Next(seed) % 200);
    EncodeNestedPanel(format, cols, panel, p, planes);
  }
  matrix.values.resize(static_cast<size_t>(rows) * cols);
  DequantizeNested(format, cols, view.planes.data(), view.count, view.level, 0, rows,
                   matrix.values.data());
  return matrix;
}

std::unique_ptr<CpuBackend> MakeBackend(int threads, int terms) {
  auto backend =
      std::make_unique<CpuBackend>(cpu::SelectOps(cpu::Isa::kAuto), threads, false, terms);
  WorkspaceLimits limits;
  limits.max_tokens = 200;
  limits.max_cols = 320;
  limits.max_mlp_groups = 4;
  limits.max_mlp_rows = 400;
  limits.max_mlp_width = 192;
  limits.max_mlp_values = 400 * 192;
  REQUIRE(backend->Prepare(limits).has_value());
  return backend;
}

// Largest error of y = x W^T + b over the largest value.
double LinearError(const std::vector<float>& y, const std::vector<float>& x, const Matrix& matrix,
                   const std::vector<float>& bias, int tokens) {
  const int rows = matrix.packed.rows, cols = matrix.packed.cols;
  double error = 0, peak = 0;
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < rows; ++r) {
      double sum = bias[r];
      for (int k = 0; k < cols; ++k) {
        sum += double{x[static_cast<size_t>(t) * cols + k]} *
               matrix.values[static_cast<size_t>(r) * cols + k];
      }
      error = std::max(error, std::fabs(y[static_cast<size_t>(t) * rows + r] - sum));
      peak = std::max(peak, std::fabs(sum));
    }
  }
  return error / peak;
}

std::vector<float> RunLinear(CpuBackend& backend, const Matrix& matrix, const std::vector<float>& x,
                             const std::vector<float>& bias, int tokens) {
  std::vector<float> y(static_cast<size_t>(tokens) * matrix.packed.rows);
  const LinearOutput output = {.weight = matrix.packed,
                               .bias = bias.data(),
                               .y = y.data(),
                               .y_stride = matrix.packed.rows,
                               .add = false};
  backend.Linear({.x = x.data(),
                  .x_stride = matrix.packed.cols,
                  .tokens = tokens,
                  .cols = matrix.packed.cols,
                  .norm_weight = nullptr,
                  .norm_eps = 0,
                  .normed = nullptr,
                  .outputs = {&output, 1}});
  return y;
}

}  // namespace

TEST_CASE("Linear with bit-nested weights is as exact as its activations have terms", "[tensor]") {
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    const Matrix matrix = MakeMatrix(200, 300, bits, 7);
    const std::vector<float> bias = Values(200, 3);
    for (const int tokens : {1, 5, 64, 130}) {
      INFO(bits << " bits, " << tokens << " tokens");
      const std::vector<float> x = Values(static_cast<size_t>(tokens) * 300, 11);
      const auto narrow = RunLinear(*MakeBackend(2, 1), matrix, x, bias, tokens);
      const auto wide = RunLinear(*MakeBackend(2, 2), matrix, x, bias, tokens);
      const double narrow_error = LinearError(narrow, x, matrix, bias, tokens);
      const double wide_error = LinearError(wide, x, matrix, bias, tokens);
      CHECK(narrow_error < 0.01);
      CHECK(wide_error < 1e-4);
      CHECK(wide_error < narrow_error / 20);
      const auto widest = RunLinear(*MakeBackend(2, 3), matrix, x, bias, tokens);
      CHECK(LinearError(widest, x, matrix, bias, tokens) < 5e-6);
    }
  }
}

TEST_CASE("Bit-nested results are the same for every number of tokens and threads", "[tensor]") {
  const Matrix matrix = MakeMatrix(200, 300, 4, 5);
  const std::vector<float> bias = Values(200, 3);
  const std::vector<float> x = Values(130 * 300, 11);
  for (const int terms : {1, 2, 3}) {
    const auto all = RunLinear(*MakeBackend(1, terms), matrix, x, bias, 130);
    CHECK(RunLinear(*MakeBackend(3, terms), matrix, x, bias, 130) == all);
    for (const int token : {0, 63, 64, 129}) {
      INFO("token " << token << ", terms " << terms);
      const std::vector<float> row(x.begin() + token * 300, x.begin() + (token + 1) * 300);
      const auto alone = RunLinear(*MakeBackend(2, terms), matrix, row, bias, 1);
      CHECK(std::memcmp(alone.data(), all.data() + static_cast<ptrdiff_t>(token) * 200,
                        200 * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("Embedding rows of a bit-nested table are its dequantized rows", "[tensor]") {
  const Matrix matrix = MakeMatrix(100, 300, 6, 9);
  const auto backend = MakeBackend(2, 1);
  const std::vector<int32_t> ids = {0, 99, 17, 16, 15};
  std::vector<float> out(ids.size() * 300);
  backend->Embed({.rows = {}, .packed = matrix.packed}, ids, out.data());
  for (size_t i = 0; i < ids.size(); ++i) {
    CHECK(std::memcmp(out.data() + i * 300, matrix.values.data() + ids[i] * 300,
                      300 * sizeof(float)) == 0);
  }
}

TEST_CASE("Mlp mixes bit-nested groups of several precisions", "[tensor]") {
  const int hidden = 320, width = 192;
  std::vector<Matrix> gates, ups, downs;
  for (const int bits : {2, 4, 8}) {
    gates.push_back(MakeMatrix(width, hidden, bits, 1 + bits));
    ups.push_back(MakeMatrix(width, hidden, bits, 2 + bits));
    downs.push_back(MakeMatrix(hidden, width, bits, 3 + bits));
  }
  const std::vector<float> x = Values(100 * hidden, 21);
  std::vector<int32_t> rows[3];
  for (int t = 0; t < 100; ++t) {
    rows[t % 3].push_back(t);
    if (t % 7 == 0) rows[(t + 1) % 3].push_back(t);
  }
  std::vector<MlpGroup> groups;
  size_t total = 0;
  for (int g = 0; g < 3; ++g) {
    groups.push_back({.gate = gates[g].packed,
                      .up = ups[g].packed,
                      .down = downs[g].packed,
                      .rows = rows[g].data(),
                      .count = static_cast<int>(rows[g].size())});
    total += rows[g].size();
  }
  std::vector<float> y(total * hidden);
  const auto backend = MakeBackend(2, 2);
  backend->Mlp(
      {.x = x.data(), .x_stride = hidden, .hidden = hidden, .groups = groups, .y = y.data()});
  size_t at = 0;
  double error = 0, square = 0;
  for (int g = 0; g < 3; ++g) {
    for (const int32_t row : rows[g]) {
      std::vector<double> inner(width);
      for (int i = 0; i < width; ++i) {
        double gate = 0, up = 0;
        for (int k = 0; k < hidden; ++k) {
          const double value = x[static_cast<size_t>(row) * hidden + k];
          gate += value * gates[g].values[static_cast<size_t>(i) * hidden + k];
          up += value * ups[g].values[static_cast<size_t>(i) * hidden + k];
        }
        inner[i] = gate / (1 + std::exp(-gate)) * up;
      }
      for (int r = 0; r < hidden; ++r) {
        double wanted = 0;
        for (int i = 0; i < width; ++i) {
          wanted += inner[i] * downs[g].values[static_cast<size_t>(r) * width + i];
        }
        error += (y[at * hidden + r] - wanted) * (y[at * hidden + r] - wanted);
        square += wanted * wanted;
      }
      ++at;
    }
  }
  CHECK(std::sqrt(error / square) < 1e-4);
}

}  // namespace sluice
