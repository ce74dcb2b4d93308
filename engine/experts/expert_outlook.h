// What is known before a step of the experts that it would use, for whoever chooses its sequences.
//
// Threads: the engine thread.
#pragma once

#include <cstdint>
#include <span>

#include "engine/experts/expert_id.h"

namespace sluice {

// Of the last step.
struct ExpertStepCounts {
  int touched = 0;           // distinct experts, over all layers
  int missed = 0;            // of these, not resident when asked for
  double seconds = 0;        // from its first layer to its last
  double stall_seconds = 0;  // of these, waiting for experts with nothing to compute
};

class ExpertOutlook {
 public:
  virtual ~ExpertOutlook() = default;

  // [space().size()] by place: how likely the stream's next token uses each expert, from its last
  // tokens. Empty: the stream is not known. Valid until the next step.
  virtual std::span<const float> Uses(int64_t stream) const = 0;
  virtual const ExpertSpace& space() const = 0;
  virtual bool resident(int place) const = 0;
  virtual int capacity() const = 0;   // experts of mean size that fit in memory
  virtual bool complete() const = 0;  // all of them are resident
  virtual ExpertStepCounts last_step() const = 0;
};

}  // namespace sluice
