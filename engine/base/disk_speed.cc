#include "engine/base/disk_speed.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "engine/base/check.h"

namespace sluice {
namespace {

constexpr size_t kSmallRead = 4096;
constexpr size_t kSmallReads = 64;
constexpr size_t kRunPieces = 4;     // neighbours, as those of an expert are: disks like that
constexpr double kSmallShare = 0.2;  // of the time, at most
// Reads into memory that the processor's caches hold measure a fifth faster than a store's.
constexpr size_t kBufferBytes = size_t{32} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Touched memory at a multiple of 2 MiB, in huge pages where the kernel has them.
class Buffer {
 public:
  explicit Buffer(size_t wanted) {
    // Reads into small pages measured at half the speed.
    const size_t bytes = (wanted + kHugePage - 1) / kHugePage * kHugePage;
    bytes_ = bytes + kHugePage;
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) return;
    const auto start = reinterpret_cast<uintptr_t>(memory_);
    start_ = reinterpret_cast<std::byte*>((start + kHugePage - 1) / kHugePage * kHugePage);
    static_cast<void>(::madvise(start_, bytes, MADV_HUGEPAGE));
    std::memset(start_, 0, bytes);
  }
  ~Buffer() {
    if (memory_ != MAP_FAILED) ::munmap(memory_, bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::byte* start() const { return start_; }  // null: no memory

 private:
  size_t bytes_ = 0;
  void* memory_ = nullptr;
  std::byte* start_ = nullptr;
};

class DiskProbe {
 public:
  DiskProbe(const File& file, DirectReader* reader, const DiskSpeedOptions& options,
            std::byte* memory)
      : file_(file), reader_(reader), options_(options), memory_(memory) {
    const auto pieces = static_cast<size_t>(file.size_bytes() / options.piece_bytes);
    std::vector<uint64_t> runs((pieces + kRunPieces - 1) / kRunPieces);
    std::iota(runs.begin(), runs.end(), uint64_t{0});
    // Another order each time: a disk may remember what the last run read.
    std::mt19937_64 random(std::random_device{}());
    std::shuffle(runs.begin(), runs.end(), random);
    for (const uint64_t run : runs) {
      for (uint64_t i = run * kRunPieces; i < std::min<uint64_t>(pieces, (run + 1) * kRunPieces);
           ++i) {
        places_.push_back(i);
      }
    }
  }

  // From the end of the shuffled places, which Bandwidth takes from the start.
  Result<> SmallReads(double* median_seconds) {
    std::vector<double> seconds;
    const double begin = Now();
    // At least one: a busy machine may let all of the time pass before the first.
    do {
      const double asked = Now();
      Submit(places_[places_.size() - 1 - seconds.size()], kSmallRead);
      if (Result<> read = Take(); !read) return read;
      seconds.push_back(Now() - asked);
    } while (seconds.size() < std::min(kSmallReads, std::max<size_t>(places_.size() / 2, 1)) &&
             Now() - begin < options_.seconds * kSmallShare);
    const auto middle = seconds.begin() + static_cast<ptrdiff_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    *median_seconds = *middle;
    places_.resize(std::max<size_t>(places_.size() - seconds.size(), 1));
    return {};
  }

  Result<> Bandwidth(double seconds, DiskSpeed* speed) {
    size_t next = 0;
    while (next < places_.size() && reader_->in_flight() < options_.reader.depth) {
      Submit(places_[next++], options_.piece_bytes);
    }
    const double begin = Now();
    double last = begin;
    while (reader_->in_flight() > 0) {
      if (Result<> read = Take(); !read) return read;
      speed->bytes += options_.piece_bytes * landed_.size();
      last = Now();
      while (next < places_.size() && last - begin < seconds &&
             reader_->in_flight() < options_.reader.depth) {
        Submit(places_[next++], options_.piece_bytes);
      }
    }
    speed->bytes_per_second = static_cast<double>(speed->bytes) / std::max(last - begin, 1e-9);
    return {};
  }

 private:
  // Into the buffer in turns; what it holds is of no interest.
  void Submit(uint64_t place, size_t bytes) {
    const size_t slots = std::max<size_t>(kBufferBytes / options_.piece_bytes, 1);
    const size_t slot = submitted_++ % slots;
    PieceRead piece;
    piece.offset_bytes = place * options_.piece_bytes;
    piece.parts[0] = {memory_ + slot * options_.piece_bytes, bytes};
    piece.part_count = 1;
    reader_->Submit(piece);
  }

  // At least one, into landed_.
  Result<> Take() {
    landed_.clear();
    reader_->Collect(true, &landed_);
    for (const LandedPiece& piece : landed_) {
      if (piece.result < 0) {
        return IoError("cannot read " + file_.path().string() + ": " +
                       std::strerror(static_cast<int>(-piece.result)));
      }
      if (static_cast<size_t>(piece.result) < kSmallRead) {
        return Corrupt(file_.path().string() + " was truncated while it was in use");
      }
    }
    return {};
  }

  const File& file_;
  DirectReader* const reader_;
  const DiskSpeedOptions& options_;
  std::byte* const memory_;
  std::vector<uint64_t> places_;
  std::vector<LandedPiece> landed_;
  size_t submitted_ = 0;
};

}  // namespace

Result<DiskSpeed> MeasureDisk(const std::filesystem::path& path, const DiskSpeedOptions& options) {
  SLUICE_CHECK(options.piece_bytes >= kSmallRead && options.piece_bytes % kSmallRead == 0 &&
               options.seconds > 0);
  const Result<File> file = File::Open(path);
  if (!file) return file.error();
  if (file->size_bytes() < options.piece_bytes) {
    return InvalidArgument(path.string() + " is too short to measure its disk: it needs " +
                           std::to_string(options.piece_bytes) + " bytes");
  }
  const Buffer buffer(std::max(kBufferBytes, options.piece_bytes));
  if (buffer.start() == nullptr) return ResourceExhausted("no memory to measure a disk with");
  auto reader = DirectReader::Open(*file, options.reader);
  if (!reader) return reader.error();
  DiskSpeed speed;
  speed.direct = (*reader)->direct_align() > 0;
  speed.method = (*reader)->method();
  DiskProbe probe(*file, reader->get(), options, buffer.start());
  const double begin = Now();
  if (Result<> read = probe.SmallReads(&speed.small_read_seconds); !read) return read.error();
  if (Result<> read = probe.Bandwidth(options.seconds - (Now() - begin), &speed); !read) {
    return read.error();
  }
  return speed;
}

}  // namespace sluice
