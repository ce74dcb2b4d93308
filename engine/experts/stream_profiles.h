// Which experts each sequence has used lately: shares of its last tokens that fade with every
// token.
//
// Memory: 4 bytes per expert and stream, of the streams that were active last.
// Threads: one owner thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/experts/expert_id.h"
#include "engine/experts/expert_predictor.h"

namespace sluice {

class StreamProfiles {
 public:
  // A token's weight against all before it: what sequences use drifts within tens of tokens.
  static constexpr float kShare = 0.1f;

  explicit StreamProfiles(ExpertSpace space, int most_streams = 256);

  // The choices of a layer, tokens of one stream together and in order; of a long run the last.
  void OnRouted(int layer, const RoutedTokens& routed);
  // [space.size()]; empty when the stream is not known. Valid until the next OnRouted.
  std::span<const float> Find(int64_t stream) const;

 private:
  struct Profile {
    std::vector<float> uses;  // [place]
    uint64_t seen = 0;
  };

  // A new stream uses all experts alike.
  Profile& Touch(int64_t stream, int experts_per_token);

  const ExpertSpace space_;
  const size_t most_streams_;
  uint64_t clock_ = 0;
  std::unordered_map<int64_t, Profile> profiles_;
};

}  // namespace sluice
