#include "engine/experts/replay_disk.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice {

void ReplayDisk::Submit(int place, double bytes, int urgency, double now) {
  AdvanceTo(now);
  landed_at_[place] = kNotYet;
  queue_.push_back({place, bytes, urgency, now});
}

void ReplayDisk::SetUrgency(int place, int urgency) {
  for (Read& read : queue_) {
    if (read.place == place) read.urgency = urgency;
  }
}

bool ReplayDisk::Cancel(int place) {
  const auto is_place = [place](const Read& read) { return read.place == place; };
  if (std::erase_if(queue_, is_place) == 0) return false;
  landed_at_[place] = 0;
  return true;
}

void ReplayDisk::AdvanceTo(double now) {
  while (!queue_.empty() && free_at_ <= now) StartNext();
}

double ReplayDisk::FinishTime(int place) {
  while (!started(place)) {
    SLUICE_CHECK(!queue_.empty());
    StartNext();
  }
  return landed_at_[place];
}

void ReplayDisk::StartNext() {
  const auto next = std::min_element(
      queue_.begin(), queue_.end(),
      [](const Read& a, const Read& b) { return a.urgency < b.urgency; });  // the oldest of equals
  const double start = std::max(free_at_, next->submitted);
  free_at_ = start + next->bytes / bytes_per_second_;
  landed_at_[next->place] = free_at_ + latency_seconds_;
  queue_.erase(next);
}

}  // namespace sluice
