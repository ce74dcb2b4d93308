// Predictors on routings made up with known regularities.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/experts/expert_predictor.h"
#include "engine/experts/predictor_activation_path.h"
#include "engine/experts/predictor_cross_layer.h"
#include "engine/experts/predictor_evidence.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

constexpr ExpertSpace kSpace = {4, 16};
constexpr int kChosen = 2;

std::unique_ptr<ExpertPredictor> Make(std::string_view name, const ExpertPrior& prior = {}) {
  auto predictor = MakeExpertPredictor(name, kSpace, kChosen, prior);
  REQUIRE(predictor);
  return std::move(*predictor);
}

// A layer's gate for one token: probabilities, and the experts chosen by them.
struct Gate {
  std::vector<float> scores = std::vector<float>(kSpace.experts_per_layer);
  std::vector<int32_t> ids = std::vector<int32_t>(kChosen);
};

class Router {
 public:
  Gate Draw() {
    Gate gate;
    std::normal_distribution<float> normal(0, 1.5f);
    for (float& s : gate.scores) s = std::exp(normal(random_));
    Choose(&gate);
    return gate;
  }
  // Another token's gate, that the first was an attempt to foresee: `noise` 0 is the same one.
  Gate Blur(const Gate& gate, float noise) {
    Gate blurred = gate;
    std::normal_distribution<float> normal(0, 1);
    for (float& s : blurred.scores) s *= std::exp(noise * normal(random_));
    Choose(&blurred);
    return blurred;
  }

 private:
  static void Choose(Gate* gate) {
    const float sum = std::accumulate(gate->scores.begin(), gate->scores.end(), 0.0f);
    for (float& s : gate->scores) s /= sum;
    TopExperts(gate->scores, gate->ids);
  }
  std::mt19937 random_{7};
};

void Score(ExpertPredictor* predictor, int layer, int distance, const Gate& gate, int64_t stream) {
  predictor->OnScores(layer, distance, {1, kSpace.experts_per_layer, gate.scores.data(), &stream});
}

void Route(ExpertPredictor* predictor, int layer, const std::vector<int32_t>& ids, int64_t stream) {
  predictor->OnRouted(layer, {1, kChosen, ids.data(), &stream});
}

std::vector<float> EstimateOf(ExpertPredictor* predictor, int layer, int tokens = 1) {
  std::vector<float> probability(kSpace.experts_per_layer);
  predictor->Estimate(layer, tokens, probability);
  return probability;
}

}  // namespace

TEST_CASE("TopExperts orders by score and gives ties to the lower index", "[experts]") {
  const std::vector<float> scores = {0.1f, 0.3f, 0.2f, 0.3f, 0.0f, 0.2f};
  std::vector<int32_t> top(4);
  TopExperts(scores, top);
  CHECK(top == std::vector<int32_t>{1, 3, 2, 5});
  top.resize(6);
  TopExperts(scores, top);
  CHECK(top == std::vector<int32_t>{1, 3, 2, 5, 0, 4});
}

TEST_CASE("A layer's own gate as predictor recalls exactly everything", "[experts]") {
  const auto predictor = Make("cross-layer");
  Router router;
  for (int step = 0; step < 50; ++step) {
    for (int layer = 0; layer < kSpace.layers; ++layer) {
      const Gate gate = router.Draw();
      Score(predictor.get(), layer, 0, gate, 5);
      Route(predictor.get(), layer, gate.ids, 5);
    }
  }
  for (const auto& layer : predictor->stats().control) {
    CHECK(layer.wanted == 100);
    CHECK(layer.predicted == layer.wanted);
  }
  for (const auto& layer : predictor->stats().layers) CHECK(layer.wanted == 0);
}

TEST_CASE("Recall counts the early gate's best experts that were chosen", "[experts]") {
  const auto predictor = Make("cross-layer");
  Gate gate;
  gate.scores.assign(kSpace.experts_per_layer, 0.01f);
  gate.scores[3] = 0.5f;
  gate.scores[8] = 0.3f;
  Score(predictor.get(), 1, 1, gate, 0);
  Score(predictor.get(), 2, 2, gate, 0);
  Route(predictor.get(), 0, {1, 2}, 0);
  Route(predictor.get(), 1, {3, 4}, 0);
  Route(predictor.get(), 2, {3, 8}, 0);
  const PredictorStats stats = predictor->stats();
  CHECK(stats.layers[0].wanted == 0);
  CHECK(stats.layers[1].wanted == 2);
  CHECK(stats.layers[1].predicted == 1);
  CHECK(stats.layers[2].wanted == 0);  // a guess from two layers before is not one from the last
}

TEST_CASE("Probabilities of early gates come true as often as they say", "[experts]") {
  const auto predictor = Make("cross-layer");
  Router router;
  // Experts said to be likely (0.3 to 0.7) and unlikely (below 0.1).
  double said[2] = {}, came[2] = {};
  int counted[2] = {};
  for (int step = 0; step < 1500; ++step) {
    for (int layer = 0; layer < kSpace.layers; ++layer) {
      const Gate gate = router.Draw();
      Score(predictor.get(), layer, 1, router.Blur(gate, 1.0f), 5);
      const auto probability = EstimateOf(predictor.get(), layer);
      Route(predictor.get(), layer, gate.ids, 5);
      if (step < 500) continue;
      for (int e = 0; e < kSpace.experts_per_layer; ++e) {
        const float p = probability[e];
        if (p >= 0.1f && (p < 0.3f || p > 0.7f)) continue;
        const int kind = p < 0.1f ? 0 : 1;
        said[kind] += p;
        came[kind] += static_cast<double>(std::count(gate.ids.begin(), gate.ids.end(), e));
        ++counted[kind];
      }
    }
  }
  for (int kind = 0; kind < 2; ++kind) {
    INFO(kind);
    REQUIRE(counted[kind] > 1000);
    CHECK(std::abs(said[kind] - came[kind]) / counted[kind] < 0.15 * came[kind] / counted[kind]);
  }
}

TEST_CASE("A gate that says nothing is found out, and the horizon shrinks", "[experts]") {
  const auto predictor = Make("cross-layer");
  Router router;
  CHECK(predictor->horizon(1) == CrossLayerPredictor::kMaxHorizon);
  for (int step = 0; step < 600; ++step) {
    for (int layer = 0; layer < kSpace.layers; ++layer) {
      const Gate gate = router.Draw();
      Score(predictor.get(), layer, 1, router.Blur(gate, 0.5f), 5);
      Score(predictor.get(), layer, 2, router.Draw(), 5);
      Score(predictor.get(), layer, 3, router.Draw(), 5);
      Route(predictor.get(), layer, gate.ids, 5);
    }
  }
  CHECK(predictor->horizon(1) == 1);
  // Useless scores do not make the estimate worse than the frequency.
  Score(predictor.get(), 2, 3, router.Draw(), 5);
  for (const float p : EstimateOf(predictor.get(), 2)) CHECK(p < 0.35f);
}

TEST_CASE("No gates are read for steps that touch nearly every expert", "[experts]") {
  const auto predictor = Make("cross-layer");
  CHECK(predictor->horizon(8) > 0);
  CHECK(predictor->horizon(64) == 0);
  CHECK(Make("previous-token")->horizon(1) == 0);
}

TEST_CASE("The previous token's experts are expected again where streams repeat themselves",
          "[experts]") {
  for (const char* name : {"cross-layer", "previous-token"}) {
    INFO(name);
    const auto predictor = Make(name);
    Router router;
    Gate one = router.Draw(), two = router.Draw();
    while (two.ids[0] == one.ids[0] || two.ids[0] == one.ids[1] || two.ids[1] == one.ids[0] ||
           two.ids[1] == one.ids[1]) {
      two = router.Draw();
    }
    for (int step = 0; step < 300; ++step) {
      for (int layer = 0; layer < kSpace.layers; ++layer) {
        Route(predictor.get(), layer, one.ids, 1);
        Route(predictor.get(), layer, two.ids, 2);
      }
    }
    Route(predictor.get(), 0, one.ids, 1);
    const auto probability = EstimateOf(predictor.get(), 1);
    CHECK(probability[one.ids[0]] > 0.9f);
    CHECK(probability[two.ids[0]] < 0.3f);
    // Once the stream is gone, a stranger gets the usual rates.
    predictor->OnStreamEnd(1);
    CHECK(EstimateOf(predictor.get(), 1)[one.ids[0]] < 0.8f);
  }
}

TEST_CASE("The prior alone knows rates, first given and then counted", "[experts]") {
  ExpertPrior prior;
  prior.frequency.assign(kSpace.size(), 0.05f);
  prior.frequency[kSpace.place({1, 3})] = 0.8f;
  const auto predictor = Make("prior", prior);
  CHECK(std::abs(EstimateOf(predictor.get(), 1)[3] - 0.8f) < 0.02f);
  CHECK(std::abs(EstimateOf(predictor.get(), 2)[3] - 0.05f) < 0.01f);
  for (int step = 0; step < 3000; ++step) Route(predictor.get(), 1, {6, step % 2 == 0 ? 7 : 8}, 9);
  const auto probability = EstimateOf(predictor.get(), 1);
  CHECK(probability[3] < 0.05f);
  CHECK(probability[6] > 0.9f);
  CHECK(std::abs(probability[7] - 0.5f) < 0.05f);
}

TEST_CASE("A step's probability is that of any of its tokens", "[experts]") {
  ExpertPrior prior;
  prior.frequency.assign(kSpace.size(), 0.1f);
  const auto predictor = Make("prior", prior);
  const float one = EstimateOf(predictor.get(), 0, 1)[0];
  const float ten = EstimateOf(predictor.get(), 0, 10)[0];
  CHECK(std::abs(ten - (1 - std::pow(1 - one, 10.0f))) < 1e-4f);
}

TEST_CASE("The last layer's fewer tokens are compared with their own scores", "[experts]") {
  const auto predictor = Make("cross-layer");
  const int64_t streams[] = {1, 1, 1, 2, 2};
  std::vector<float> scores(5 * kSpace.experts_per_layer, 0.01f);
  for (int t = 0; t < 5; ++t) {
    scores[t * kSpace.experts_per_layer + t] = 0.5f;
    scores[t * kSpace.experts_per_layer + t + 5] = 0.4f;
  }
  predictor->OnScores(3, 1, {5, kSpace.experts_per_layer, scores.data(), streams});
  const int64_t last_streams[] = {1, 2};
  const int32_t ids[] = {2, 7, 4, 9};  // of tokens 2 and 4
  predictor->OnRouted(3, {2, kChosen, ids, last_streams});
  CHECK(predictor->stats().layers[3].wanted == 4);
  CHECK(predictor->stats().layers[3].predicted == 4);
}

TEST_CASE("A sequence follows the recorded one whose experts were most like its own", "[experts]") {
  const auto predictor = Make("activation-path");
  CHECK(predictor->horizon(1) == 0);
  // Two kinds of sequence: even experts in every layer, or odd ones.
  const auto run = [&](int64_t stream, int odd, int tokens) {
    for (int t = 0; t < tokens; ++t) {
      for (int layer = 0; layer < kSpace.layers; ++layer) {
        const int first = 4 * (t % 3) + odd;
        Route(predictor.get(), layer, {first, first + 2}, stream);
      }
    }
  };
  for (int64_t stream = 0; stream < 6; ++stream) {
    run(stream, stream % 2, 30);
    predictor->OnStreamEnd(stream);
  }
  run(10, 0, 1);
  run(11, 1, 1);
  Route(predictor.get(), 0, {1, 3}, 11);
  const auto odd = EstimateOf(predictor.get(), 2);
  CHECK(std::abs(odd[5] - 1.0f / 3) < 0.01f);  // as often as the pattern chose it
  CHECK(odd[4] == 0.0f);
  Route(predictor.get(), 0, {0, 2}, 10);
  const auto even = EstimateOf(predictor.get(), 2);
  CHECK(std::abs(even[4] - 1.0f / 3) < 0.01f);
  CHECK(even[5] == 0.0f);
}

TEST_CASE("Of more patterns than are kept the most different stay", "[experts]") {
  ActivationPathPredictor predictor(kSpace, kChosen, {});
  const auto run = [&](int64_t stream, std::vector<int32_t> ids) {
    for (int layer = 0; layer < kSpace.layers; ++layer) Route(&predictor, layer, ids, stream);
  };
  run(0, {14, 15});
  predictor.OnStreamEnd(0);
  for (int64_t stream = 1; stream < 400; ++stream) {
    run(stream, {static_cast<int32_t>(stream % 3), 5});
    predictor.OnStreamEnd(stream);
  }
  run(999, {8, 9});  // unlike all: it finds a place
  predictor.OnStreamEnd(999);
  CHECK(predictor.patterns() == ActivationPathPredictor::kMaxPatterns);
  for (const int first : {8, 14}) {
    run(1000 + first, {first, first + 1});
    CHECK(EstimateOf(&predictor, 2)[first + 1] > 0.9f);
  }
}

TEST_CASE("An unknown predictor's error lists the names", "[experts]") {
  const auto predictor = MakeExpertPredictor("oracle", kSpace, kChosen, {});
  REQUIRE(!predictor);
  CHECK(predictor.error().message.find("cross-layer") != std::string::npos);
}

}  // namespace sluice
