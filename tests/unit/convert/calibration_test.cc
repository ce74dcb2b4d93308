#include "engine/convert/calibration.h"

#include <cmath>
#include <filesystem>
#include <memory>
#include <random>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

std::vector<float> Values(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

std::vector<const float*> Rows(const std::vector<float>& values, int cols) {
  std::vector<const float*> rows;
  for (size_t i = 0; i < values.size(); i += static_cast<size_t>(cols)) {
    rows.push_back(values.data() + i);
  }
  return rows;
}

// Mean of x x^T with weights, plus `damping` times its mean diagonal.
std::vector<double> Hessian(const std::vector<float>& x, const std::vector<float>& weights,
                            int cols, double damping) {
  std::vector<double> h(static_cast<size_t>(cols) * cols);
  double total = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    total += weights[t];
    for (int i = 0; i < cols; ++i) {
      for (int j = 0; j < cols; ++j) {
        h[i * cols + j] += double{weights[t]} * x[t * cols + i] * x[t * cols + j];
      }
    }
  }
  double diagonal = 0;
  for (double& v : h) v /= total;
  for (int i = 0; i < cols; ++i) diagonal += h[i * cols + i] / cols;
  for (int i = 0; i < cols; ++i) h[i * cols + i] += damping * diagonal;
  return h;
}

// Largest entry of U^T U H - I.
double InverseError(const std::vector<float>& u, const std::vector<double>& h, int n) {
  double worst = 0;
  std::vector<double> inverse(static_cast<size_t>(n) * n);
  for (int k = 0; k < n; ++k) {
    for (int i = k; i < n; ++i) {
      for (int j = k; j < n; ++j) {
        inverse[i * n + j] += double{u[k * n + i]} * u[k * n + j];
      }
    }
  }
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      double product = i == j ? -1 : 0;
      for (int k = 0; k < n; ++k) product += inverse[i * n + k] * h[k * n + j];
      worst = std::max(worst, std::abs(product));
    }
  }
  return worst;
}

TEST_CASE("The compensation factor inverts the second moments, few inputs or many",
          "[calibration]") {
  for (const int cols : {5, 32, 77}) {
    for (const int count : {3, 400}) {
      const std::vector<float> x = Values(static_cast<size_t>(count) * cols, 4);
      std::vector<float> weights(static_cast<size_t>(count));
      for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.1f + static_cast<float>(i % 7);
      InputMoments moments;
      const auto rows = Rows(x, cols);
      // In two parts, as steps give them.
      moments.Add(rows.data(), weights.data(), 2, cols, true);
      moments.Add(rows.data() + 2, weights.data() + 2, count - 2, cols, true);
      const std::vector<float> u = moments.Compensation(0.02);
      REQUIRE(u.size() == static_cast<size_t>(cols) * cols);
      for (int i = 0; i < cols; ++i) {
        for (int j = 0; j < i; ++j) REQUIRE(u[i * cols + j] == 0);
      }
      INFO(cols << " columns, " << count << " inputs");
      CHECK(InverseError(u, Hessian(x, weights, cols, 0.02), cols) < 2e-3);
      const std::vector<float> squares = moments.MeanSquare();
      const std::vector<double> h = Hessian(x, weights, cols, 0);
      for (int k = 0; k < cols; ++k) CHECK(squares[k] == Approx(h[k * cols + k]));
    }
  }
}

TEST_CASE("A prior counts as the inputs that it stands for", "[calibration]") {
  const int cols = 19;
  const std::vector<float> own = Values(4 * cols, 5), other = Values(200 * cols, 6);
  InputMoments few, many;
  few.Add(Rows(own, cols).data(), nullptr, 4, cols, true);
  many.Add(Rows(other, cols).data(), nullptr, 200, cols, true);
  std::vector<float> both = own, weights(4, 1.0f);
  both.insert(both.end(), other.begin(), other.end());
  weights.resize(204, 16.0f / 200);
  CHECK(InverseError(few.Compensation(0.01, &many, 16), Hessian(both, weights, cols, 0.01), cols) <
        1e-3);
  InputMoments merged;
  merged.Merge(few);
  merged.Merge(many);
  CHECK(merged.weight() == Approx(204));
  const std::vector<float> ones(204, 1.0f);
  CHECK(InverseError(merged.Compensation(0.01), Hessian(both, ones, cols, 0.01), cols) < 1e-3);
}

TEST_CASE("Inputs that were never seen give a factor that changes nothing", "[calibration]") {
  InputMoments moments;
  CHECK(moments.Compensation(0.01).empty());
  const std::vector<float> zeros(8, 0.0f);
  moments.Add(Rows(zeros, 8).data(), nullptr, 1, 8, true);
  const std::vector<float> u = moments.Compensation(0.01);
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) CHECK(u[i * 8 + j] == (i == j ? 1.0f : 0.0f));
  }
}

struct Run {
  std::unique_ptr<Calibrator> calibrator;
  std::unique_ptr<Model> model;
};

Run Calibrate(const char* name, const CalibrationOptions& options, int batch,
              const std::vector<std::vector<int32_t>>& sequences) {
  const fs::path directory = fs::path(SLUICE_TEST_DATA) / "models" / name;
  ModelOptions model_options;
  model_options.threads = 2;
  model_options.kv_blocks = 16;
  model_options.max_batch_tokens = batch;
  auto plain = Model::Load(directory, model_options);
  REQUIRE(plain);
  Run run;
  run.calibrator = std::make_unique<Calibrator>((*plain)->config(), options);
  model_options.observer = run.calibrator.get();
  auto model = Model::Load(directory, model_options);
  REQUIRE(model);
  run.model = std::move(*model);
  RunCalibration(run.model.get(), sequences);
  return run;
}

std::vector<std::vector<int32_t>> Sequences(int vocab) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 230; ++i) tokens.push_back((i * 37 + i * i) % vocab);
  return CutSequences(tokens, 100);
}

TEST_CASE("Calibration counts every token once, whatever the chunks", "[calibration]") {
  const auto sequences = Sequences(64);
  REQUIRE(sequences.size() == 2);
  CalibrationOptions options;
  options.samples_per_expert = 3;
  options.moments_first_layer = 1;
  options.moments_end_layer = 2;
  const Run run = Calibrate("qwen3_moe", options, 64, sequences);
  const ModelConfig& config = run.model->config();
  const CalibrationStatistics& statistics = run.calibrator->statistics();
  CHECK(statistics.tokens == 200);
  REQUIRE(static_cast<int>(statistics.layers.size()) == config.num_layers());
  CHECK(statistics.head.weight() == 200);
  for (size_t l = 0; l < statistics.layers.size(); ++l) {
    const LayerStatistics& layer = statistics.layers[l];
    CHECK(layer.attention_inputs.weight() == 200);
    CHECK(layer.attention_inputs.has_products() == (l == 1));
    CHECK(layer.attention_outputs.weight() == 200);
    CHECK(layer.attention_outputs.cols() == config.heads * config.head_dim);
    REQUIRE(static_cast<int>(layer.experts.size()) == config.router.num_experts);
    int64_t count = 0;
    double weight = 0;
    for (const ExpertStatistics& expert : layer.experts) {
      count += expert.count;
      weight += expert.weight;
      CHECK(expert.sample_weights.size() <= 6);
      CHECK(expert.sample_weights.size() >= std::min<size_t>(3, static_cast<size_t>(expert.count)));
      CHECK(expert.samples.size() == expert.sample_weights.size() * config.hidden);
      if (expert.count > 0) CHECK(expert.peak > 0);
    }
    CHECK(count == 200 * config.router.experts_per_token);
    if (config.router.renormalize) CHECK(weight == Approx(200));
    CHECK(layer.MergedInputs().has_products() == (l == 1));
  }
  // The same sums, up to the order of addition, token by token.
  const Run slow = Calibrate("qwen3_moe", options, 1, sequences);
  for (size_t l = 0; l < statistics.layers.size(); ++l) {
    for (size_t e = 0; e < statistics.layers[l].experts.size(); ++e) {
      const ExpertStatistics& a = statistics.layers[l].experts[e];
      const ExpertStatistics& b = slow.calibrator->statistics().layers[l].experts[e];
      CHECK(a.count == b.count);
      CHECK(a.peak == b.peak);
      CHECK(a.samples == b.samples);
      const auto x = a.down_inputs.MeanSquare(), y = b.down_inputs.MeanSquare();
      REQUIRE(x.size() == y.size());
      for (size_t k = 0; k < x.size(); ++k) CHECK(x[k] == Approx(y[k]).margin(1e-12));
    }
  }
}

TEST_CASE("Experts can share their layer's second moments", "[calibration]") {
  CalibrationOptions options;
  options.moments_end_layer = 99;
  const auto sequences = Sequences(64);
  const Run own = Calibrate("olmoe", options, 64, sequences);
  options.expert_moments = false;
  const Run shared = Calibrate("olmoe", options, 64, sequences);
  const LayerStatistics& a = own.calibrator->statistics().layers[0];
  const LayerStatistics& b = shared.calibrator->statistics().layers[0];
  CHECK_FALSE(a.expert_inputs.has_products());
  CHECK(b.expert_inputs.has_products());
  CHECK_FALSE(b.experts[0].inputs.has_products());
  const auto u = a.MergedInputs().Compensation(0.01), v = b.MergedInputs().Compensation(0.01);
  REQUIRE(u.size() == v.size());
  double worst = 0, largest = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    worst = std::max(worst, std::abs(double{u[i]} - v[i]));
    largest = std::max(largest, std::abs(double{u[i]}));
  }
  CHECK(worst < 1e-2 * largest);
}

TEST_CASE("A dense layer's network and shared experts have statistics too", "[calibration]") {
  const Run run = Calibrate("qwen2_moe_dense_layers", {}, 64, Sequences(64));
  const ModelConfig& config = run.model->config();
  bool dense = false;
  for (int l = 0; l < config.num_layers(); ++l) {
    const LayerStatistics& layer = run.calibrator->statistics().layers[l];
    CHECK(layer.shared.count == 200);
    if (config.layers[l].sparse) continue;
    dense = true;
    CHECK(layer.experts.empty());
    CHECK(layer.shared.down_inputs.cols() == config.dense_intermediate);
  }
  CHECK(dense);
}

}  // namespace
}  // namespace sluice
