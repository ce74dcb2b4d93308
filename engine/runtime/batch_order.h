// How sequences are chosen that decode together, as a setting and in figures (affinity_former.h).
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/result.h"

namespace sluice {

enum class BatchOrder { kFcfs, kLongestQueue, kAffinity, kAuto };
Result<BatchOrder> ParseBatchOrder(const std::string& name);

struct AffinityStats {
  uint64_t steps = 0;       // in which there was a choice
  uint64_t chosen = 0;      // sequences that decoded in these
  uint64_t candidates = 0;  // that could have
  uint64_t slices = 0;
  double longest_wait_seconds = 0;  // of a sequence that could decode, for its next step
};

}  // namespace sluice
