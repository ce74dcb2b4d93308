// Error compensation and fitted levels, judged by the error of outputs on correlated inputs.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/convert/calibration.h"
#include "engine/convert/quantizer.h"
#include "tests/support/catch.h"
#include "tests/unit/convert/nested_matrix.h"

namespace sluice {
namespace {

constexpr int kRows = 40, kCols = 300, kInputs = 900;

std::vector<float> Gaussian(size_t count, unsigned seed, float size) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

// Inputs whose columns share a few hidden causes, as activations do.
std::vector<float> CorrelatedInputs() {
  constexpr int kCauses = 24;
  const auto mixing = Gaussian(kCauses * kCols, 21, 1.0f);
  const auto causes = Gaussian(kInputs * kCauses, 22, 1.0f);
  auto x = Gaussian(kInputs * kCols, 23, 0.7f);
  for (int t = 0; t < kInputs; ++t) {
    for (int c = 0; c < kCauses; ++c) {
      for (int k = 0; k < kCols; ++k) {
        x[t * kCols + k] += causes[t * kCauses + c] * mixing[c * kCols + k];
      }
    }
  }
  return x;
}

struct Problem {
  std::vector<float> weights = Gaussian(kRows * kCols, 20, 0.02f);
  std::vector<float> x = CorrelatedInputs();
  InputMoments moments;
  std::vector<float> squares;
  std::vector<float> factor;

  Problem() {
    std::vector<const float*> rows;
    for (int t = 0; t < kInputs; ++t) rows.push_back(x.data() + t * kCols);
    moments.Add(rows.data(), nullptr, kInputs, kCols, true);
    squares = moments.MeanSquare();
    factor = moments.Compensation(0.01);
  }
  // Squared error of outputs relative to them.
  double OutputError(const std::vector<float>& got) const {
    double lost = 0, total = 0;
    for (int t = 0; t < kInputs; t += 7) {
      for (int r = 0; r < kRows; ++r) {
        double gap = 0, y = 0;
        for (int k = 0; k < kCols; ++k) {
          const double input = x[t * kCols + k];
          y += input * weights[r * kCols + k];
          gap += input * (double{got[r * kCols + k]} - weights[r * kCols + k]);
        }
        lost += gap * gap;
        total += y * y;
      }
    }
    return lost / total;
  }
  testing::NestedMatrix Quantize(const QuantizerOptions& options, bool compensate,
                                 LevelFit* fit = nullptr) const {
    const InputStatistics statistics = {
        .mean_square = squares,
        .compensation = compensate ? std::span<const float>(factor) : std::span<const float>()};
    testing::NestedMatrix matrix(options.format, kRows, kCols);
    NestedPanel panel;
    for (int first = 0; first < kRows; first += kNestedRows) {
      const int count = std::min(kNestedRows, kRows - first);
      QuantizePanel(options, statistics, weights.data() + first * kCols, count, kCols, &panel);
      matrix.Encode(panel, first / kNestedRows);
      if (fit != nullptr) {
        fit->Add(statistics, weights.data() + first * kCols, count, kCols, panel);
      }
    }
    return matrix;
  }
};

TEST_CASE("Compensation lowers the outputs' error in every format", "[quantizer]") {
  const Problem problem;
  for (const NestedFormat format : {NestedFormat{ScaleKind::kU8Min, 32, 2},
                                    {ScaleKind::kU8Min, 16, 3},
                                    {ScaleKind::kU8Min, 32, 4},
                                    {ScaleKind::kU8Min, 32, 6},
                                    {ScaleKind::kF16, 32, 4},
                                    {ScaleKind::kF16Min, 32, 4},
                                    {ScaleKind::kI8, 16, 3}}) {
    const int planes = NestedPlanes(format.bits);
    std::vector<double> levels(static_cast<size_t>(planes), 0.0);
    levels.back() = 1;
    const auto plain = problem.Quantize({format, levels}, false);
    const auto compensated = problem.Quantize({format, levels}, true);
    INFO("kind " << static_cast<int>(format.scales) << " bits " << int{format.bits});
    CHECK(problem.OutputError(compensated.Values(planes)) <
          0.5 * problem.OutputError(plain.Values(planes)));
  }
}

TEST_CASE("Compensation serves lower precisions that have a weight", "[quantizer]") {
  const Problem problem;
  for (const NestedFormat format :
       {NestedFormat{ScaleKind::kU8Min, 32, 4}, {ScaleKind::kF16, 32, 4}}) {
    const auto full = problem.Quantize({format, {0, 0, 1}}, true);
    const auto shared = problem.Quantize({format, {0.1, 0.3, 1}}, true);
    const auto plain = problem.Quantize({format, {0.1, 0.3, 1}}, false);
    for (const int planes : {1, 2}) {
      CHECK(problem.OutputError(shared.Values(planes)) <
            0.7 * problem.OutputError(full.Values(planes)));
      CHECK(problem.OutputError(shared.Values(planes)) <
            0.7 * problem.OutputError(plain.Values(planes)));
    }
    CHECK(problem.OutputError(shared.Values(3)) < problem.OutputError(plain.Values(3)));
  }
}

TEST_CASE("Without correlations compensation changes nothing", "[quantizer]") {
  Problem problem;
  std::fill(problem.factor.begin(), problem.factor.end(), 0.0f);
  for (int k = 0; k < kCols; ++k) problem.factor[k * kCols + k] = 0.5f;
  // Without the shared d and dmin, which leave room for weights that move.
  for (const NestedFormat format :
       {NestedFormat{ScaleKind::kF16, 32, 4}, {ScaleKind::kF16Min, 32, 5}}) {
    const int planes = NestedPlanes(format.bits);
    std::vector<double> levels(static_cast<size_t>(planes), 0.0);
    levels.back() = 1;
    const auto plain = problem.Quantize({format, levels, 0.0}, false).Values(planes);
    const auto same = problem.Quantize({format, levels, 0.0}, true).Values(planes);
    // Ties between two codes may fall either way.
    double gap = 0;
    for (size_t i = 0; i < plain.size(); ++i) gap += std::pow(double{plain[i]} - same[i], 2);
    CHECK(gap < 1e-9);
  }
}

TEST_CASE("Fitted levels lose less than the middle of the codes, full precision is kept",
          "[quantizer]") {
  const Problem problem;
  for (const NestedFormat format : {NestedFormat{ScaleKind::kU8Min, 32, 4},
                                    {ScaleKind::kI8, 16, 6},
                                    {ScaleKind::kF16Min, 32, 8}}) {
    LevelFit fit(format);
    const auto matrix = problem.Quantize({format, {}}, false, &fit);
    const std::vector<NestedLevel> levels = fit.Levels(0.0);
    REQUIRE(static_cast<int>(levels.size()) == matrix.planes());
    CHECK(levels.back() == DefaultNestedLevel(format, matrix.planes()));
    const auto error = [&](const std::vector<float>& got) {
      double lost = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        lost += problem.squares[i % kCols] * std::pow(double{got[i]} - problem.weights[i], 2);
      }
      return lost;
    };
    for (int planes = 1; planes < matrix.planes(); ++planes) {
      INFO("bits " << int{format.bits} << ", planes " << planes);
      CHECK(error(matrix.Values(planes, levels[planes - 1])) < error(matrix.Values(planes)));
    }

    // Two halves merged are the whole.
    LevelFit twice(format), half(format);
    problem.Quantize({format, {}}, false, &half);
    twice.Merge(half);
    twice.Merge(half);
    for (size_t l = 0; l < levels.size(); ++l) {
      CHECK(twice.Levels(0.0)[l].mul == Approx(levels[l].mul));
      CHECK(twice.Levels(0.0)[l].add == Approx(levels[l].add));
    }
  }
  // A matrix without codes has nothing to fit.
  const LevelFit empty({ScaleKind::kU8Min, 32, 4});
  CHECK(empty.Levels()[0] == DefaultNestedLevel({ScaleKind::kU8Min, 32, 4}, 1));
}

TEST_CASE("Outputs keep their size at every precision, unless least squares is asked for",
          "[quantizer]") {
  const Problem problem;
  for (const NestedFormat format : {NestedFormat{ScaleKind::kU8Min, 32, 2},
                                    {ScaleKind::kF16, 32, 3},
                                    {ScaleKind::kI8, 16, 4},
                                    {ScaleKind::kU8Min, 32, 8},
                                    {ScaleKind::kF16Min, 32, 4}}) {
    // Of w * value over w * w: what is left of an output of the same direction.
    const auto size = [&](const std::vector<float>& got) {
      double products = 0, squares = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        const double weighted = double{problem.squares[i % kCols]} * problem.weights[i];
        products += weighted * got[i];
        squares += weighted * problem.weights[i];
      }
      return products / squares;
    };
    INFO("kind " << static_cast<int>(format.scales) << " bits " << int{format.bits});
    LevelFit fit(format), plain_fit(format);
    const auto kept = problem.Quantize({format, {}, 1.0}, false, &fit);
    const auto plain = problem.Quantize({format, {}, 0.0}, false, &plain_fit);
    for (int planes = 1; planes <= kept.planes(); ++planes) {
      CHECK(size(kept.Values(planes, fit.Levels(1.0)[planes - 1])) == Approx(1).margin(0.008));
      const double shrunk = size(plain.Values(planes, plain_fit.Levels(0.0)[planes - 1]));
      const int bits = NestedPrecision(format.bits, planes);
      if (bits == 2) CHECK(shrunk < 0.95);
      if (bits == 3) CHECK(shrunk < 0.985);
    }
  }
}

}  // namespace
}  // namespace sluice
