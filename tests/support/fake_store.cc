#include "tests/support/fake_store.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "engine/base/check.h"

namespace sluice {

FakeStore::FakeStore(Contents contents, ManualClock* clock, const FakeStoreOptions& options)
    : contents_(std::move(contents)),
      clock_(clock),
      options_(options),
      device_free_(clock->Now()) {}

void FakeStore::Submit(const ExpertRead& read) {
  for (const uint64_t ticket : Pending()) SLUICE_CHECK(ticket != read.ticket, "ticket in use");
  for (const LandedRead& l : landed_) SLUICE_CHECK(l.ticket != read.ticket, "ticket in use");
  queue_.emplace(std::pair(read.urgency, submitted_.size()), read);
  submitted_.push_back(read);
  Start();
}

void FakeStore::Start() {
  while (!queue_.empty() && static_cast<int>(flights_.size()) < options_.depth) {
    const auto first = queue_.begin();
    device_free_ = std::max(device_free_, clock_->Now()) +
                   std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                       std::chrono::duration<double>(options_.seconds_per_read));
    flights_.push_back({first->second, device_free_});
    queue_.erase(first);
  }
}

void FakeStore::SetUrgency(uint64_t ticket, int urgency) {
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    if (it->second.ticket != ticket) continue;
    auto node = queue_.extract(it);
    node.key().first = node.mapped().urgency = urgency;
    queue_.insert(std::move(node));
    return;
  }
}

bool FakeStore::Cancel(uint64_t ticket) {
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    if (it->second.ticket != ticket) continue;
    queue_.erase(it);
    cancelled_.push_back(ticket);
    ++stats_.cancelled;
    return true;
  }
  return false;
}

void FakeStore::Fill(const ExpertRead& read) {
  for (int set = read.first_set; set < read.end_set; ++set) {
    const std::span<const std::byte> bytes = contents_(read.expert, set);
    std::memcpy(read.destination[static_cast<size_t>(set)], bytes.data(), bytes.size());
    stats_.bytes += bytes.size();
  }
  stats_.busy_seconds += options_.seconds_per_read;
  ++stats_.reads;
  landed_.push_back({read.ticket, true, {}});
}

void FakeStore::Land(uint64_t ticket) {
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    if (it->second.ticket != ticket) continue;
    Fill(it->second);
    queue_.erase(it);
    return;
  }
  const auto flight = std::find_if(flights_.begin(), flights_.end(),
                                   [&](const Flight& f) { return f.read.ticket == ticket; });
  SLUICE_CHECK(flight != flights_.end(), "no such read");
  Fill(flight->read);
  flights_.erase(flight);
  Start();
}

void FakeStore::Collect(bool wait, std::vector<LandedRead>* landed) {
  while (!options_.held) {
    if (wait && landed_.empty()) {
      SLUICE_CHECK(!flights_.empty(), "waiting for a read that nobody asked for");
      const double seconds =
          std::chrono::duration<double>(flights_.front().end - clock_->Now()).count();
      if (seconds > 0) clock_->Advance(seconds);
      // Rounding may leave the clock a moment short of it.
      if (flights_.front().end > clock_->Now()) clock_->Advance(1e-9);
    }
    if (flights_.empty() || flights_.front().end > clock_->Now()) break;
    Fill(flights_.front().read);
    flights_.erase(flights_.begin());
    Start();
  }
  SLUICE_CHECK(!wait || !landed_.empty(), "nothing lands by itself in a held store");
  landed->insert(landed->end(), landed_.begin(), landed_.end());
  landed_.clear();
}

std::vector<uint64_t> FakeStore::Pending() const {
  std::vector<uint64_t> tickets;
  for (const Flight& flight : flights_) tickets.push_back(flight.read.ticket);
  for (const auto& [key, read] : queue_) tickets.push_back(read.ticket);
  return tickets;
}

void FaultyStore::Fail(ExpertId expert, int nth, int times, Error error) {
  faults_.push_back(
      std::make_unique<Fault>(Fault{expert, nth, nth + times, false, false, std::move(error)}));
}

void FaultyStore::WrongBytes(ExpertId expert, int nth, int times) {
  faults_.push_back(std::make_unique<Fault>(
      Fault{expert, nth, nth + times, false, true,
            Corrupt("plane set of expert " + std::to_string(expert.index) + " of layer " +
                    std::to_string(expert.layer) + " does not have its checksum")}));
}

void FaultyStore::Stall(ExpertId expert, int nth) {
  faults_.push_back(std::make_unique<Fault>(Fault{expert, nth, nth + 1, true, false, {}}));
}

void FaultyStore::Release() {
  released_.insert(released_.end(), stalled_.begin(), stalled_.end());
  stalled_.clear();
  for (const auto& fault : faults_) {
    if (fault->stall) fault->end = fault->begin;
  }
}

void FaultyStore::Submit(const ExpertRead& read) {
  const int number = reads_[{read.expert.layer, read.expert.index}]++;
  Submitted submitted{read, nullptr};
  for (const auto& fault : faults_) {
    if (fault->expert == read.expert && number >= fault->begin && number < fault->end) {
      submitted.fault = fault.get();
    }
  }
  pending_[read.ticket] = submitted;
  store_->Submit(read);
}

void FaultyStore::SetUrgency(uint64_t ticket, int urgency) { store_->SetUrgency(ticket, urgency); }

bool FaultyStore::Cancel(uint64_t ticket) {
  if (!store_->Cancel(ticket)) return false;
  pending_.erase(ticket);
  return true;
}

void FaultyStore::Collect(bool wait, std::vector<LandedRead>* landed) {
  const size_t before = landed->size();
  landed->insert(landed->end(), released_.begin(), released_.end());
  released_.clear();
  std::vector<LandedRead> arrived;
  do {
    arrived.clear();
    store_->Collect(wait && landed->size() == before, &arrived);
    for (LandedRead& report : arrived) {
      const Submitted submitted = pending_.at(report.ticket);
      pending_.erase(report.ticket);
      const Fault* fault = submitted.fault;
      if (fault == nullptr || !report.ok || (fault->stall && fault->begin == fault->end)) {
        landed->push_back(std::move(report));
        continue;
      }
      if (fault->stall) {
        stalled_.push_back(std::move(report));
        continue;
      }
      if (fault->wrong_bytes) {
        *submitted.read.destination[static_cast<size_t>(submitted.read.first_set)] ^= std::byte{1};
      }
      ++failures_;
      report.ok = false;
      report.error = fault->error;
      landed->push_back(std::move(report));
    }
  } while (wait && landed->size() == before);
}

ExpertStoreStats FaultyStore::stats() const {
  ExpertStoreStats stats = store_->stats();
  stats.failures += failures_;
  return stats;
}

}  // namespace sluice
