// MakeCachePolicy: policies by name.
#include <array>

#include "engine/experts/policies/policies.h"

namespace sluice {
namespace {

constexpr std::array<std::string_view, 8> kNames = {"auto", "next-use",    "lru",     "lfu",
                                                    "arc",  "least-stale", "shallow", "look-ahead"};

}  // namespace

std::span<const std::string_view> CachePolicyNames() { return kNames; }

Result<std::unique_ptr<CachePolicy>> MakeCachePolicy(std::string_view name, ExpertSpace space,
                                                     const ExpertPrior& prior) {
  SLUICE_CHECK(space.layers > 0 && space.experts_per_layer > 0);
  SLUICE_CHECK(prior.frequency.empty() ||
               prior.frequency.size() == static_cast<size_t>(space.size()));
  // config/policies/README.md compares them.
  if (name == "auto" || name == "next-use") return MakeNextUsePolicy(space, prior);
  if (name == "lru") return MakeLruPolicy(space);
  if (name == "lfu") return MakeLfuPolicy(space, prior);
  if (name == "arc") return MakeArcPolicy(space, LayerShares::kEqual);
  if (name == "least-stale") return MakeLeastStalePolicy(space);
  if (name == "shallow") return MakeArcPolicy(space, LayerShares::kShallow);
  if (name == "look-ahead") return MakeLookAheadPolicy(space);
  std::string list;
  for (const std::string_view known : kNames) {
    list += (list.empty() ? "" : ", ") + std::string(known);
  }
  return InvalidArgument("unknown cache policy \"" + std::string(name) + "\"; known are " + list);
}

}  // namespace sluice
