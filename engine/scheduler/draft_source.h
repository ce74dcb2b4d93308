// Who guesses tokens before they are generated (SEAM), so that one step can check several.
//
// A draft is a continuation of a sequence. The scheduler computes it behind the sequence's newest
// token, a row per token, where tokens, rows and KvBlocks are left over, and keeps the part that
// the caller found right (ChunkResult::accepted). A guess changes how many steps a text takes and
// never the text.
//
// Threads: the scheduler's.
#pragma once

#include <cstdint>
#include <span>

#include "engine/scheduler/sequence.h"

namespace sluice {

class DraftSource {
 public:
  virtual ~DraftSource() = default;

  // decoders: sequences that compute their newest token in this step; limits[i]: the most tokens
  // that a draft for decoders[i] may have, 0 or more. Sets drafts[i], empty before, to a guess of
  // what follows decoders[i]->tokens; all of them together have at most `most` tokens. They stay
  // valid until the next call.
  virtual void Draft(std::span<const Sequence* const> decoders, std::span<const int> limits,
                     int most, std::span<std::span<const int32_t>> drafts) = 0;
};

}  // namespace sluice
