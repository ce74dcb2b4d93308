#include <cmath>
#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/reference/reference.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/kernel_fixture.h"

namespace sluice::cpu {
namespace {

struct Problem {
  DType dtype;
  int rows;
  int cols;
  std::vector<uint8_t> weights;  // row-major
  Guarded<uint8_t> packed;

  Problem(const Ops& ops, DType dtype, int rows, int cols, Numbers& numbers)
      : dtype(dtype),
        rows(rows),
        cols(cols),
        weights(Encoded(dtype, numbers.Vector(static_cast<size_t>(rows) * cols))),
        packed(PackedMatrixBytes(dtype, rows, cols)) {
    // A source in the middle of a mapped file has any alignment.
    Guarded<uint8_t> source(weights.size(), 1);
    source.Assign(weights);
    ops.pack_matrix(dtype, source.data(), rows, cols, 0, PanelCount(rows), packed.data());
    REQUIRE(packed.Intact());
  }

  std::vector<float> Multiply(const Ops& ops, const std::vector<float>& x, int tokens,
                              const float* bias, const std::vector<int>& cuts = {}) {
    Guarded<uint8_t> activations(ops.activation_bytes(dtype, tokens, cols));
    ops.pack_activations(dtype, x.data(), cols, nullptr, tokens, cols, activations.data());
    REQUIRE(activations.Intact());
    Guarded<float> y(static_cast<size_t>(tokens) * rows);
    std::vector<int> ends = cuts;
    ends.push_back(PanelCount(rows));
    int begin = 0;
    for (const int end : ends) {
      ops.matmul({dtype, packed.data(), activations.data(), tokens, cols, begin, end, rows, bias,
                  y.data(), rows});
      begin = end;
    }
    REQUIRE(y.Intact());
    return std::vector<float>(y.data(), y.data() + static_cast<size_t>(tokens) * rows);
  }
};

bool SameBytes(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

TEST_CASE("A packed matrix holds its rows in panels padded with zeros", "[kernels][matmul]") {
  Numbers numbers(11);
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      for (const auto& [rows, cols] : {std::pair(1, 1), {16, 4}, {17, 5}, {40, 33}, {31, 64}}) {
        INFO(Case(*ops, dtype, "rows", rows));
        Problem problem(*ops, dtype, rows, cols, numbers);
        const int padded = dtype == DType::kBF16 ? (cols + 1) / 2 * 2 : cols;
        int wrong = 0;
        for (int r = 0; r < PanelCount(rows) * 16; ++r) {
          for (int k = 0; k < padded; ++k) {
            const int64_t panel = static_cast<int64_t>(r / 16) * padded * 16;
            const int64_t at = dtype == DType::kBF16 ? panel + k / 2 * 32 + r % 16 * 2 + k % 2
                                                     : panel + k * 16 + r % 16;
            const float expected = r < rows && k < cols
                                       ? reference::Element(dtype, problem.weights.data(),
                                                            static_cast<int64_t>(r) * cols + k)
                                       : 0.0f;
            wrong += reference::Element(dtype, problem.packed.data(), at) != expected;
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("Matmul agrees with the reference for widths around the vector width",
          "[kernels][matmul]") {
  Numbers numbers(12);
  std::vector<std::pair<int, int>> shapes;
  for (int n = 1; n <= 70; ++n) shapes.push_back({1 + n * 7 % 90, n});
  shapes.push_back({16, 1030});
  shapes.push_back({130, 768});
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      const DType rounding = ActivationRounding(*ops, dtype);
      for (const auto& [rows, cols] : shapes) {
        INFO(Case(*ops, dtype, "cols", cols));
        Problem problem(*ops, dtype, rows, cols, numbers);
        const int tokens = 1 + cols % 5;
        const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * cols);
        const std::vector<float> bias = numbers.Vector(rows);
        const float* add = cols % 2 == 0 ? bias.data() : nullptr;
        const std::vector<float> y = problem.Multiply(*ops, x, tokens, add);
        std::vector<float> expected(y.size());
        reference::Matmul(dtype, problem.weights.data(), rows, cols, rounding, x.data(), tokens,
                          add, expected.data(), rows);
        // The products are below 1 and so is the bias: the error is that of `cols` roundings of
        // sums of that size.
        const double tolerance = 2e-7 * (std::sqrt(cols) + 2);
        double worst = 0;
        for (size_t i = 0; i < y.size(); ++i) {
          worst = std::max(worst, std::fabs(static_cast<double>(y[i]) - expected[i]));
        }
        CHECK(worst <= tolerance * std::sqrt(cols));
      }
    }
  }
}

TEST_CASE("Matmul gives each token the same bytes in any company", "[kernels][matmul]") {
  Numbers numbers(13);
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      for (const auto& [rows, cols] : {std::pair(37, 101), {150, 64}, {16, 300}}) {
        Problem problem(*ops, dtype, rows, cols, numbers);
        const std::vector<float> bias = numbers.Vector(rows);
        const std::vector<float> x = numbers.Vector(static_cast<size_t>(40) * cols);
        std::vector<float> alone;
        for (int t = 0; t < 40; ++t) {
          const std::vector<float> one(x.begin() + t * cols, x.begin() + (t + 1) * cols);
          const std::vector<float> y = problem.Multiply(*ops, one, 1, bias.data());
          alone.insert(alone.end(), y.begin(), y.end());
        }
        for (int tokens = 2; tokens <= 40; ++tokens) {
          INFO(Case(*ops, dtype, "tokens", tokens));
          const std::vector<float> y = problem.Multiply(*ops, x, tokens, bias.data());
          CHECK(SameBytes(y.data(), alone.data(), y.size()));
        }
      }
    }
  }
}

TEST_CASE("Matmul gives the same bytes however the panels are split", "[kernels][matmul]") {
  Numbers numbers(14);
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      Problem problem(*ops, dtype, 16 * 11 - 3, 90, numbers);
      for (const int tokens : {1, 2, 5, 7, 13}) {
        INFO(Case(*ops, dtype, "tokens", tokens));
        const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * 90);
        const std::vector<float> whole = problem.Multiply(*ops, x, tokens, nullptr);
        for (const std::vector<int>& cuts :
             {std::vector<int>{1}, {4, 8}, {3, 5, 6}, {0, 10}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}) {
          const std::vector<float> y = problem.Multiply(*ops, x, tokens, nullptr, cuts);
          CHECK(SameBytes(y.data(), whole.data(), y.size()));
        }
      }
    }
  }
}

TEST_CASE("Packing activations through a gather list equals packing the gathered rows",
          "[kernels][matmul]") {
  Numbers numbers(15);
  const int cols = 77, stride = 80;
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      for (const int tokens : {1, 3, 14}) {
        INFO(Case(*ops, dtype, "tokens", tokens));
        Guarded<float> x(static_cast<size_t>(50) * stride, 4);
        x.Assign(numbers.Vector(static_cast<size_t>(50) * stride));
        std::vector<int32_t> gather(tokens);
        std::vector<float> rows;
        for (int32_t& row : gather) {
          row = numbers.Below(50);
          rows.insert(rows.end(), x.data() + row * stride, x.data() + row * stride + cols);
        }
        const size_t bytes = ops->activation_bytes(dtype, tokens, cols);
        Guarded<uint8_t> gathered(bytes), direct(bytes);
        ops->pack_activations(dtype, x.data(), stride, gather.data(), tokens, cols,
                              gathered.data());
        ops->pack_activations(dtype, rows.data(), cols, nullptr, tokens, cols, direct.data());
        CHECK(gathered.Intact());
        CHECK(std::memcmp(gathered.data(), direct.data(), bytes) == 0);
      }
    }
  }
}

TEST_CASE("Matmul leaves the gap between output rows alone", "[kernels][matmul]") {
  Numbers numbers(16);
  const int rows = 21, cols = 48, stride = 30;
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      for (const int tokens : {1, 2, 9}) {
        INFO(Case(*ops, dtype, "tokens", tokens));
        Problem problem(*ops, dtype, rows, cols, numbers);
        const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * cols);
        Guarded<uint8_t> activations(ops->activation_bytes(dtype, tokens, cols));
        ops->pack_activations(dtype, x.data(), cols, nullptr, tokens, cols, activations.data());
        Guarded<float> y(static_cast<size_t>(tokens) * stride, 4);
        y.Assign(std::vector<float>(static_cast<size_t>(tokens) * stride, -7.0f));
        ops->matmul({dtype, problem.packed.data(), activations.data(), tokens, cols, 0,
                     PanelCount(rows), rows, nullptr, y.data(), stride});
        CHECK(y.Intact());
        int touched = 0;
        for (int t = 0; t < tokens; ++t) {
          for (int i = rows; i < stride; ++i) touched += y.data()[t * stride + i] != -7.0f;
        }
        CHECK(touched == 0);
      }
    }
  }
}

TEST_CASE("The arithmetic roofline counts what it did", "[kernels][matmul]") {
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      INFO(Case(*ops, dtype, "iterations", 10));
      float sink = 0;
      const int64_t once = ops->peak_macs(dtype, 1, &sink);
      CHECK(once > 0);
      CHECK(ops->peak_macs(dtype, 10, &sink) == 10 * once);
      CHECK(sink == 0.0f);
    }
  }
}

}  // namespace
}  // namespace sluice::cpu
