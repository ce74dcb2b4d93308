// A clock that moves only when a test says so.
#pragma once

#include <chrono>

#include "engine/base/clock.h"

namespace sluice {

class ManualClock final : public Clock {
 public:
  std::chrono::steady_clock::time_point Now() const override { return now_; }
  void Advance(double seconds) {
    now_ += std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(seconds));
  }

 private:
  std::chrono::steady_clock::time_point now_{std::chrono::seconds(1000)};
};

}  // namespace sluice
