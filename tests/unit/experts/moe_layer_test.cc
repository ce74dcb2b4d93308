// One expert layer against plain loops in double precision.
#include "engine/experts/moe_layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/experts/resident_experts.h"
#include "engine/tensor/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/scattered_values.h"

namespace sluice {
namespace {

constexpr int kHidden = 24;
constexpr int kWidth = 20;
constexpr int kSharedWidth = 36;
constexpr int kExperts = 6;

using Numbers = std::vector<float>;

// A layer's weights in both forms.
class Layer {
 public:
  explicit Layer(Backend* backend) : backend_(backend), experts(ExpertSpace{1, kExperts}) {
    norm = ScatteredValues(kHidden, 1);
    moe.norm = norm.data();
    moe.router = Pack(kExperts, kHidden, &router);
    for (int e = 0; e < kExperts; ++e) {
      experts.Entry({0, e}) = Network(kWidth, &expert[e][0]);
    }
  }
  void AddShared(bool gated) {
    moe.shared = Network(kSharedWidth, &shared[0]);
    if (gated) moe.shared_gate = Pack(1, kHidden, &shared_gate);
  }
  ExpertWeights Network(int width, Numbers* parts) {
    return {Pack(width, kHidden, &parts[0]), Pack(width, kHidden, &parts[1]),
            Pack(kHidden, width, &parts[2])};
  }

 private:
  PackedMatrix Pack(int rows, int cols, Numbers* values) {
    *values = ScatteredValues(static_cast<size_t>(rows) * cols, ++seed_ * 97);
    auto memory = backend_->Allocate(cpu::PackedMatrixBytes(DType::kF32, rows, cols), "a test");
    REQUIRE(memory.has_value());
    backend_->Pack(DType::kF32, values->data(), rows, cols, memory->data());
    memory_.push_back(std::move(*memory));
    return {DType::kF32, memory_.back().data(), rows, cols};
  }

  Backend* backend_;
  uint32_t seed_ = 0;
  std::vector<DeviceBuffer> memory_;

 public:
  MoeWeights moe;
  ResidentExperts experts;
  Numbers norm, router, shared_gate;
  Numbers expert[kExperts][3];
  Numbers shared[3];
};

std::vector<double> Product(const Numbers& matrix, const std::vector<double>& x) {
  std::vector<double> y(matrix.size() / x.size());
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += matrix[r * x.size() + c] * x[c];
  }
  return y;
}

std::vector<double> Network(const Numbers* parts, const std::vector<double>& x) {
  std::vector<double> gate = Product(parts[0], x);
  const std::vector<double> up = Product(parts[1], x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
  return Product(parts[2], gate);
}

std::vector<double> Norm(const float* x, const Numbers& weight, double eps) {
  double squares = 0;
  for (int i = 0; i < kHidden; ++i) squares += double{x[i]} * x[i];
  std::vector<double> normed(kHidden);
  for (int i = 0; i < kHidden; ++i) {
    normed[i] = x[i] / std::sqrt(squares / kHidden + eps) * weight[i];
  }
  return normed;
}

ModelConfig Config(bool renormalize, bool shared) {
  ModelConfig config;
  config.hidden = kHidden;
  config.norm_eps = 1e-5;
  config.router = {kExperts, 2, renormalize};
  config.expert_intermediate = kWidth;
  config.shared_intermediate = shared ? kSharedWidth : 0;
  config.layers = {{.sparse = true}};
  return config;
}

}  // namespace

TEST_CASE("A sparse layer adds its chosen experts and its shared expert to the stream",
          "[experts]") {
  for (const bool renormalize : {false, true}) {
    for (const int shared : {0, 1, 2}) {  // none, plain, gated
      for (const int tokens : {1, 70}) {
        INFO("renormalize " << renormalize << ", shared " << shared << ", tokens " << tokens);
        CpuBackend backend(cpu::SelectOps(cpu::Isa::kAuto), 2, false);
        const ModelConfig config = Config(renormalize, shared > 0);
        WorkspaceLimits limits;
        limits.max_tokens = tokens;
        limits.max_cols = kHidden;
        MoeRunner::AddLimits(config, tokens, &limits);
        REQUIRE(backend.Prepare(limits).has_value());
        auto runner = MoeRunner::Create(&backend, config, tokens);
        REQUIRE(runner.has_value());
        Layer layer(&backend);
        if (shared > 0) layer.AddShared(shared == 2);

        const Numbers x = ScatteredValues(static_cast<size_t>(tokens) * kHidden, 77);
        Numbers hidden = x;
        MoeStats stats;
        runner->Run(0, layer.moe, &layer.experts, {.count = tokens}, hidden.data(), &stats);
        CHECK(stats.assignments == 2 * tokens);

        std::vector<bool> touched(kExperts);
        double worst = 0;
        for (int t = 0; t < tokens; ++t) {
          const std::vector<double> normed = Norm(x.data() + t * kHidden, layer.norm, 1e-5);
          std::vector<double> p = Product(layer.router, normed);
          double total = 0;
          for (double& v : p) total += v = std::exp(v);
          for (double& v : p) v /= total;
          std::vector<int> order(kExperts);
          std::iota(order.begin(), order.end(), 0);
          std::sort(order.begin(), order.end(), [&](int a, int b) { return p[a] > p[b]; });
          const double kept = renormalize ? p[order[0]] + p[order[1]] : 1;
          std::vector<double> expected(x.begin() + t * kHidden, x.begin() + (t + 1) * kHidden);
          const auto add = [&](const Numbers* parts, double weight) {
            const std::vector<double> y = Network(parts, normed);
            for (int i = 0; i < kHidden; ++i) expected[i] += weight * y[i];
          };
          for (const int e : {order[0], order[1]}) {
            add(layer.expert[e], p[e] / kept);
            touched[e] = true;
          }
          if (shared == 1) add(layer.shared, 1);
          if (shared == 2) {
            add(layer.shared, 1 / (1 + std::exp(-Product(layer.shared_gate, normed)[0])));
          }
          for (int i = 0; i < kHidden; ++i) {
            worst = std::max(worst, std::abs(expected[i] - hidden[t * kHidden + i]));
          }
        }
        CHECK(worst < 1e-5);
        CHECK(stats.unique_experts == std::count(touched.begin(), touched.end(), true));
      }
    }
  }
}

TEST_CASE("A dense layer adds its one network and touches no expert", "[experts]") {
  CpuBackend backend(cpu::SelectOps(cpu::Isa::kAuto), 2, false);
  ModelConfig config = Config(false, false);
  config.layers = {{.sparse = false}};
  config.dense_intermediate = kWidth;
  WorkspaceLimits limits;
  limits.max_tokens = 3;
  limits.max_cols = kHidden;
  MoeRunner::AddLimits(config, 3, &limits);
  REQUIRE(backend.Prepare(limits).has_value());
  auto runner = MoeRunner::Create(&backend, config, 3);
  REQUIRE(runner.has_value());
  Layer layer(&backend);
  MoeWeights weights;
  weights.norm = layer.norm.data();
  weights.dense = layer.experts.Lookup({0, 4});
  const Numbers x = ScatteredValues(3 * kHidden, 78);
  Numbers hidden = x;
  MoeStats stats;
  runner->Run(0, weights, &layer.experts, {.count = 3}, hidden.data(), &stats);
  CHECK(stats.assignments == 0);
  CHECK(stats.unique_experts == 0);
  for (int t = 0; t < 3; ++t) {
    const auto y = Network(layer.expert[4], Norm(x.data() + t * kHidden, layer.norm, 1e-5));
    for (int i = 0; i < kHidden; ++i) {
      CHECK(hidden[t * kHidden + i] == Approx(x[t * kHidden + i] + y[i]).margin(1e-5));
    }
  }
}

namespace {

// Adds up what it is told and checks each network's parts against each other.
class Recorder final : public ForwardObserver {
 public:
  explicit Recorder(const Layer& layer) : layer_(layer) {}

  void OnAttentionInputs(int, const ActivationRows&) override {}
  void OnAttentionOutputs(int, const ActivationRows&) override {}
  void OnHeadInputs(const ActivationRows&) override {}
  void OnExpert(const ExpertActivations& seen) override {
    CHECK(seen.layer == 0);
    const Numbers* parts = seen.expert < 0 ? layer_.shared : layer_.expert[seen.expert];
    for (int i = 0; i < seen.count; ++i) {
      const std::vector<double> x(seen.input(i), seen.input(i) + seen.hidden);
      const float* inner = seen.down_inputs + i * seen.intermediate;
      const auto y = Network(parts, x);
      const auto down = Product(parts[2], {inner, inner + seen.intermediate});
      const int token = seen.rows != nullptr ? seen.rows[i] : i;
      for (int k = 0; k < seen.hidden; ++k) {
        const float output = seen.outputs[i * seen.hidden + k];
        worst = std::max({worst, std::abs(y[k] - output), std::abs(down[k] - output)});
        sum[token * seen.hidden + k] += seen.weights[i] * output;
      }
    }
    networks += 1;
  }

  std::vector<double> sum;  // [tokens, hidden], what the layer adds
  double worst = 0;
  int networks = 0;

 private:
  const Layer& layer_;
};

}  // namespace

TEST_CASE("An observer sees every network's inputs, outputs and weights, and changes nothing",
          "[experts]") {
  for (const bool sparse : {true, false}) {
    constexpr int kTokens = 70;
    CpuBackend backend(cpu::SelectOps(cpu::Isa::kAuto), 2, false);
    ModelConfig config = Config(false, sparse);
    config.layers = {{.sparse = sparse}};
    config.dense_intermediate = kSharedWidth;
    WorkspaceLimits limits;
    limits.max_tokens = kTokens;
    limits.max_cols = kHidden;
    MoeRunner::AddLimits(config, kTokens, &limits);
    REQUIRE(backend.Prepare(limits).has_value());
    Layer layer(&backend);
    layer.AddShared(true);
    MoeWeights weights = layer.moe;
    if (!sparse) {
      weights = {};
      weights.norm = layer.norm.data();
      weights.dense = layer.moe.shared;
    }
    Recorder recorder(layer);
    recorder.sum.resize(kTokens * kHidden);
    auto plain = MoeRunner::Create(&backend, config, kTokens);
    auto observed = MoeRunner::Create(&backend, config, kTokens, &recorder);
    REQUIRE(plain.has_value());
    REQUIRE(observed.has_value());
    const Numbers x = ScatteredValues(kTokens * kHidden, 79);
    Numbers expected = x;
    Numbers hidden = x;
    MoeStats stats;
    plain->Run(0, weights, &layer.experts, {.count = kTokens}, expected.data(), &stats);
    stats = {};
    observed->Run(0, weights, &layer.experts, {.count = kTokens}, hidden.data(), &stats);
    CHECK(hidden == expected);
    CHECK(recorder.networks == stats.unique_experts + 1);
    CHECK(recorder.worst < 1e-5);
    for (size_t i = 0; i < hidden.size(); ++i) {
      CHECK(hidden[i] == Approx(x[i] + recorder.sum[i]).margin(1e-5));
    }
  }
}

}  // namespace sluice
