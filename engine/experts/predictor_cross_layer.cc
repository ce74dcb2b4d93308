#include "engine/experts/predictor_cross_layer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "engine/base/check.h"

namespace sluice {
namespace {

// Margins: eight buckets per octave of the ratio to the k-th best score, eight octaves each way.
constexpr int kMargins = 128;
constexpr int kMarginsPerOctave = 8;
constexpr int kMarginShift = 20;  // of the bits of a float: three bits of the mantissa stay

constexpr float kTableWindow = 1024;     // tokens
constexpr float kCurvatureWindow = 256;  // tokens
constexpr float kStepSize = 0.02f;
// Of the constants per expert. Fast with gates; slow without, where they only repeat what history
// and usage say.
constexpr float kConstantStep = 0.02f;
constexpr float kConstantStepNoGates = 0.003f;
constexpr int kLearnedTokens = 4;  // of a step: its cost must not grow with the batch
// Learning costs more than predicting. After the first steps, each layer of many experts learns
// only in every second or fourth: every step for each of these many.
constexpr int kEagerSteps = 512;
constexpr int kExpertsLearned = 64;

constexpr float kLossWindow = 2048;   // (layer, token) pairs
constexpr float kLossPairs = 64;      // before a distance is judged
constexpr float kWorthwhile = 0.98f;  // of the error without gates
constexpr int kReviewSteps = 64;
constexpr int kTrialEvery = 16;  // reviews

// The ratio of positive floats by their bits, which grow as a logarithm does.
uint8_t Margin(float score, float pivot) {
  const int32_t difference = std::bit_cast<int32_t>(score) - std::bit_cast<int32_t>(pivot);
  return static_cast<uint8_t>(
      std::clamp((difference >> kMarginShift) + kMargins / 2, 0, kMargins - 1));
}

bool StartsRun(const int64_t* streams, int token) {
  return token == 0 || streams[token] != streams[token - 1];
}

}  // namespace

CrossLayerPredictor::CrossLayerPredictor(const CrossLayerOptions& options, ExpertSpace space,
                                         int experts_per_token, const ExpertPrior& prior)
    : options_(options),
      space_(space),
      experts_per_token_(experts_per_token),
      history_(space),
      usage_(space, experts_per_token, prior),
      gate_truths_(options.gates ? space.layers * (kMaxHorizon + 1) : 0, kMargins, kTableWindow),
      history_truths_(space.layers, StreamHistory::kCodes, kTableWindow),
      losses_{} {
  const auto experts = static_cast<size_t>(space.experts_per_layer);
  const float even = static_cast<float>(experts_per_token) / static_cast<float>(experts);
  even_odds_ = LogOdds(even);
  learn_every_ = (space.experts_per_layer + kExpertsLearned - 1) / kExpertsLearned;
  // As many tokens as leave a twentieth of the experts untouched, if they chose evenly.
  max_scored_tokens_ = std::max(1, static_cast<int>(std::log(0.05f) / std::log1p(-even)));
  if (experts_per_token == space.experts_per_layer) max_scored_tokens_ = 0;
  if (options.gates) early_.resize(static_cast<size_t>(space.layers) * (kMaxHorizon + 1));
  stats_.layers.resize(static_cast<size_t>(space.layers));
  stats_.control.resize(static_cast<size_t>(space.layers));
  log_odds_.resize(experts);
  chosen_.resize(experts);
  codes_.resize(experts);
  top_.resize(static_cast<size_t>(experts_per_token));
  constants_.resize(constant_row(space.layers, 0));
  constant_curvatures_.resize(constants_.size(), 0.1f);

  for (int layer = 0; layer < space.layers; ++layer) {
    const float again = std::max(0.4f, even);
    const float otherwise = std::min(even, (1 - again) * even / (1 - even));
    for (int code = 0; code < StreamHistory::kCodes; ++code) {
      const bool chose = (code & StreamHistory::kLastChose) != 0;
      history_truths_.Believe(layer, code, chose ? again : otherwise, 2);
    }
    for (int d = 0; d <= kMaxHorizon && options.gates; ++d) {
      // A guess about guesses: certain at distance 0, flatter with every layer.
      const float slope = d == 0 ? 8.0f : 2.0f / static_cast<float>(d);
      for (int m = 0; m < kMargins; ++m) {
        const float octaves = (static_cast<float>(m - kMargins / 2) + 0.5f) / kMarginsPerOctave;
        const float belief = 1 / (1 + std::exp(-slope * octaves));
        gate_truths_.Believe(gate_row(layer, d), m, belief, 2);
      }
    }
  }
  for (int context = 0; context < kContexts; ++context) {
    const bool gates = context != kNoGates;
    const float history = options.history == 0 ? 0 : gates ? 0.3f : 0.8f;
    const float usage = options.history == 0 ? 1 : gates ? 0.3f : 0.8f;
    combinations_[context] = {{0, gates ? 1.0f : 0.0f, history, usage}, {1, 1, 1, 1}};
  }
}

int CrossLayerPredictor::horizon(int tokens) const {
  return options_.gates && tokens <= max_scored_tokens_ ? horizon_ : 0;
}

CrossLayerPredictor::Errors CrossLayerPredictor::errors(int distance) const {
  const Loss& loss = losses_[static_cast<size_t>(distance)];
  if (loss.count == 0) return {};
  return {loss.with_gates / loss.count, loss.without_gates / loss.count};
}

void CrossLayerPredictor::OnScores(int layer, int distance, const GateScores& scores) {
  if (!options_.gates || distance > kMaxHorizon) return;
  SLUICE_CHECK(layer >= 0 && layer < space_.layers && distance >= 0 &&
               scores.experts == space_.experts_per_layer);
  const auto experts = static_cast<size_t>(scores.experts);
  const auto tokens = static_cast<size_t>(scores.tokens);
  Early& e = early(layer, distance);
  e.tokens = scores.tokens;
  e.streams.assign(scores.streams, scores.streams + tokens);
  e.margins.resize(std::max(e.margins.size(), tokens * experts));
  e.guesses.resize(std::max(e.guesses.size(), tokens * top_.size()));
  for (size_t t = 0; t < tokens; ++t) {
    const std::span row(scores.probabilities + t * experts, experts);
    TopExperts(row, top_);
    const float pivot = row[static_cast<size_t>(top_.back())];
    uint8_t* margins = &e.margins[t * experts];
    for (size_t i = 0; i < experts; ++i) margins[i] = Margin(row[i], pivot);
    std::copy(top_.begin(), top_.end(),
              e.guesses.begin() + static_cast<ptrdiff_t>(t * top_.size()));
  }
}

const uint8_t* CrossLayerPredictor::HistoryOf(int64_t stream, int layer) {
  if (options_.history == 0) return nullptr;
  const uint8_t* codes = history_.Find(stream, layer);
  if (codes == nullptr || options_.history == StreamHistory::kCodes - 1) return codes;
  for (size_t e = 0; e < codes_.size(); ++e) codes_[e] = codes[e] & options_.history;
  return codes_.data();
}

void CrossLayerPredictor::Sum(int layer, int context, const uint8_t* margins,
                              const uint8_t* history) {
  const auto& w = combinations_[static_cast<size_t>(context)].weight;
  const size_t experts = log_odds_.size();
  const float* usage = usage_.evidence(layer).data();
  const float* constants = &constants_[constant_row(layer, context)];
  const float base = w[0] + (margins == nullptr ? even_odds_ : 0);
  for (size_t e = 0; e < experts; ++e) log_odds_[e] = base + w[3] * usage[e] + constants[e];
  if (margins != nullptr) {
    const float* gate = gate_truths_.log_odds(gate_row(layer, context));
    for (size_t e = 0; e < experts; ++e) log_odds_[e] += w[1] * gate[margins[e]];
  }
  if (history != nullptr) {
    std::array<float, StreamHistory::kCodes> odds;
    for (size_t i = 0; i < odds.size(); ++i) {
      odds[i] = w[2] * (history_truths_.log_odds(layer)[i] - even_odds_);
    }
    for (size_t e = 0; e < experts; ++e) log_odds_[e] += odds[history[e]];
  }
}

void CrossLayerPredictor::Miss(std::span<float> miss) const {
  for (size_t e = 0; e < miss.size(); ++e) miss[e] *= 1 - FromLogOdds(log_odds_[e]);
}

void CrossLayerPredictor::Estimate(int layer, int tokens, std::span<float> probability) {
  SLUICE_CHECK(layer >= 0 && layer < space_.layers && probability.size() == log_odds_.size());
  std::fill(probability.begin(), probability.end(), 1.0f);  // that no token chooses it
  const size_t experts = log_odds_.size();
  int context = kNoGates;
  for (int d = 0; d <= kMaxHorizon && options_.gates; ++d) {
    if (early(layer, d).tokens > 0) {
      context = d;
      break;
    }
  }
  int known = 0;
  if (context != kNoGates) {
    const Early& e = early(layer, context);
    // Fewer tokens than were scored: of the last layer, which only runs each sequence's last one.
    const bool lasts = tokens < e.tokens;
    for (int t = 0; t < e.tokens; ++t) {
      const bool ends = t + 1 == e.tokens || e.streams[t + 1] != e.streams[t];
      if (lasts && !ends) continue;
      const bool starts = StartsRun(e.streams.data(), t);
      Sum(layer, context, &e.margins[t * experts],
          starts ? HistoryOf(e.streams[t], layer) : nullptr);
      Miss(probability);
      ++known;
    }
  } else if (options_.history != 0) {
    const int runs = std::min(tokens, static_cast<int>(step_streams_.size()));
    for (; known < runs; ++known) {
      Sum(layer, kNoGates, nullptr, HistoryOf(step_streams_[known], layer));
      Miss(probability);
    }
  }
  if (known < tokens) {
    Sum(layer, kNoGates, nullptr, nullptr);
    const int others = tokens - known;
    for (size_t e = 0; e < experts; ++e) {
      const float miss = 1 - FromLogOdds(log_odds_[e]);
      probability[e] *= others == 1 ? miss : std::pow(miss, static_cast<float>(others));
    }
  }
  for (float& p : probability) p = 1 - p;
}

float CrossLayerPredictor::Learn(int layer, int context, const uint8_t* margins,
                                 const uint8_t* history) {
  Combination& c = combinations_[static_cast<size_t>(context)];
  Sum(layer, context, margins, history);
  const size_t experts = log_odds_.size();
  const float* usage = usage_.evidence(layer).data();
  const float* gate =
      margins != nullptr ? gate_truths_.log_odds(gate_row(layer, context)) : nullptr;
  const float* again = history_truths_.log_odds(layer);
  float* constants = &constants_[constant_row(layer, context)];
  float* constant_curvatures = &constant_curvatures_[constant_row(layer, context)];
  const float constant_step = context == kNoGates ? kConstantStepNoGates : kConstantStep;
  std::array<float, kWeights> slope{};
  std::array<float, kWeights> curvature{};
  float loss = 0;
  for (size_t e = 0; e < experts; ++e) {
    const float p = FromLogOdds(log_odds_[e]);
    const float error = static_cast<float>(chosen_[e]) - p;
    const float x[kWeights] = {1, gate != nullptr ? gate[margins[e]] : 0,
                               history != nullptr ? again[history[e]] - even_odds_ : 0, usage[e]};
    const float spread = p * (1 - p);
    for (int i = 0; i < kWeights; ++i) {
      slope[i] += error * x[i];
      curvature[i] += spread * x[i] * x[i];
    }
    constant_curvatures[e] += (spread - constant_curvatures[e]) / kCurvatureWindow;
    constants[e] += constant_step * error / (constant_curvatures[e] + 0.02f);
    loss += error * error;
  }
  for (int i = 0; i < kWeights; ++i) {
    c.curvature[i] += (curvature[i] - c.curvature[i]) / kCurvatureWindow;
    if (c.weight[i] == 0 && i > 0) continue;  // not of this predictor
    const float step = kStepSize * slope[i] / (c.curvature[i] + 0.05f);
    c.weight[i] = std::clamp(c.weight[i] + std::clamp(step, -0.05f, 0.05f), i == 0 ? -3.0f : 0.01f,
                             i == 0 ? 3.0f : 2.0f);
  }
  return loss / static_cast<float>(experts);
}

void CrossLayerPredictor::LearnToken(int layer, const RoutedTokens& routed, int token) {
  const size_t experts = log_odds_.size();
  const int k = routed.experts_per_token;
  const int32_t* ids = routed.ids + static_cast<ptrdiff_t>(token) * k;
  std::fill(chosen_.begin(), chosen_.end(), uint8_t{0});
  for (int i = 0; i < k; ++i) chosen_[static_cast<size_t>(ids[i])] = 1;

  const uint8_t* history = HistoryOf(routed.streams[token], layer);
  const float without = Learn(layer, kNoGates, nullptr, history);
  for (int d = 0; d <= kMaxHorizon && options_.gates; ++d) {
    const Early& e = early(layer, d);
    // Only where tokens correspond one to one: not in the last layer of a prefill.
    if (e.tokens != routed.tokens || e.streams[token] != routed.streams[token]) continue;
    const uint8_t* margins = &e.margins[token * experts];
    const float with = Learn(layer, d, margins, history);
    Loss& loss = losses_[static_cast<size_t>(d)];
    const float keep = 1 - 1 / kLossWindow;
    loss = {loss.with_gates * keep + with, loss.without_gates * keep + without,
            loss.count * keep + 1};
    gate_truths_.Count(gate_row(layer, d), {margins, experts}, chosen_.data());
  }
  if (history != nullptr) history_truths_.Count(layer, {history, experts}, chosen_.data());
}

void CrossLayerPredictor::CountGuesses(int layer, const RoutedTokens& routed) {
  const int k = routed.experts_per_token;
  const auto count = [&](PredictorStats::Layer* stats, const int32_t* ids, const int32_t* guess) {
    stats->wanted += static_cast<uint64_t>(k);
    for (int i = 0; i < k; ++i) {
      stats->predicted += static_cast<uint64_t>(std::count(guess, guess + k, ids[i]));
    }
  };
  if (!options_.gates) {
    const int t = routed.tokens - 1;
    if (!StartsRun(routed.streams, t)) return;  // its previous token is in this very step
    Sum(layer, kNoGates, nullptr, HistoryOf(routed.streams[t], layer));
    TopExperts(log_odds_, top_);
    count(&stats_.layers[static_cast<size_t>(layer)], routed.ids + static_cast<ptrdiff_t>(t) * k,
          top_.data());
    return;
  }
  for (int d = 0; d <= 1; ++d) {
    const Early& e = early(layer, d);
    if (e.tokens == 0) continue;
    auto& stats = (d == 0 ? stats_.control : stats_.layers)[static_cast<size_t>(layer)];
    // From the back, where a stream's routed tokens may be fewer than those scored.
    int scored = e.tokens - 1;
    for (int t = routed.tokens - 1; t >= 0; --t, --scored) {
      while (scored >= 0 && e.streams[scored] != routed.streams[t]) --scored;
      if (scored < 0) break;
      count(&stats, routed.ids + static_cast<ptrdiff_t>(t) * k,
            e.guesses.data() + static_cast<ptrdiff_t>(scored) * k);
    }
  }
}

void CrossLayerPredictor::NewStep() {
  ++steps_;
  if (!options_.gates || steps_ % kReviewSteps != 0) return;
  useful_ = 1;
  for (int d = 1; d <= kMaxHorizon; ++d) {
    const Loss& loss = losses_[static_cast<size_t>(d)];
    if (loss.count >= kLossPairs && loss.with_gates > kWorthwhile * loss.without_gates) break;
    useful_ = d;
  }
  const bool trial = steps_ / kReviewSteps % kTrialEvery == 0;
  horizon_ = std::min(kMaxHorizon, useful_ + (trial ? 1 : 0));
}

void CrossLayerPredictor::OnRouted(int layer, const RoutedTokens& routed) {
  SLUICE_CHECK(layer >= 0 && layer < space_.layers &&
               routed.experts_per_token == experts_per_token_);
  if (routed.tokens == 0) return;
  if (layer <= last_layer_) NewStep();
  last_layer_ = layer;
  CountGuesses(layer, routed);
  // What came before later tokens of a run is not in the history yet: the first ones teach.
  run_starts_.clear();
  for (int t = 0; t < routed.tokens; ++t) {
    if (StartsRun(routed.streams, t)) run_starts_.push_back(t);
  }
  const auto runs = static_cast<int64_t>(run_starts_.size());
  const bool learns = steps_ < kEagerSteps || (steps_ + layer) % learn_every_ == 0;
  for (int64_t i = 0; learns && i < std::min<int64_t>(runs, kLearnedTokens); ++i) {
    LearnToken(
        layer, routed,
        run_starts_[static_cast<size_t>((steps_ / learn_every_ * kLearnedTokens + i) % runs)]);
  }

  usage_.Add(layer, routed.tokens, routed.ids);
  step_streams_.clear();
  for (size_t r = 0; r < run_starts_.size(); ++r) {
    const int begin = run_starts_[r];
    const int end = r + 1 < run_starts_.size() ? run_starts_[r + 1] : routed.tokens;
    step_streams_.push_back(routed.streams[begin]);
    history_.Add(routed.streams[begin], layer, end - begin, experts_per_token_,
                 routed.ids + static_cast<ptrdiff_t>(begin) * experts_per_token_);
  }
  for (int d = 0; d <= kMaxHorizon && options_.gates; ++d) early(layer, d).tokens = 0;
}

}  // namespace sluice
