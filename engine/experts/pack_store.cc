#include "engine/experts/pack_store.h"

#include <pthread.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <string>

#include "engine/base/check.h"
#include "engine/formats/pack_wire.h"

namespace sluice {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr size_t kPieceAlign = 4096;
constexpr std::chrono::seconds kFileCheckInterval{1};

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

double ThreadCpuSeconds() {
  timespec t = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

enum class PieceState : uint8_t { kWaiting, kInFlight, kLanded };

// Lets the calling thread run at once when it wakes, although compute workers occupy every core: it
// works for some tens of microseconds at a time, and the disk idles until it has. Linux 6.12 and
// later; others refuse or ignore it, and reads go on a little slower.
void AskForShortSlices() {
  struct {  // sched_attr of sched_setattr(2), which glibc does not have
    uint32_t size = 48;
    uint32_t policy = 0;  // SCHED_OTHER
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime_ns = 100'000;
    uint64_t deadline_ns = 0;
    uint64_t period_ns = 0;
  } attributes;
  static_assert(sizeof(attributes) == 48);
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace

// One read. Positions are bytes from the start of its range. All guarded by the store's mutex,
// except while `verifying`: then the fetch thread hashes without it, and nobody else touches
// `verified`, `set`, `set_end` and `checksum`.
struct PackStore::Job {
  ExpertRead read;
  const PackExpert* expert = nullptr;
  uint64_t order = 0;
  uint64_t file_offset = 0;  // of the range
  uint64_t bytes = 0;
  uint64_t piece_bytes = 0;
  std::vector<PieceState> pieces;
  size_t next_piece = 0;  // none before it waits
  size_t waiting = 0;     // pieces to start
  int in_flight = 0;
  bool queued = false;
  bool to_verify = false;  // in verify_
  bool verifying = false;
  bool cancelled = false;
  bool failed = false;
  bool reported = false;
  Error error;  // when failed
  int io_retries = 0;
  int checksum_retries = 0;

  uint64_t landed = 0;    // bytes without a gap
  uint64_t verified = 0;  // of these, hashed
  size_t set = 0;         // being hashed
  uint64_t set_end = 0;
  pack_wire::RunningChecksum checksum;

  QueueKey key() const { return {read.urgency, order}; }
  bool demanded() const { return read.urgency < kUrgencyPredicted; }
  uint64_t piece_begin(size_t piece) const { return piece * piece_bytes; }
  uint64_t piece_end(size_t piece) const { return std::min(bytes, (piece + 1) * piece_bytes); }
  uint64_t set_begin(size_t number) const {
    return expert->bytes(number) - expert->bytes(static_cast<size_t>(read.first_set));
  }
  void FindLanded() {
    auto piece = static_cast<size_t>(landed / piece_bytes);
    while (piece < pieces.size() && pieces[piece] == PieceState::kLanded) ++piece;
    landed = std::min(bytes, piece_begin(piece));
  }
  std::string Name() const {
    return "expert " + std::to_string(read.expert.index) + " of layer " +
           std::to_string(read.expert.layer);
  }
};

Result<std::unique_ptr<PackStore>> PackStore::Open(std::shared_ptr<const PackReader> pack,
                                                   const PackStoreOptions& options) {
  DirectReaderOptions reader_options;
  reader_options.depth = std::max(options.depth, options.background_depth);
  reader_options.io_uring = options.io_uring;
  reader_options.direct = options.direct;
  auto reader = DirectReader::Open(pack->file(), reader_options);
  if (!reader) return reader.error();
  return std::make_unique<PackStore>(std::move(pack), std::move(*reader), options);
}

PackStore::PackStore(std::shared_ptr<const PackReader> pack, std::unique_ptr<DirectReader> reader,
                     const PackStoreOptions& options)
    : pack_(std::move(pack)), reader_(std::move(reader)), options_(options) {
  SLUICE_CHECK(options.piece_bytes >= kPieceAlign && options.depth >= 1 &&
               options.background_depth >= 1);
  const int most = std::max(options.depth, options.background_depth);
  flights_.resize(static_cast<size_t>(most));
  for (int i = most; i-- > 0;) free_flights_.push_back(static_cast<uint64_t>(i));
  fetch_thread_ = std::thread([this] { Run(); });
  ::pthread_setname_np(fetch_thread_.native_handle(), "sluice-fetch");
}

PackStore::~PackStore() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  reader_->Wake();
  fetch_thread_.join();
}

std::string PackStore::description() const {
  return std::string(reader_->method()) +
         (reader_->direct_align() > 0 ? ", direct" : ", through the page cache");
}

// ---- The owner's side.

void PackStore::Submit(const ExpertRead& read) {
  const PackExpert* expert = pack_->FindExpert(read.expert.layer, read.expert.index);
  SLUICE_CHECK(expert != nullptr, "an expert that the pack does not have");
  SLUICE_CHECK(read.first_set >= 0 && read.first_set < read.end_set &&
               static_cast<size_t>(read.end_set) <= expert->sets.size());
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Job> owned;
    if (spare_jobs_.empty()) {
      owned = std::make_unique<Job>();
    } else {
      owned = std::move(spare_jobs_.back());
      spare_jobs_.pop_back();
    }
    Job* const job = owned.get();
    SLUICE_CHECK(jobs_.emplace(read.ticket, std::move(owned)).second,
                 "a ticket that is still in use");
    job->read = read;
    job->expert = expert;
    job->order = submitted_++;
    const uint64_t before = expert->bytes(static_cast<size_t>(read.first_set));
    job->file_offset = expert->offset + before;
    job->bytes = expert->bytes(static_cast<size_t>(read.end_set)) - before;
    // Parts of equal size: a small rest would cost as much as a piece.
    const uint64_t count = (job->bytes + options_.piece_bytes - 1) / options_.piece_bytes;
    job->piece_bytes = pack_wire::AlignUp((job->bytes + count - 1) / count, kPieceAlign);
    job->pieces.assign((job->bytes + job->piece_bytes - 1) / job->piece_bytes,
                       PieceState::kWaiting);
    job->next_piece = 0;
    job->waiting = job->pieces.size();
    job->in_flight = 0;
    job->queued = job->to_verify = job->verifying = false;
    job->cancelled = job->failed = job->reported = false;
    job->io_retries = job->checksum_retries = 0;
    job->landed = job->verified = 0;
    job->set = static_cast<size_t>(read.first_set);
    job->set_end = job->set_begin(job->set + 1);
    job->checksum.Restart();
    Enqueue(job);
    wake = ShouldWake();
    if (wake) sleeping_ = false;
  }
  if (wake) reader_->Wake();
}

void PackStore::SetUrgency(uint64_t ticket, int urgency) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    Job* const job = Find(ticket);
    if (job == nullptr) return;
    const bool queued = job->queued;
    if (queued) Dequeue(job);
    job->read.urgency = urgency;
    if (job->cancelled && !job->failed) {
      job->cancelled = false;
      if (job->reported) {
        std::erase(reported_, job);
        job->reported = false;
        --stats_.cancelled;
      }
      Enqueue(job);
    } else if (queued) {
      Enqueue(job);
    }
    wake = ShouldWake();
    if (wake) sleeping_ = false;
  }
  if (wake) reader_->Wake();
}

bool PackStore::Cancel(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  Job* const job = Find(ticket);
  // Nothing is saved any more by dropping what has failed or arrived whole.
  if (job == nullptr || job->reported || job->failed || job->waiting == 0) return false;
  if (job->queued) Dequeue(job);
  if (job->in_flight > 0 || job->verifying) {
    job->cancelled = true;
    return false;
  }
  ++stats_.cancelled;
  Release(job);
  return true;
}

void PackStore::Collect(bool wait, std::vector<LandedRead>* landed) {
  std::unique_lock lock(mutex_);
  if (wait) {
    SLUICE_CHECK(!jobs_.empty(), "waiting for a read that nobody asked for");
    owner_waits_ = true;
    landed_some_.wait(lock, [this] { return !reported_.empty(); });
    owner_waits_ = false;
  }
  for (Job* const job : reported_) {
    LandedRead report;
    report.ticket = job->read.ticket;
    if (job->failed) {
      report.ok = false;
      report.error = std::move(job->error);
    } else if (job->cancelled) {
      report.ok = false;
      report.error = Cancelled("the read of " + job->Name() + " was cancelled");
    }
    landed->push_back(std::move(report));
    Release(job);
  }
  reported_.clear();
}

ExpertStoreStats PackStore::stats() const {
  const std::lock_guard lock(mutex_);
  ExpertStoreStats stats = stats_;
  if (pieces_in_flight_ > 0) {
    stats.busy_seconds += Seconds(std::chrono::steady_clock::now() - busy_since_);
  }
  return stats;
}

// ---- Both sides.

PackStore::Job* PackStore::Find(uint64_t ticket) {
  const auto found = jobs_.find(ticket);
  return found == jobs_.end() ? nullptr : found->second.get();
}

void PackStore::Enqueue(Job* job) {
  if (job->queued || job->waiting == 0) return;
  queue_.emplace(job->key(), job);
  job->queued = true;
}

void PackStore::Dequeue(Job* job) {
  queue_.erase(job->key());
  job->queued = false;
}

bool PackStore::ShouldWake() const {
  if (!sleeping_ || queue_.empty()) return false;
  const bool demand = queue_.begin()->second->demanded();
  return pieces_in_flight_ < (demand ? options_.depth : options_.background_depth);
}

void PackStore::Release(Job* job) {
  if (job->to_verify) std::erase(verify_, job);
  auto node = jobs_.extract(job->read.ticket);
  spare_jobs_.push_back(std::move(node.mapped()));
}

// ---- The fetch thread.

void PackStore::Run() {
  AskForShortSlices();
  std::vector<LandedPiece> landed;
  std::unique_lock lock(mutex_);
  while (true) {
    if (!stopping_) StartPieces();
    if (stopping_ && pieces_in_flight_ == 0) return;
    const bool wait = verify_.empty() || stopping_;
    sleeping_ = wait;
    lock.unlock();
    landed.clear();
    reader_->Collect(wait, &landed);
    lock.lock();
    sleeping_ = false;
    for (const LandedPiece& piece : landed) LandPiece(piece);
    // The disk gets its next pieces before this thread hashes the last ones.
    if (landed.empty() && !verify_.empty() && !stopping_) VerifyNext(&lock);
  }
}

PieceRead PackStore::MakePiece(const Job& job, size_t piece) const {
  PieceRead read;
  read.offset_bytes = job.file_offset + job.piece_begin(piece);
  uint64_t begin = job.piece_begin(piece);
  const uint64_t end = job.piece_end(piece);
  for (auto set = static_cast<size_t>(job.read.first_set); begin < end; ++set) {
    const uint64_t set_end = std::min(end, job.set_begin(set + 1));
    if (set_end <= begin) continue;
    std::byte* const to = job.read.destination[set] + (begin - job.set_begin(set));
    const auto bytes = static_cast<size_t>(set_end - begin);
    iovec* const last =
        read.part_count > 0 ? &read.parts[static_cast<size_t>(read.part_count - 1)] : nullptr;
    if (last != nullptr && static_cast<std::byte*>(last->iov_base) + last->iov_len == to) {
      last->iov_len += bytes;
    } else {
      read.parts[static_cast<size_t>(read.part_count++)] = {to, bytes};
    }
    begin = set_end;
  }
  return read;
}

void PackStore::StartPieces() {
  while (!queue_.empty()) {
    Job* const job = queue_.begin()->second;
    const int depth = job->demanded() ? options_.depth : options_.background_depth;
    if (pieces_in_flight_ >= depth) return;
    while (job->pieces[job->next_piece] != PieceState::kWaiting) ++job->next_piece;
    const size_t piece = job->next_piece++;
    PieceRead read = MakePiece(*job, piece);
    read.token = free_flights_.back();
    free_flights_.pop_back();
    flights_[static_cast<size_t>(read.token)] = {job, piece};
    job->pieces[piece] = PieceState::kInFlight;
    ++job->in_flight;
    if (--job->waiting == 0) Dequeue(job);
    if (pieces_in_flight_++ == 0) busy_since_ = std::chrono::steady_clock::now();
    reader_->Submit(read);
  }
}

void PackStore::LandPiece(const LandedPiece& landed) {
  const auto [job, piece] = flights_[static_cast<size_t>(landed.token)];
  free_flights_.push_back(landed.token);
  --job->in_flight;
  if (--pieces_in_flight_ == 0) {
    stats_.busy_seconds += Seconds(std::chrono::steady_clock::now() - busy_since_);
  }
  const uint64_t wanted = job->piece_end(piece) - job->piece_begin(piece);
  if (landed.result == static_cast<int64_t>(wanted)) {
    job->pieces[piece] = PieceState::kLanded;
    job->FindLanded();
    if (job->landed > job->verified && !job->to_verify) {
      job->to_verify = true;
      verify_.push_back(job);
    }
  } else {
    FailPiece(job, piece, landed.result);
  }
  SettleIfDone(job);
}

void PackStore::FailPiece(Job* job, size_t piece, int64_t result) {
  job->pieces[piece] = PieceState::kWaiting;
  ++job->waiting;
  job->next_piece = std::min(job->next_piece, piece);
  if (job->failed) return;
  CheckFile();
  const bool past_end = result >= 0 && stats_.pack_truncated;
  if (!past_end && job->io_retries < kIoRetries) {
    ++job->io_retries;
    ++stats_.retries;
    if (!job->cancelled) Enqueue(job);
    return;
  }
  const std::string& path = pack_->path().string();
  if (past_end) {
    Fail(job, Corrupt(path + " was truncated while it was in use, and " + job->Name() +
                      " is past its end; put the whole file back and restart"));
  } else if (result >= 0) {
    Fail(job,
         IoError("reading " + job->Name() + " from " + path + " gave " + std::to_string(result) +
                 " of " + std::to_string(job->piece_end(piece) - job->piece_begin(piece)) +
                 " bytes, " + std::to_string(kIoRetries + 1) + " times; check the disk"));
  } else {
    Fail(job, IoError("cannot read " + job->Name() + " from " + path + ": " +
                      std::strerror(static_cast<int>(-result)) + ", after " +
                      std::to_string(kIoRetries) + " retries; check the disk"));
  }
}

void PackStore::Fail(Job* job, Error error) {
  job->failed = true;
  job->error = std::move(error);
  if (job->queued) Dequeue(job);
  if (job->to_verify) {
    std::erase(verify_, job);
    job->to_verify = false;
  }
}

void PackStore::SettleIfDone(Job* job) {
  if ((job->failed || job->cancelled) && job->in_flight == 0) Report(job);
}

void PackStore::Report(Job* job) {
  if (job->to_verify) {
    std::erase(verify_, job);
    job->to_verify = false;
  }
  job->reported = true;
  reported_.push_back(job);
  if (job->failed) {
    ++stats_.reads;
    ++stats_.failures;
  } else if (job->cancelled) {
    ++stats_.cancelled;
  } else {
    ++stats_.reads;
    stats_.bytes += job->bytes;
  }
  stats_.cpu_seconds = ThreadCpuSeconds();
  if (std::chrono::steady_clock::now() - file_checked_ > kFileCheckInterval) CheckFile();
  if (owner_waits_) landed_some_.notify_one();
}

void PackStore::CheckFile() {
  file_checked_ = std::chrono::steady_clock::now();
  struct stat open {
  }, named{};
  if (::fstat(pack_->file().descriptor(), &open) != 0) return;
  stats_.pack_truncated = static_cast<uint64_t>(open.st_size) < pack_->file_bytes();
  stats_.pack_replaced = ::stat(pack_->path().c_str(), &named) != 0 ||
                         named.st_dev != open.st_dev || named.st_ino != open.st_ino;
}

void PackStore::VerifyNext(std::unique_lock<std::mutex>* lock) {
  Job* const job = *std::min_element(verify_.begin(), verify_.end(),
                                     [](Job* a, Job* b) { return a->key() < b->key(); });
  std::erase(verify_, job);
  job->to_verify = false;
  job->verifying = true;
  const uint64_t piece_end = job->piece_end(static_cast<size_t>(job->verified / job->piece_bytes));
  const uint64_t end = std::min({job->landed, piece_end, job->set_end});
  lock->unlock();

  const uint64_t begin = job->verified;
  const std::byte* const from =
      job->read.destination[job->set] + (begin - job->set_begin(job->set));
  job->checksum.Add({from, static_cast<size_t>(end - begin)});
  const bool set_done = end == job->set_end;
  const uint64_t checksum = set_done ? job->checksum.value() : 0;

  lock->lock();
  job->verifying = false;
  job->verified = end;
  if (set_done) FinishSet(job, checksum);
  if (!job->failed && job->verified == job->bytes) {
    job->cancelled = false;  // too late for it
    Report(job);
    return;
  }
  if (job->landed > job->verified && !job->failed && !job->cancelled) {
    job->to_verify = true;
    verify_.push_back(job);
  }
  SettleIfDone(job);
}

void PackStore::FinishSet(Job* job, uint64_t checksum) {
  if (checksum != job->expert->sets[job->set].checksum) {
    ++stats_.checksum_failures;
    if (job->checksum_retries < kChecksumRetries) {
      ++job->checksum_retries;
      ++stats_.retries;
      RereadSet(job);
      return;
    }
    Fail(job, Corrupt(pack_->path().string() + " is damaged: plane set " +
                      std::to_string(job->set) + " of " + job->Name() +
                      " does not have its checksum, read twice; copy the file again or pack the "
                      "model again, and check the disk"));
    return;
  }
  job->checksum.Restart();
  if (++job->set < static_cast<size_t>(job->read.end_set)) {
    job->set_end = job->set_begin(job->set + 1);
  }
}

void PackStore::RereadSet(Job* job) {
  const auto first = static_cast<size_t>(job->set_begin(job->set) / job->piece_bytes);
  const auto last = static_cast<size_t>((job->set_end - 1) / job->piece_bytes);
  for (size_t piece = first; piece <= last; ++piece) {
    job->pieces[piece] = PieceState::kWaiting;
    ++job->waiting;
  }
  job->next_piece = std::min(job->next_piece, first);
  // The first piece may begin in an earlier set, whose bytes are then written again too.
  job->landed = job->piece_begin(first);
  while (job->set_begin(job->set) > job->landed) --job->set;
  job->verified = job->set_begin(job->set);
  job->landed = std::max(job->landed, job->verified);
  job->set_end = job->set_begin(job->set + 1);
  job->checksum.Restart();
  if (!job->cancelled) Enqueue(job);
}

}  // namespace sluice
