// The slowest tier: experts on disk (SEAM). Reads of plane sets are queued here, carried out in
// order of urgency, checked against their checksums and reported when they have landed.
//
//   store->Submit({.ticket = 7, .expert = {3, 12}, .first_set = 0, .end_set = 2,
//                  .destination = {slot, slot + set_bytes}, .urgency = 0});
//   store->Collect(/*wait=*/true, &landed);   // landed[0].ticket == 7
//
// A store writes only the bytes handed to it in `destination`, from Submit until it reports the
// ticket, Cancel returns true or the store is gone: whoever owns the memory needs no lock, but must
// neither reuse nor free it in between.
//
// Threads: all calls from one owner thread (the engine thread). Implementations do their I/O, their
// retries and their checksums elsewhere.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/expert_id.h"
#include "kernels/common/nested.h"

namespace sluice {

// Smaller numbers are read first; equal ones in the order of Submit.
inline constexpr int kUrgencyDemand = 0;        // a step waits for it
inline constexpr int kUrgencyPredicted = 1000;  // and above: expected by a later layer
inline constexpr int kUrgencyFill = 1000000;    // and above: fills free memory

struct ExpertRead {
  uint64_t ticket = 0;  // the caller's name for it; unique among those not yet reported
  ExpertId expert;
  int first_set = 0;  // plane sets [first_set, end_set), one contiguous range of the file
  int end_set = 0;
  // Where each of these sets goes: destination[set], aligned to the pack's alignment, as many bytes
  // as the set has in the file. Sets need not be neighbours in memory.
  std::array<std::byte*, kMaxPlanes> destination{};
  int urgency = kUrgencyDemand;
};

struct LandedRead {
  uint64_t ticket = 0;
  bool ok = true;
  // When not ok: kCorrupt (checksum, truncated file) or kIo, naming file and expert; kCancelled.
  Error error;
};

struct ExpertStoreStats {
  uint64_t reads = 0;              // landed, good and bad
  uint64_t bytes = 0;              // of good reads
  uint64_t retries = 0;            // reads that were tried again
  uint64_t failures = 0;           // reads that failed for good
  uint64_t checksum_failures = 0;  // attempts whose bytes did not have their checksum
  uint64_t cancelled = 0;          // reads that Cancel ended
  double busy_seconds = 0;         // time with at least one read in flight
  double cpu_seconds = 0;          // of the thread that fetches and hashes
  bool pack_truncated = false;     // the file lost its end: what was there fails
  bool pack_replaced = false;      // another file has its name: the old one is served on
};

class ExpertStore {
 public:
  virtual ~ExpertStore() = default;

  virtual void Submit(const ExpertRead& read) = 0;
  // Changes the urgency of what is still queued or partly read; nothing for other tickets.
  virtual void SetUrgency(uint64_t ticket, int urgency) = 0;
  // True: the read had no bytes in flight; it is forgotten and will not be reported, and its
  // memory is the caller's again. False: it will be reported: good, when all of it was under way;
  // otherwise what had not started is dropped and the report says kCancelled, unless SetUrgency
  // names it before the report is collected: then it goes on as if never cancelled.
  virtual bool Cancel(uint64_t ticket) = 0;

  // Appends what has landed since the last call to `landed`, at least one when `wait` (REQUIRES
  // then: something is submitted and not yet reported).
  virtual void Collect(bool wait, std::vector<LandedRead>* landed) = 0;

  virtual ExpertStoreStats stats() const = 0;
  // How experts are read, for people; empty when there is nothing to say.
  virtual std::string description() const { return {}; }
};

}  // namespace sluice
