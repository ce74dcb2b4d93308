#include "engine/experts/synthetic_trace.h"

#include <algorithm>
#include <cmath>

namespace sluice {
namespace {

// The same numbers on every platform, unlike the distributions of <random>. SplitMix64 (Steele, Lea
// and Flood, 2014).
class RandomNumbers {
 public:
  explicit RandomNumbers(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  int Below(int n) { return static_cast<int>(Next() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

class LayerChoices {
 public:
  LayerChoices(const SyntheticTraceOptions& options, RandomNumbers* random)
      : options_(options), random_(random) {
    const int experts = options.model.space.experts_per_layer;
    double sum = 0;
    for (int rank = 0; rank < experts; ++rank) {
      sum += std::pow(rank + 1, -options.skew);
      cumulative_.push_back(sum);
      by_rank_.push_back(rank);
    }
    for (int i = experts - 1; i > 0; --i) std::swap(by_rank_[i], by_rank_[random->Below(i + 1)]);
  }

  // Appends one token's experts.
  void Choose(std::vector<int32_t>* ids) {
    const int k = options_.model.experts_per_token;
    const size_t first = ids->size();
    while (ids->size() < first + static_cast<size_t>(k)) {
      const int32_t expert = random_->Uniform() < options_.locality ? Recent() : Popular();
      if (std::find(ids->begin() + static_cast<ptrdiff_t>(first), ids->end(), expert) ==
          ids->end()) {
        ids->push_back(expert);
      }
    }
    for (size_t i = first; i < ids->size(); ++i) {
      std::erase(recent_, (*ids)[i]);
      recent_.insert(recent_.begin(), (*ids)[i]);
    }
  }

 private:
  int32_t Popular() {
    const double u = random_->Uniform() * cumulative_.back();
    const auto at = std::upper_bound(cumulative_.begin(), cumulative_.end(), u);
    return by_rank_[std::min<size_t>(at - cumulative_.begin(), by_rank_.size() - 1)];
  }
  int32_t Recent() {
    const double u = 1 - random_->Uniform();
    const double keep = options_.recency_depth / (1 + options_.recency_depth);
    const double rank = std::floor(std::log(u) / std::log(keep));
    if (!(rank < static_cast<double>(recent_.size()))) return Popular();
    return recent_[static_cast<size_t>(rank)];
  }

  const SyntheticTraceOptions& options_;
  RandomNumbers* random_;
  std::vector<double> cumulative_;  // [rank]
  std::vector<int32_t> by_rank_;
  std::vector<int32_t> recent_;  // the latest first
};

Result<void> Check(const SyntheticTraceOptions& o) {
  if (o.documents < 1 || o.prompt_tokens < 0 || o.decode_tokens < 0) {
    return InvalidArgument("a synthetic trace needs documents, of no negative length");
  }
  if (!(o.locality >= 0 && o.locality <= 1) || !(o.recall >= 0 && o.recall <= 1)) {
    return InvalidArgument("locality and recall are probabilities");
  }
  if (!(o.skew >= 0 && o.skew <= 8) || !(o.recency_depth > 0)) {
    return InvalidArgument("skew is from 0 to 8, the depth of recency above 0");
  }
  if (o.model.experts_per_token * 2 > o.model.space.experts_per_layer) {
    return InvalidArgument("a synthetic token chooses at most half of a layer's experts");
  }
  return {};
}

class Generator {
 public:
  Generator(const SyntheticTraceOptions& options, TraceWriter* writer)
      : options_(options), writer_(writer), random_(options.seed) {
    for (int l = 0; l < options.model.space.layers; ++l) layers_.emplace_back(options_, &random_);
    chosen_.resize(layers_.size());
  }

  void Run() {
    for (int document = 0; document < options_.documents; ++document) {
      if (options_.prompt_tokens > 0) Step(document, options_.prompt_tokens);
      for (int t = 0; t < options_.decode_tokens; ++t) Step(document, 1);
      writer_->OnStreamEnd(document);
    }
  }

 private:
  void Step(int64_t stream, int tokens) {
    for (size_t l = 0; l < layers_.size(); ++l) {
      chosen_[l].clear();
      for (int t = 0; t < tokens; ++t) layers_[l].Choose(&chosen_[l]);
    }
    const int k = options_.model.experts_per_token;
    const std::vector<int64_t> streams(static_cast<size_t>(tokens), stream);
    const std::vector<float> weights(static_cast<size_t>(tokens) * static_cast<size_t>(k),
                                     1.0F / static_cast<float>(k));
    const int layers = static_cast<int>(layers_.size());
    for (int l = 0; l < layers; ++l) {
      writer_->OnLayer(l, {tokens, k, chosen_[l].data(), streams.data()}, weights.data());
      if (tokens != 1) continue;
      for (int ahead = 1; ahead <= options_.horizon && l + ahead < layers; ++ahead) {
        Predict(l + ahead, std::pow(options_.recall, ahead));
      }
    }
    writer_->EndStep();
  }

  void Predict(int layer, double recall) {
    const int experts = options_.model.space.experts_per_layer;
    const int k = options_.model.experts_per_token;
    std::vector<uint8_t> named(static_cast<size_t>(experts), 0);
    const std::vector<int32_t>& truth = chosen_[layer];
    int wrong = 0;
    for (const int32_t expert : truth) {
      if (random_.Uniform() < recall) {
        named[expert] = 1;
      } else {
        ++wrong;
      }
    }
    while (wrong > 0) {
      const int expert = random_.Below(experts);
      if (named[expert] != 0 || std::find(truth.begin(), truth.end(), expert) != truth.end()) {
        continue;
      }
      named[expert] = 1;
      --wrong;
    }
    const auto rest = static_cast<float>(k * (1 - recall) / (experts - k));
    std::vector<float> probability(static_cast<size_t>(experts), rest);
    for (int e = 0; e < experts; ++e) {
      if (named[e] != 0) probability[e] = static_cast<float>(recall);
    }
    writer_->OnPredicted(layer, probability);
  }

  const SyntheticTraceOptions& options_;
  TraceWriter* writer_;
  RandomNumbers random_;
  std::vector<LayerChoices> layers_;
  std::vector<std::vector<int32_t>> chosen_;  // [layer] of this step
};

}  // namespace

Result<void> WriteSyntheticTrace(const std::filesystem::path& path,
                                 const SyntheticTraceOptions& options) {
  if (Result<void> sound = Check(options); !sound) return sound.error();
  Result<std::unique_ptr<TraceWriter>> writer =
      TraceWriter::Create(path, options.model, {.pending_bytes = size_t{64} << 20});
  if (!writer) return writer.error();
  Generator(options, writer->get()).Run();
  if (Result<void> closed = (*writer)->Close(); !closed) return closed.error();
  if ((*writer)->lost_steps() > 0) return IoError("the disk is too slow for " + path.string());
  return {};
}

}  // namespace sluice
