#include "engine/convert/expert_error.h"

#include <cmath>
#include <random>
#include <vector>

#include "tests/support/catch.h"

namespace sluice {
namespace {

std::vector<float> Gaussian(size_t count, unsigned seed, float size) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

TEST_CASE("An expert's output error falls with its bits and is that of its outputs",
          "[allocation]") {
  const int hidden = 48, intermediate = 40;
  const auto gate = Gaussian(hidden * intermediate, 1, 0.2f);
  const auto up = Gaussian(hidden * intermediate, 2, 0.2f);
  const auto down = Gaussian(hidden * intermediate, 3, 0.2f);
  const auto samples = Gaussian(hidden * 20, 4, 1.0f);
  const ExpertFloats expert = {hidden, intermediate, gate, up, down};
  std::vector<NestedFormat> formats;
  for (const uint8_t bits : {2, 3, 4, 6, 8}) formats.push_back({ScaleKind::kU8Min, 32, bits});
  const auto errors = ExpertOutputErrors(expert, {}, {}, samples, formats);
  REQUIRE(errors.size() == 5);

  // The length of the outputs themselves, in double.
  double total = 0;
  for (int t = 0; t < 20; ++t) {
    std::vector<double> inner(intermediate);
    for (int i = 0; i < intermediate; ++i) {
      double g = 0, u = 0;
      for (int k = 0; k < hidden; ++k) {
        g += double{gate[i * hidden + k]} * samples[t * hidden + k];
        u += double{up[i * hidden + k]} * samples[t * hidden + k];
      }
      inner[i] = g / (1 + std::exp(-g)) * u;
    }
    for (int r = 0; r < hidden; ++r) {
      double y = 0;
      for (int i = 0; i < intermediate; ++i) y += down[r * intermediate + i] * inner[i];
      total += y * y;
    }
  }
  const double length = std::sqrt(total / 20);
  for (size_t i = 1; i < errors.size(); ++i) CHECK(errors[i] < 0.7 * errors[i - 1]);
  CHECK(errors[0] > 0.3 * length);
  CHECK(errors[0] < length);
  CHECK(errors[2] < 0.2 * length);
  CHECK(errors[4] < 0.015 * length);

  const auto none = ExpertOutputErrors(expert, {}, {}, {}, formats);
  CHECK(none == std::vector<double>(5, 0.0));
}

TEST_CASE("An expert's output error is that of what a pack would store, compensated or not",
          "[allocation]") {
  const int hidden = 64, intermediate = 32;
  const auto gate = Gaussian(hidden * intermediate, 1, 0.2f);
  const auto up = Gaussian(hidden * intermediate, 2, 0.2f);
  const auto down = Gaussian(hidden * intermediate, 3, 0.2f);
  const auto samples = Gaussian(hidden * 20, 4, 1.0f);
  std::vector<const float*> rows;
  for (int i = 0; i < 20; ++i) rows.push_back(samples.data() + i * hidden);
  InputMoments moments;
  moments.Add(rows.data(), nullptr, 20, hidden, true);
  const std::vector<float> squares = moments.MeanSquare();
  const std::vector<float> factor = moments.Compensation(0.01);
  const NestedFormat format = {ScaleKind::kU8Min, 32, 3};
  for (const bool compensated : {false, true}) {
    INFO("compensated: " << compensated);
    InputStatistics inputs = {squares, {}};
    if (compensated) inputs.compensation = factor;
    // As WeightEncoder makes panels, with the gain of the packer's rule written out.
    const auto stored = [&](const std::vector<float>& matrix, const InputStatistics& statistics,
                            double keep_gain, int matrix_rows, int cols) {
      std::vector<std::vector<std::byte>> bytes;
      std::byte* starts[kMaxPlanes] = {};
      for (int p = 0; p < NestedPlanes(format.bits); ++p) {
        bytes.emplace_back(NestedPlaneBytes(format, matrix_rows, cols, p));
        starts[p] = bytes.back().data();
      }
      NestedPanel panel;
      for (int first = 0; first < matrix_rows; first += kNestedRows) {
        QuantizePanel({.format = format, .keep_gain = keep_gain}, statistics,
                      matrix.data() + first * cols, kNestedRows, cols, &panel);
        EncodeNestedPanel(format, cols, panel, first / kNestedRows, starts);
      }
      std::vector<float> values(matrix.size());
      DequantizeNested(format, cols, starts, 2, DefaultNestedLevel(format, 2), 0, matrix_rows,
                       values.data());
      return values;
    };
    const double gain = compensated ? 0 : 1;
    const auto kept_gate = stored(gate, inputs, gain, intermediate, hidden);
    const auto kept_up = stored(up, inputs, gain, intermediate, hidden);
    const auto kept_down = stored(down, {}, 1, hidden, intermediate);
    const auto run = [&](const std::vector<float>& g, const std::vector<float>& u,
                         const std::vector<float>& d) {
      std::vector<double> outputs;
      for (int t = 0; t < 20; ++t) {
        double inner[intermediate];
        for (int i = 0; i < intermediate; ++i) {
          double a = 0, b = 0;
          for (int k = 0; k < hidden; ++k) {
            a += double{g[i * hidden + k]} * samples[t * hidden + k];
            b += double{u[i * hidden + k]} * samples[t * hidden + k];
          }
          inner[i] = a / (1 + std::exp(-a)) * b;
        }
        for (int r = 0; r < hidden; ++r) {
          double y = 0;
          for (int i = 0; i < intermediate; ++i) y += d[r * intermediate + i] * inner[i];
          outputs.push_back(y);
        }
      }
      return outputs;
    };
    const auto exact = run(gate, up, down), got = run(kept_gate, kept_up, kept_down);
    double lost = 0;
    for (size_t i = 0; i < exact.size(); ++i) lost += (exact[i] - got[i]) * (exact[i] - got[i]);
    const auto errors = ExpertOutputErrors({hidden, intermediate, gate, up, down}, inputs, {},
                                           samples, {&format, 1});
    CHECK(errors[0] == Approx(std::sqrt(lost / 20)).epsilon(1e-4));
  }
}

TEST_CASE("A profile is the share, the mean weight and the peak", "[allocation]") {
  ExpertStatistics statistics;
  statistics.count = 50;
  statistics.weight = 10;
  statistics.peak = 3;
  const ExpertProfile profile = ProfileOf(statistics, 200, {2, 1});
  CHECK(profile.frequency == Approx(0.25));
  CHECK(profile.mean_weight == Approx(0.2));
  CHECK(profile.peak == 3);
  CHECK(profile.output_error == std::vector<double>{2, 1});
  CHECK(ProfileOf({}, 0, {0, 0}).frequency == 0);
}

}  // namespace
}  // namespace sluice
