// Drafts of tokens to come, as a setting and in figures (speculator.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/experts/tier_stats.h"

namespace sluice {

enum class Speculation { kOff, kNgram, kAuto };
Result<Speculation> ParseSpeculation(const std::string& name);

struct SpeculationStats {
  uint64_t drafted_tokens = 0;   // computed as guesses
  uint64_t accepted_tokens = 0;  // of these, right: generated without a step of their own
  // Of kAuto, else null; some hundreds of milliseconds old at most.
  std::shared_ptr<const ExpertTierStats::Guard> guard;
};

}  // namespace sluice
