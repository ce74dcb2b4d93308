// Rotary position embedding: cosines and sines of each position, as the reference computes them
// (transformers 5.23, modeling_rope_utils.py), for every scaling kind. Angles are float32 products
// of a float32 position and a float32 inverse frequency; their cosine and sine are rounded once to
// float32 and multiplied by the attention factor. Powers are taken in double and rounded to
// float32, so that tables are the same on every platform and within a unit or two in the last place
// of the reference's.
//
// Dynamic NTK: the reference recomputes the frequencies from the length of the sequence so far, so
// in token-by-token decoding the token at position p is rotated with the frequencies of length
// max(max_position_embeddings, p + 1), and cached keys keep the rotation they were written with.
// That is the definition here for every token, prompt tokens included: a token's rotation depends
// on its position alone, never on how the prompt was chunked. (The reference prefills a prompt
// beyond max_position_embeddings with the frequencies of the whole prompt for all its tokens.)
#pragma once

#include <span>
#include <vector>

#include "engine/arch/model_config.h"

namespace sluice {

// Immutable after construction; safe from any thread.
class RopeTable {
 public:
  // REQUIRES: a config from ParseHfConfig (even rotary_dim, valid scaling).
  explicit RopeTable(const ModelConfig& config);

  int half_dim() const { return static_cast<int>(inverse_frequencies_.size()); }
  // [half_dim]; with dynamic scaling, those of positions below the trained length.
  std::span<const float> inverse_frequencies() const { return inverse_frequencies_; }
  // Multiplies cosines and sines (yarn); otherwise 1.
  float attention_factor() const { return attention_factor_; }

  // Writes half_dim() cosines and as many sines for one position. Value i rotates the pair of
  // elements (i, i + half_dim) of a head. REQUIRES: 0 <= position.
  void CosSin(int position, float* cos, float* sin) const;

 private:
  void DynamicFrequencies(int length, float* frequencies) const;

  std::vector<float> inverse_frequencies_;
  float attention_factor_ = 1.0f;
  // Dynamic scaling only; trained_length_ is 0 otherwise.
  int trained_length_ = 0;
  double theta_ = 0.0;
  double factor_ = 1.0;
};

// CosSin of every position below `max_positions`, computed once. 8 * half_dim bytes per position.
class RopeCache {
 public:
  RopeCache(const RopeTable& table, int max_positions);

  int max_positions() const { return max_positions_; }
  // [half_dim] each. REQUIRES: 0 <= position < max_positions().
  const float* cos(int position) const { return Row(position); }
  const float* sin(int position) const { return Row(position) + half_dim_; }

 private:
  const float* Row(int position) const {
    return values_.data() + static_cast<size_t>(position) * 2 * static_cast<size_t>(half_dim_);
  }

  int half_dim_;
  int max_positions_;
  std::vector<float> values_;  // [max_positions, 2, half_dim]: cosines, then sines
};

}  // namespace sluice
