// ExpertStore over a pack file. One fetch thread owns a DirectReader: it cuts reads into pieces,
// keeps a few of them in flight, most urgent first, hashes plane sets as their pieces land, and
// tries again what failed.
//
// Order. Pieces start by (urgency, order of Submit); a read that is under way pauses between two
// pieces while a more urgent one has pieces left. While nothing in the queue is a demand, fewer
// pieces are kept in flight, so that a demand which arrives then waits for less.
//
// Faults. A piece that fails or comes short is read again at once, at most kIoRetries times per
// read; a plane set without its checksum is read again once. Then the read fails, with a sentence
// that names file, expert and plane set. A file that lost its end fails with kCorrupt. A file whose
// name was given to another is served on from the open descriptor, and stats().pack_replaced says
// so; changes within the file meet the checksums. Slow reads are waited for, however long.
//
// Memory is written from Submit until the read is reported, by the kernel or by hashing threads
// only reading it. Destruction waits for the pieces in flight.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/direct_reader.h"
#include "engine/experts/expert_store.h"
#include "engine/formats/pack.h"

namespace sluice {

struct PackStoreOptions {
  bool io_uring = true;
  bool direct = true;
  size_t piece_bytes = kReadPieceBytes;  // at least 4096
  // Pieces in flight while demands are queued: two experts of four pieces, so that a step's second
  // miss does not wait for this thread to be run.
  int depth = 2 * kReadDepth;
  int background_depth = 4;  // while none is
};

class PackStore final : public ExpertStore {
 public:
  static constexpr int kIoRetries = 2;
  static constexpr int kChecksumRetries = 1;

  // Errors: kIo, when nothing can be started that reads the file.
  static Result<std::unique_ptr<PackStore>> Open(std::shared_ptr<const PackReader> pack,
                                                 const PackStoreOptions& options = {});
  // With a reader of the caller's; its depth must be at least options.depth.
  PackStore(std::shared_ptr<const PackReader> pack, std::unique_ptr<DirectReader> reader,
            const PackStoreOptions& options);
  ~PackStore() override;

  // REQUIRES: the expert is in the pack, and the sets are a non-empty range of its sets.
  void Submit(const ExpertRead& read) override;
  void SetUrgency(uint64_t ticket, int urgency) override;
  bool Cancel(uint64_t ticket) override;
  void Collect(bool wait, std::vector<LandedRead>* landed) override;
  ExpertStoreStats stats() const override;

  // How the file is read, for logs: "io_uring, direct", "threads, through the page cache".
  std::string description() const override;

 private:
  struct Job;
  using QueueKey = std::pair<int, uint64_t>;  // urgency, order of Submit

  // Everything below runs on the fetch thread; `lock` holds mutex_.
  void Run();
  void StartPieces();
  PieceRead MakePiece(const Job& job, size_t piece) const;
  void LandPiece(const LandedPiece& landed);
  void FailPiece(Job* job, size_t piece, int64_t result);
  // Hashes what follows of one read's landed pieces, at most to the end of one of them.
  void VerifyNext(std::unique_lock<std::mutex>* lock);
  void FinishSet(Job* job, uint64_t checksum);
  void RereadSet(Job* job);
  void Fail(Job* job, Error error);
  // Reports the read once nothing of it is in flight, if it has failed or was cancelled.
  void SettleIfDone(Job* job);
  void Report(Job* job);
  void CheckFile();

  // Both threads, under mutex_.
  void Enqueue(Job* job);
  void Dequeue(Job* job);
  bool ShouldWake() const;
  Job* Find(uint64_t ticket);
  void Release(Job* job);

  const std::shared_ptr<const PackReader> pack_;
  const std::unique_ptr<DirectReader> reader_;
  const PackStoreOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable landed_some_;
  std::unordered_map<uint64_t, std::unique_ptr<Job>> jobs_;  // GUARDED_BY(mutex_), by ticket
  std::vector<std::unique_ptr<Job>> spare_jobs_;             // GUARDED_BY(mutex_)
  std::map<QueueKey, Job*> queue_;  // GUARDED_BY(mutex_): reads with pieces to start
  std::vector<Job*> verify_;        // GUARDED_BY(mutex_): reads with landed bytes to hash
  std::vector<Job*> reported_;      // GUARDED_BY(mutex_): not yet collected
  uint64_t submitted_ = 0;          // GUARDED_BY(mutex_): reads so far
  bool sleeping_ = false;           // GUARDED_BY(mutex_): the fetch thread needs Wake
  bool owner_waits_ = false;        // GUARDED_BY(mutex_)
  bool stopping_ = false;           // GUARDED_BY(mutex_)
  ExpertStoreStats stats_;          // GUARDED_BY(mutex_)
  std::chrono::steady_clock::time_point busy_since_;    // GUARDED_BY(mutex_)
  std::chrono::steady_clock::time_point file_checked_;  // of the fetch thread
  int pieces_in_flight_ = 0;                            // GUARDED_BY(mutex_)
  // Pieces in flight by their token. Of the fetch thread.
  std::vector<std::pair<Job*, size_t>> flights_;
  std::vector<uint64_t> free_flights_;

  std::thread fetch_thread_;
};

}  // namespace sluice
