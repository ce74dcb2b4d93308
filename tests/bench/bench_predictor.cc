// How well experts can be foreseen, on a model's real routing, token by token as in decoding:
//
//   bench_predictor MODEL [text files ...]     without texts: random tokens
//   bench_predictor cost                       time of a predictor's calls, no model
//
// Prints, for every distance: recall of the early gates' best k + a experts for both inputs that
// they may be applied to, cosines of neighbouring gate inputs, and for every predictor the log loss
// and recall of its probabilities.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/experts/expert_predictor.h"
#include "engine/experts/predictor_evidence.h"
#include "engine/text/tokenizer.h"
#include "tests/bench/gate_trace.h"

namespace sluice {
namespace {

constexpr int kWindow = 256;
constexpr int kWindowsPerText = 8;

double Recall(const GateTrace& trace, EarlyInput input, int distance, int layer, int extra) {
  const int k = trace.experts_per_token;
  std::vector<int32_t> top(static_cast<size_t>(std::min(k + extra, trace.space.experts_per_layer)));
  int64_t found = 0;
  for (int t = 0; t < trace.tokens; ++t) {
    TopExperts(
        {trace.gate(input, distance, t, layer), static_cast<size_t>(trace.space.experts_per_layer)},
        top);
    const int32_t* chosen = trace.chosen(t, layer);
    for (int i = 0; i < k; ++i) found += std::count(top.begin(), top.end(), chosen[i]);
  }
  return static_cast<double>(found) / (static_cast<double>(trace.tokens) * k);
}

void PrintRecall(const GateTrace& trace) {
  const int k = trace.experts_per_token;
  const int extras[] = {0, k / 2, k, 2 * k};
  std::printf("recall of early gates, %% (mean over layers)\n%-12s %-9s", "input", "distance");
  for (const int a : extras) std::printf("   k+%-2d", a);
  std::printf("   k by layer\n");
  for (int input = 0; input < kEarlyInputs; ++input) {
    for (int d = 0; d <= GateTrace::kMaxDistance; ++d) {
      std::printf("%-12s %-9d", input == 0 ? "own norm" : "gate input", d);
      for (const int a : extras) {
        double sum = 0;
        for (int l = d; l < trace.space.layers; ++l) {
          sum += Recall(trace, static_cast<EarlyInput>(input), d, l, a);
        }
        std::printf(" %6.1f", 100 * sum / (trace.space.layers - d));
      }
      std::printf("  ");
      for (int l = d; l < trace.space.layers; ++l) {
        std::printf(" %.0f", 100 * Recall(trace, static_cast<EarlyInput>(input), d, l, 0));
      }
      std::printf("\n");
    }
  }
  std::printf("cosine with the next layer's gate input:");
  for (const double c : trace.input_cosine) std::printf(" %.2f", c);
  std::printf("\nof the residuals:                        ");
  for (const double c : trace.residual_cosine) std::printf(" %.2f", c);
  int64_t repeated = 0, counted = 0;
  for (int t = 1; t < trace.tokens; ++t) {
    if (trace.streams[t] != trace.streams[t - 1]) continue;
    for (int l = 0; l < trace.space.layers; ++l) {
      for (int i = 0; i < k; ++i) {
        const int32_t* before = trace.chosen(t - 1, l);
        repeated += std::count(before, before + k, trace.chosen(t, l)[i]);
        ++counted;
      }
    }
  }
  std::printf("\nexperts of the stream's previous token chosen again: %.1f %%\n",
              100.0 * static_cast<double>(repeated) / static_cast<double>(counted));
}

struct Quality {
  double log_loss = 0;    // nats per token and layer
  double recall[2] = {};  // of the k, and 2 k, most probable
  int64_t pairs = 0;
};

// Replays the trace with gates at one distance only; 0: no gates at all. Judged in the second half.
Quality Replay(const GateTrace& trace, std::string_view name, int distance) {
  auto made = MakeExpertPredictor(name, trace.space, trace.experts_per_token, {});
  if (!made) return {};
  ExpertPredictor& predictor = **made;
  const int experts = trace.space.experts_per_layer;
  const int k = trace.experts_per_token;
  std::vector<float> probability(static_cast<size_t>(experts));
  std::vector<int32_t> top(static_cast<size_t>(2 * k));
  Quality quality;
  for (int t = 0; t < trace.tokens; ++t) {
    const int64_t stream = trace.streams[t];
    if (t > 0 && trace.streams[t - 1] != stream) predictor.OnStreamEnd(trace.streams[t - 1]);
    for (int l = 0; l < trace.space.layers; ++l) {
      if (distance > 0 && l >= distance) {
        predictor.OnScores(l, distance,
                           {1, experts, trace.gate(EarlyInput::kOwnNorm, distance, t, l), &stream});
      }
      if (l >= std::max(1, distance) && t > trace.tokens / 2) {
        predictor.Estimate(l, 1, probability);
        TopExperts(probability, top);
        for (int i = 0; i < k; ++i) {
          const int32_t expert = trace.chosen(t, l)[i];
          quality.recall[0] +=
              static_cast<double>(std::count(top.begin(), top.begin() + k, expert));
          quality.recall[1] += static_cast<double>(std::count(top.begin(), top.end(), expert));
        }
        for (int e = 0; e < experts; ++e) {
          const int32_t* chosen = trace.chosen(t, l);
          const bool came = std::count(chosen, chosen + k, e) > 0;
          const double p = std::clamp(double{probability[e]}, 1e-6, 1 - 1e-6);
          quality.log_loss -= came ? std::log(p) : std::log(1 - p);
        }
        ++quality.pairs;
      }
      predictor.OnRouted(l, {1, k, trace.chosen(t, l), &stream});
    }
  }
  quality.log_loss /= static_cast<double>(quality.pairs);
  for (double& r : quality.recall) r *= 100.0 / (static_cast<double>(quality.pairs) * k);
  return quality;
}

void PrintPredictors(const GateTrace& trace) {
  std::printf("\n%-16s %-9s %10s %10s %10s\n", "predictor", "distance", "log loss", "recall k",
              "recall 2k");
  const auto print = [&](std::string_view name, int distance) {
    const Quality q = Replay(trace, name, distance);
    std::printf("%-16s %-9d %10.3f %10.1f %10.1f\n", std::string(name).c_str(), distance,
                q.log_loss, q.recall[0], q.recall[1]);
  };
  for (const char* name : {"prior", "previous-token", "activation-path"}) print(name, 0);
  for (int d = 0; d <= GateTrace::kMaxDistance; ++d) print("cross-layer", d);
}

// Microseconds of one layer's calls for one token, the median of steps.
void PrintCost() {
  std::printf("%-16s %8s %8s %12s %12s\n", "predictor", "experts", "horizon", "us/layer",
              "of which learning");
  for (const int experts : {64, 128, 256}) {
    for (const int horizon : {1, 2, 4}) {
      const ExpertSpace space = {16, experts};
      const int k = 8;
      auto predictor = MakeExpertPredictor("cross-layer", space, k, {});
      if (!predictor) return;
      std::mt19937 random(1);
      std::normal_distribution<float> normal;
      std::vector<float> scores(static_cast<size_t>(64 * experts));
      for (float& s : scores) s = std::exp(normal(random));
      std::vector<float> probability(static_cast<size_t>(experts));
      std::vector<int32_t> ids(static_cast<size_t>(k));
      std::vector<double> all, routed;
      const int64_t stream = 0;
      for (int step = 0; step < 2000; ++step) {
        double learning = 0;
        const auto begin = std::chrono::steady_clock::now();
        for (int l = 0; l < space.layers; ++l) {
          const float* row = &scores[static_cast<size_t>((step * 7 + l) % 64 * experts)];
          for (int d = 1; d <= horizon && l + d < space.layers; ++d) {
            (*predictor)->OnScores(l + d, d, {1, experts, row, &stream});
          }
          (*predictor)->Estimate((l + 1) % space.layers, 1, probability);
          TopExperts({row, static_cast<size_t>(experts)}, ids);
          const auto before = std::chrono::steady_clock::now();
          (*predictor)->OnRouted(l, {1, k, ids.data(), &stream});
          learning +=
              std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
        }
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        all.push_back(1e6 * seconds / space.layers);
        routed.push_back(1e6 * learning / space.layers);
      }
      std::sort(all.begin(), all.end());
      std::sort(routed.begin(), routed.end());
      std::printf("%-16s %8d %8d %12.2f %12.2f\n", "cross-layer", experts, horizon,
                  all[all.size() / 2], routed[routed.size() / 2]);
    }
  }
}

int Run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_predictor MODEL [text files ...] | cost\n");
    return 2;
  }
  if (std::string(argv[1]) == "cost") {
    PrintCost();
    return 0;
  }
  std::vector<std::vector<std::vector<int32_t>>> texts;
  if (argc > 2) {
    auto tokenizer = Tokenizer::Load(std::filesystem::path(argv[1]));
    if (!tokenizer) {
      std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
      return 1;
    }
    for (int i = 2; i < argc; ++i) {
      std::ifstream file(argv[i]);
      const std::string text{std::istreambuf_iterator<char>(file), {}};
      const std::vector<int32_t> ids = (*tokenizer)->Encode(text);
      auto& windows = texts.emplace_back();
      for (int w = 0; w < kWindowsPerText && (w + 1) * kWindow <= static_cast<int>(ids.size());
           ++w) {
        windows.emplace_back(ids.begin() + w * kWindow, ids.begin() + (w + 1) * kWindow);
      }
    }
  } else {
    std::mt19937 random(1);
    auto& windows = texts.emplace_back(4);
    for (auto& window : windows) {
      for (int i = 0; i < kWindow; ++i) window.push_back(static_cast<int32_t>(random() % 32000));
    }
  }
  // Texts take turns, as users do.
  std::vector<std::vector<int32_t>> streams;
  for (size_t w = 0; w < kWindowsPerText; ++w) {
    for (const auto& windows : texts) {
      if (w < windows.size()) streams.push_back(windows[w]);
    }
  }
  const auto trace = RecordGates(argv[1], streams);
  if (!trace) {
    std::fprintf(stderr, "%s\n", trace.error().message.c_str());
    return 1;
  }
  std::printf("%d tokens in %zu streams, %d layers, %d of %d experts\n\n", trace->tokens,
              streams.size(), trace->space.layers, trace->experts_per_token,
              trace->space.experts_per_layer);
  PrintRecall(*trace);
  PrintPredictors(*trace);
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Run(argc, argv); }
