// Who decodes together (SEAM). Asked with ids only; knows what the scheduler does not: which
// experts a sequence uses. First come, first served is the answer "all".
//
// A former cannot break what the scheduler promises: memory, fairness between accounts and the
// bound on prompts are decided without it. Sequences that it leaves out keep their KvBlocks.
//
// Threads: the scheduler's.
#pragma once

#include <cstdint>
#include <span>

#include "engine/base/clock.h"
#include "engine/scheduler/sequence.h"

namespace sluice {

class BatchFormer {
 public:
  virtual ~BatchFormer() = default;

  // decoders: running sequences that could compute one token each, the best rank first, at least
  // two. Sets chosen[i] to 1 for those that do in this step, to 0 for the others; at least one.
  virtual void Choose(std::span<const SequenceId> decoders, std::span<uint8_t> chosen) = 0;
};

}  // namespace sluice
