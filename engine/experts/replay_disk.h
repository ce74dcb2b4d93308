// The disk of a replay: one read after the other, the most urgent first.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace sluice {

class ReplayDisk {
 public:
  static constexpr double kNotYet = std::numeric_limits<double>::infinity();

  ReplayDisk(double bytes_per_second, double latency_seconds, int places)
      : bytes_per_second_(bytes_per_second),
        latency_seconds_(latency_seconds),
        landed_at_(places, 0) {}

  // From now on `place` is being read; the smaller urgency goes first, then the older.
  void Submit(int place, double bytes, int urgency, double now);
  void SetUrgency(int place, int urgency);
  // True: it had not been started and is forgotten.
  bool Cancel(int place);

  // Starts what the disk gets to until `now`.
  void AdvanceTo(double now);
  // When `place` lands; kNotYet when it was not started. Places never read are there since 0.
  double landed_at(int place) const { return landed_at_[place]; }
  // Starts reads until that of `place` has been; returns when it lands.
  double FinishTime(int place);

  bool started(int place) const { return landed_at_[place] != kNotYet; }

 private:
  struct Read {
    int place = 0;
    double bytes = 0;
    int urgency = 0;
    double submitted = 0;
  };
  void StartNext();

  double bytes_per_second_;
  double latency_seconds_;
  double free_at_ = 0;
  std::vector<Read> queue_;  // in the order of Submit
  std::vector<double> landed_at_;
};

}  // namespace sluice
