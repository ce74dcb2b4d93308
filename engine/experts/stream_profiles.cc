#include "engine/experts/stream_profiles.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice {
namespace {

// Of a prompt's chunk: what its earlier tokens used has faded by its end.
constexpr int kRunTokens = 24;

}  // namespace

StreamProfiles::StreamProfiles(ExpertSpace space, int most_streams)
    : space_(space), most_streams_(static_cast<size_t>(most_streams)) {
  SLUICE_CHECK(most_streams > 0);
}

StreamProfiles::Profile& StreamProfiles::Touch(int64_t stream, int experts_per_token) {
  const auto found = profiles_.find(stream);
  if (found == profiles_.end() && profiles_.size() == most_streams_) {
    profiles_.erase(std::min_element(
        profiles_.begin(), profiles_.end(),
        [](const auto& a, const auto& b) { return a.second.seen < b.second.seen; }));
  }
  Profile& profile = found != profiles_.end() ? found->second : profiles_[stream];
  if (profile.uses.empty()) {
    const float even =
        static_cast<float>(experts_per_token) / static_cast<float>(space_.experts_per_layer);
    profile.uses.assign(static_cast<size_t>(space_.size()), even);
  }
  profile.seen = ++clock_;
  return profile;
}

void StreamProfiles::OnRouted(int layer, const RoutedTokens& routed) {
  const int k = routed.experts_per_token;
  const int first = space_.place({layer, 0});
  for (int begin = 0, end = 0; begin < routed.tokens; begin = end) {
    while (end < routed.tokens && routed.streams[end] == routed.streams[begin]) ++end;
    float* const uses = Touch(routed.streams[begin], k).uses.data() + first;
    for (int t = std::max(begin, end - kRunTokens); t < end; ++t) {
      for (int e = 0; e < space_.experts_per_layer; ++e) uses[e] *= 1 - kShare;
      const int32_t* ids = routed.ids + static_cast<ptrdiff_t>(t) * k;
      for (int i = 0; i < k; ++i) uses[ids[i]] += kShare;
    }
  }
}

std::span<const float> StreamProfiles::Find(int64_t stream) const {
  const auto found = profiles_.find(stream);
  if (found == profiles_.end()) return {};
  return found->second.uses;
}

}  // namespace sluice
