#include <cmath>
#include <cstring>

#include "kernels/cpu/ops.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/nested_fixture.h"

namespace sluice::cpu {
namespace {

std::string Case(const Ops& ops, NestedFormat format, int planes, int cols, int tokens) {
  return std::string(ops.name) + " " + sluice::Case(format) + " planes " + std::to_string(planes) +
         " cols " + std::to_string(cols) + " tokens " + std::to_string(tokens);
}

std::vector<float> Multiply(const Ops& ops, const NestedMatrix& matrix, int planes,
                            NestedLevel level, const std::vector<float>& x, int tokens,
                            const float* bias, const std::vector<int>& cuts = {}) {
  const int cols = matrix.cols, rows = matrix.rows;
  Guarded<uint8_t> activations(ops.nested_activation_bytes(tokens, cols));
  ops.nested_pack_activations(x.data(), cols, nullptr, tokens, cols, activations.data());
  REQUIRE(activations.Intact());
  Guarded<uint8_t> scratch(NestedScratchBytes(cols));
  Guarded<float> y(static_cast<size_t>(tokens) * rows, 4);
  NestedMatmulArgs args = {};
  args.format = matrix.format;
  args.level = level;
  args.planes = planes;
  for (int i = 0; i < planes; ++i) args.plane[i] = matrix.planes[i];
  args.x = activations.data();
  args.tokens = tokens;
  args.cols = cols;
  // Prefetch may go anywhere that is named; here, back to the start.
  for (int i = 0; i < planes; ++i) args.next[i] = matrix.planes[i];
  args.rows = rows;
  args.bias = bias;
  args.y = y.data();
  args.y_stride = rows;
  args.scratch = scratch.data();
  std::vector<int> ends = cuts;
  ends.push_back(PanelCount(rows));
  int begin = 0;
  for (const int end : ends) {
    args.panel_begin = begin;
    args.panel_end = end;
    ops.nested_matmul(args);
    begin = end;
  }
  REQUIRE(y.Intact());
  REQUIRE(scratch.Intact());
  return std::vector<float>(y.data(), y.data() + static_cast<size_t>(tokens) * rows);
}

TEST_CASE("Nested matmul agrees with dequantized weights at every precision", "[kernels][nested]") {
  Numbers numbers(41);
  for (const Ops* ops : AvailableOps()) {
    for (const NestedFormat format : AllNestedFormats()) {
      for (const auto& [rows, cols] : {std::pair(1, 1),
                                       {16, 15},
                                       {17, 16},
                                       {5, 17},
                                       {33, 31},
                                       {16, 32},
                                       {40, 33},
                                       {20, 255},
                                       {31, 256},
                                       {18, 257},
                                       {35, 600}}) {
        NestedMatrix matrix(format, rows, cols, numbers);
        const std::vector<float> bias = numbers.Vector(rows, 0.01f);
        for (int planes = 1; planes <= NestedPlanes(format.bits); ++planes) {
          const int tokens = 1 + (cols + planes) % 5;
          INFO(Case(*ops, format, planes, cols, tokens));
          const float* add = cols % 2 == 0 ? bias.data() : nullptr;
          const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * cols);
          NestedLevel level = DefaultNestedLevel(format, planes);
          // A fitted level is any pair of numbers.
          if (rows == 35) level = {level.mul * 1.03f, level.add - 0.21f};
          const std::vector<float> y = Multiply(*ops, matrix, planes, level, x, tokens, add);
          CHECK(WorstError(matrix, planes, level, x, tokens, add, y) < 2e-6);
        }
      }
    }
  }
}

TEST_CASE("Nested matmul is exact in its integer dot products at the extremes",
          "[kernels][nested]") {
  // All codes the largest, all inputs +-127 steps: sums that saturate narrow arithmetic. With a
  // scale of 1, an offset of 0 and 32 columns the result is an integer that F32 holds.
  for (const Ops* ops : AvailableOps()) {
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      const NestedFormat format = {ScaleKind::kF16Min, 32, static_cast<uint8_t>(bits)};
      Numbers numbers(42);
      NestedMatrix matrix(format, 16, 32, numbers);
      NestedPanel panel = matrix.panels[0];
      std::fill(panel.codes.begin(), panel.codes.end(), static_cast<uint8_t>((1 << bits) - 1));
      std::fill(panel.scale.begin(), panel.scale.end(), F32ToF16(1.0f));
      std::fill(panel.min.begin(), panel.min.end(), uint16_t{0});
      EncodeNestedPanel(format, 32, panel, 0, matrix.planes);
      for (const int tokens : {1, 3, 13}) {
        for (const float x : {127.0f, -127.0f}) {
          INFO(Case(*ops, format, NestedPlanes(bits), 32, tokens));
          const std::vector<float> y =
              Multiply(*ops, matrix, NestedPlanes(bits), {1, 0},
                       std::vector<float>(static_cast<size_t>(tokens) * 32, x), tokens, nullptr);
          CHECK(y == std::vector<float>(y.size(), 32 * x * static_cast<float>((1 << bits) - 1)));
        }
      }
    }
  }
}

TEST_CASE("Nested matmul gives each token the same bytes in any company and any cut",
          "[kernels][nested]") {
  Numbers numbers(43);
  const int rows = 16 * 6 + 5, cols = 300, most = 29;
  for (const Ops* ops : AvailableOps()) {
    for (const NestedFormat format : AllNestedFormats()) {
      if (format.bits == 3) continue;  // its precisions are those of 4 bits
      NestedMatrix matrix(format, rows, cols, numbers);
      const std::vector<float> bias = numbers.Vector(rows);
      const std::vector<float> x = numbers.Vector(static_cast<size_t>(most) * cols);
      for (int planes = 1; planes <= NestedPlanes(format.bits); ++planes) {
        // Shorter codes repeat what 8 bits show.
        if (format.bits != 8 && planes != NestedPlanes(format.bits)) continue;
        const NestedLevel level = DefaultNestedLevel(format, planes);
        std::vector<float> alone;
        for (int t = 0; t < most; ++t) {
          const std::vector<float> one(x.begin() + t * cols, x.begin() + (t + 1) * cols);
          const std::vector<float> y = Multiply(*ops, matrix, planes, level, one, 1, bias.data());
          alone.insert(alone.end(), y.begin(), y.end());
        }
        for (const int tokens : {2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 20, 25, 29}) {
          INFO(Case(*ops, format, planes, cols, tokens));
          const std::vector<int> cuts =
              tokens % 2 == 0 ? std::vector<int>{} : std::vector<int>{tokens % 7, 6};
          const std::vector<float> y =
              Multiply(*ops, matrix, planes, level, x, tokens, bias.data(), cuts);
          CHECK(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("Nested matmul gives one token the same bytes however the panels are split",
          "[kernels][nested]") {
  Numbers numbers(44);
  const int rows = 16 * 11 - 3, cols = 96;
  for (const Ops* ops : AvailableOps()) {
    const NestedFormat format = {ScaleKind::kU8Min, 16, 8};
    NestedMatrix matrix(format, rows, cols, numbers);
    const std::vector<float> x = numbers.Vector(cols);
    for (int planes = 1; planes <= 5; ++planes) {
      INFO(Case(*ops, format, planes, cols, 1));
      const NestedLevel level = DefaultNestedLevel(format, planes);
      const std::vector<float> whole = Multiply(*ops, matrix, planes, level, x, 1, nullptr);
      for (const std::vector<int>& cuts :
           {std::vector<int>{1}, {4, 8}, {3, 5, 6}, {0, 10}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}) {
        const std::vector<float> y = Multiply(*ops, matrix, planes, level, x, 1, nullptr, cuts);
        CHECK(std::memcmp(y.data(), whole.data(), y.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("Nested matmul reads no plane beyond its precision", "[kernels][nested]") {
  Numbers numbers(45);
  for (const Ops* ops : AvailableOps()) {
    for (int planes = 1; planes < 5; ++planes) {
      NestedMatrix matrix({ScaleKind::kI8, 16, 8}, 16, 64, numbers);
      for (int i = planes; i < 5; ++i) matrix.planes[i] = nullptr;
      INFO(Case(*ops, matrix.format, planes, 64, 2));
      const std::vector<float> x = numbers.Vector(128);
      const NestedLevel level = DefaultNestedLevel(matrix.format, planes);
      const std::vector<float> y = Multiply(*ops, matrix, planes, level, x, 2, nullptr);
      CHECK(WorstError(matrix, planes, level, x, 2, nullptr, y) < 2e-6);
    }
  }
}

TEST_CASE("Packing nested activations through a gather list equals packing the gathered rows",
          "[kernels][nested]") {
  Numbers numbers(46);
  const int cols = 77, stride = 80;
  for (const Ops* ops : AvailableOps()) {
    for (const int tokens : {1, 3, 14}) {
      INFO(ops->name << " tokens " << tokens);
      Guarded<float> x(static_cast<size_t>(50) * stride, 4);
      x.Assign(numbers.Vector(static_cast<size_t>(50) * stride));
      std::vector<int32_t> gather(tokens);
      std::vector<float> rows;
      for (int32_t& row : gather) {
        row = numbers.Below(50);
        rows.insert(rows.end(), x.data() + row * stride, x.data() + row * stride + cols);
      }
      const size_t bytes = ops->nested_activation_bytes(tokens, cols);
      Guarded<uint8_t> gathered(bytes), direct(bytes);
      ops->nested_pack_activations(x.data(), stride, gather.data(), tokens, cols, gathered.data());
      ops->nested_pack_activations(rows.data(), cols, nullptr, tokens, cols, direct.data());
      CHECK(gathered.Intact());
      CHECK(std::memcmp(gathered.data(), direct.data(), bytes) == 0);
    }
  }
}

TEST_CASE("Nested matmul passes on what no 8-bit input can hold", "[kernels][nested]") {
  Numbers numbers(47);
  const int cols = 96;
  for (const Ops* ops : AvailableOps()) {
    INFO(ops->name);
    NestedMatrix matrix({ScaleKind::kF16, 32, 4}, 16, cols, numbers);
    const NestedLevel level = DefaultNestedLevel(matrix.format, 3);
    std::vector<float> x(cols, 0.0f);
    for (const float y : Multiply(*ops, matrix, 3, level, x, 1, nullptr)) CHECK(y == 0.0f);
    // Too small for a scale of their own: zeros.
    for (int k = 0; k < cols; ++k) x[k] = k % 2 == 0 ? 1e-45f : -1e-45f;
    for (const float y : Multiply(*ops, matrix, 3, level, x, 1, nullptr)) CHECK(y == 0.0f);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (const int at : {0, 17, 40, 95}) {
        x = numbers.Vector(cols);
        x[at] = bad;
        for (const float y : Multiply(*ops, matrix, 3, level, x, 1, nullptr)) {
          CHECK(std::isnan(y));
        }
      }
    }
  }
}

TEST_CASE("Nested matmul leaves the gap between output rows alone", "[kernels][nested]") {
  Numbers numbers(48);
  const int rows = 21, cols = 48, stride = 30;
  for (const Ops* ops : AvailableOps()) {
    NestedMatrix matrix({ScaleKind::kU8Min, 32, 4}, rows, cols, numbers);
    for (const int tokens : {1, 2, 9, 17}) {
      INFO(ops->name << " tokens " << tokens);
      const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * cols);
      Guarded<uint8_t> activations(ops->nested_activation_bytes(tokens, cols));
      ops->nested_pack_activations(x.data(), cols, nullptr, tokens, cols, activations.data());
      Guarded<uint8_t> scratch(NestedScratchBytes(cols));
      Guarded<float> y(static_cast<size_t>(tokens) * stride, 4);
      y.Assign(std::vector<float>(static_cast<size_t>(tokens) * stride, -7.0f));
      NestedMatmulArgs args = {};
      args.format = matrix.format;
      args.level = DefaultNestedLevel(matrix.format, 3);
      args.planes = 3;
      for (int i = 0; i < 3; ++i) args.plane[i] = matrix.planes[i];
      args.x = activations.data();
      args.tokens = tokens;
      args.cols = cols;
      args.panel_end = PanelCount(rows);
      args.rows = rows;
      args.y = y.data();
      args.y_stride = stride;
      args.scratch = scratch.data();
      ops->nested_matmul(args);
      CHECK(y.Intact());
      int touched = 0;
      for (int t = 0; t < tokens; ++t) {
        for (int i = rows; i < stride; ++i) touched += y.data()[t * stride + i] != -7.0f;
      }
      CHECK(touched == 0);
    }
  }
}

TEST_CASE("The 8-bit roofline counts what it did", "[kernels][nested]") {
  for (const Ops* ops : AvailableOps()) {
    INFO(ops->name);
    float sink = 0;
    const int64_t once = ops->nested_peak_macs(1, &sink);
    CHECK(once > 0);
    CHECK(ops->nested_peak_macs(10, &sink) == 10 * once);
    CHECK(sink == 0.0f);
  }
}

}  // namespace
}  // namespace sluice::cpu
