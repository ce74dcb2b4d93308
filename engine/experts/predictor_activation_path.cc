#include "engine/experts/predictor_activation_path.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace sluice {

ActivationPathPredictor::ActivationPathPredictor(ExpertSpace space, int experts_per_token,
                                                 const ExpertPrior& prior)
    : space_(space),
      experts_per_token_(experts_per_token),
      usage_(space, experts_per_token, prior) {
  units_.resize(static_cast<size_t>(space.size()) * kMaxPatterns);
  lengths_.resize(row(space.layers));
  nearest_.resize(kMaxPatterns);
  all_likeness_.resize(kMaxPatterns);
  stats_.layers.resize(static_cast<size_t>(space.layers));
  scores_.resize(static_cast<size_t>(space.experts_per_layer));
  top_.resize(static_cast<size_t>(experts_per_token));
}

void ActivationPathPredictor::Reset(Path* path) const {
  path->tokens = 0;
  path->counts.assign(static_cast<size_t>(space_.size()), 0.0f);
  path->squares.assign(static_cast<size_t>(space_.layers), 0.0f);
  path->products.assign(row(space_.layers), 0.0f);
  path->cosines.assign(row(space_.layers), 0.0f);
  path->likeness.assign(kMaxPatterns, 0.0f);
}

void ActivationPathPredictor::Add(Path* path, int layer, int tokens, const int32_t* ids) {
  if (layer == 0) path->tokens += tokens;
  float* products = &path->products[row(layer)];
  float& squares = path->squares[static_cast<size_t>(layer)];
  for (int i = 0; i < tokens * experts_per_token_; ++i) {
    const auto place = static_cast<size_t>(space_.place({layer, ids[i]}));
    squares += 2 * path->counts[place] + 1;
    path->counts[place] += 1;
    const float* units = &units_[place * kMaxPatterns];
    for (int p = 0; p < patterns_; ++p) products[p] += units[p];
  }
  const float scale = 1 / std::sqrt(std::max(squares, 1.0f));
  float* cosines = &path->cosines[row(layer)];
  for (int p = 0; p < patterns_; ++p) {
    const float cosine = products[p] * scale;
    path->likeness[static_cast<size_t>(p)] += cosine - cosines[p];
    cosines[p] = cosine;
  }
}

void ActivationPathPredictor::Compare(Path* path, int pattern) const {
  const auto p = static_cast<size_t>(pattern);
  path->likeness[p] = 0;
  for (int layer = 0; layer < space_.layers; ++layer) {
    float product = 0;
    for (int e = 0; e < space_.experts_per_layer; ++e) {
      const auto place = static_cast<size_t>(space_.place({layer, e}));
      product += path->counts[place] * units_[place * kMaxPatterns + p];
    }
    path->products[row(layer) + p] = product;
    const float squares = path->squares[static_cast<size_t>(layer)];
    path->cosines[row(layer) + p] = product / std::sqrt(std::max(squares, 1.0f));
    path->likeness[p] += path->cosines[row(layer) + p];
  }
}

int ActivationPathPredictor::Nearest(const Path& path) const {
  if (patterns_ == 0) return -1;
  const auto end = path.likeness.begin() + patterns_;
  return static_cast<int>(std::max_element(path.likeness.begin(), end) - path.likeness.begin());
}

void ActivationPathPredictor::Miss(int layer, int64_t stream, std::span<float> miss) const {
  const int at = rows_.Find(stream);
  const int pattern = at < 0 ? -1 : Nearest(paths_[static_cast<size_t>(at)]);
  const std::span<const float> rates = usage_.rates(layer);
  for (int e = 0; e < space_.experts_per_layer; ++e) {
    float p = rates[static_cast<size_t>(e)];
    if (pattern >= 0) {
      const auto place = static_cast<size_t>(space_.place({layer, e}));
      p = units_[place * kMaxPatterns + static_cast<size_t>(pattern)] *
          lengths_[row(layer) + static_cast<size_t>(pattern)];
    }
    miss[static_cast<size_t>(e)] *= 1 - std::min(p, 1.0f);
  }
}

void ActivationPathPredictor::Estimate(int layer, int tokens, std::span<float> probability) {
  SLUICE_CHECK(layer >= 0 && layer < space_.layers && probability.size() == scores_.size());
  std::fill(probability.begin(), probability.end(), 1.0f);
  const int known = std::min(tokens, static_cast<int>(step_streams_.size()));
  for (int t = 0; t < known; ++t) Miss(layer, step_streams_[static_cast<size_t>(t)], probability);
  if (known < tokens) {
    const std::span<const float> rates = usage_.rates(layer);
    for (size_t e = 0; e < probability.size(); ++e) {
      probability[e] *= std::pow(1 - std::min(rates[e], 1.0f), static_cast<float>(tokens - known));
    }
  }
  for (float& p : probability) p = 1 - p;
}

void ActivationPathPredictor::OnRouted(int layer, const RoutedTokens& routed) {
  SLUICE_CHECK(layer >= 0 && layer < space_.layers &&
               routed.experts_per_token == experts_per_token_);
  const int k = experts_per_token_;
  step_streams_.clear();
  for (int begin = 0; begin < routed.tokens;) {
    const int64_t stream = routed.streams[begin];
    int end = begin;
    while (end < routed.tokens && routed.streams[end] == stream) ++end;
    const int32_t* ids = routed.ids + static_cast<ptrdiff_t>(begin) * k;

    std::fill(scores_.begin(), scores_.end(), 1.0f);
    Miss(layer, stream, scores_);
    for (float& s : scores_) s = 1 - s;
    TopExperts(scores_, top_);
    auto& stats = stats_.layers[static_cast<size_t>(layer)];
    for (int i = 0; i < k; ++i) {
      stats.predicted += static_cast<uint64_t>(std::count(top_.begin(), top_.end(), ids[i]));
    }
    stats.wanted += static_cast<uint64_t>(k);

    bool fresh = false;
    const auto at = static_cast<size_t>(rows_.FindOrAdd(stream, &fresh));
    if (paths_.size() <= at) paths_.resize(at + 1);
    if (fresh) Reset(&paths_[at]);
    Add(&paths_[at], layer, end - begin, ids);
    step_streams_.push_back(stream);
    begin = end;
  }
  usage_.Add(layer, routed.tokens, routed.ids);
}

void ActivationPathPredictor::Keep(const Path& path) {
  int pattern = patterns_;
  if (patterns_ == kMaxPatterns) {
    const float likeness = path.likeness[static_cast<size_t>(Nearest(path))];
    pattern =
        static_cast<int>(std::max_element(nearest_.begin(), nearest_.end()) - nearest_.begin());
    if (likeness >= nearest_[static_cast<size_t>(pattern)]) return;  // it adds less than any has
  } else {
    ++patterns_;
  }
  const auto p = static_cast<size_t>(pattern);
  for (int layer = 0; layer < space_.layers; ++layer) {
    const float length = std::sqrt(std::max(path.squares[static_cast<size_t>(layer)], 1.0f));
    lengths_[row(layer) + p] = length / static_cast<float>(path.tokens);
    for (int e = 0; e < space_.experts_per_layer; ++e) {
      const auto place = static_cast<size_t>(space_.place({layer, e}));
      units_[place * kMaxPatterns + p] = path.counts[place] / length;
    }
  }
  std::fill(all_likeness_.begin(), all_likeness_.end(), 0.0f);
  for (size_t i = 0; i < units_.size(); i += kMaxPatterns) {
    const float own = units_[i + p];
    for (size_t other = 0; other < all_likeness_.size() && own != 0; ++other) {
      all_likeness_[other] += own * units_[i + other];
    }
  }
  nearest_[p] = 0;
  for (int i = 0; i < patterns_; ++i) {
    const auto other = static_cast<size_t>(i);
    if (other == p) continue;
    nearest_[p] = std::max(nearest_[p], all_likeness_[other]);
    nearest_[other] = std::max(nearest_[other], all_likeness_[other]);
  }
  for (Path& running : paths_) {
    if (!running.counts.empty()) Compare(&running, pattern);
  }
}

void ActivationPathPredictor::OnStreamEnd(int64_t stream) {
  const int at = rows_.Remove(stream);
  if (at < 0) return;
  const Path& path = paths_[static_cast<size_t>(at)];
  if (path.tokens > 0) Keep(path);
}

}  // namespace sluice
