// Reads pieces of one file into memory, several at once, around the page cache (O_DIRECT).
//
//   Result<std::unique_ptr<DirectReader>> reader = DirectReader::Open(file, {});
//   (*reader)->Submit({.token = 7, .offset_bytes = 4096, .parts = {{slot, 65536}}, .part_count =
//   1});
//   (*reader)->Collect(/*wait=*/true, &landed);   // landed[0].token == 7, .result == 65536
//
// Two implementations: io_uring, and threads that call preadv where io_uring is refused (old
// kernels, seccomp) or not wanted. Pieces that cannot be read directly (a file system without
// O_DIRECT, an offset, length or address that is not aligned as the device wants) are read through
// the page cache, which is told to forget them at once: the bytes are the same.
//
// A file that is truncated under us gives short results, never a signal.
//
// Threads: Submit and Collect from one thread, which must be the same for all calls; Wake from any.
// Destruction waits for what is in flight, since the kernel writes to its memory until then.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/result.h"

namespace sluice {

// What a large read is cut into, at most, and how many of these keep a disk busy. Measured on a
// virtual NVMe disk with direct reads of 3.5 MB at random places, in equal pieces: 864 KiB at depth
// 4 reach the bandwidth of whole reads at depth 4 (2.4 GB/s). What is in flight is what a read that
// comes in between waits for: two such pieces add 0.9 ms to its 1.4 ms, four add 1.5 ms; pieces of
// 1152 KiB add 1.3 and 2.3 ms.
inline constexpr size_t kReadPieceBytes = size_t{896} << 10;
inline constexpr int kReadDepth = 4;

// How many places in memory one piece may be scattered to.
inline constexpr int kMaxPieceParts = 6;

struct PieceRead {
  uint64_t token = 0;  // the caller's name for it
  uint64_t offset_bytes = 0;
  std::array<iovec, kMaxPieceParts> parts{};  // in the order of the file
  int part_count = 0;

  size_t bytes() const {
    size_t sum = 0;
    for (int i = 0; i < part_count; ++i) sum += parts[static_cast<size_t>(i)].iov_len;
    return sum;
  }
};

struct LandedPiece {
  uint64_t token = 0;
  int64_t result = 0;  // bytes read (fewer than asked for: the file ends there), or -errno
};

struct DirectReaderOptions {
  int depth = kReadDepth;  // most pieces in flight, 1 to 256
  bool io_uring = true;    // false: threads
  bool direct = true;      // false: through the page cache
};

class DirectReader {
 public:
  // Reads the very file that `file` has open, also when another one has taken its name. `file` must
  // outlive the reader. Errors: kIo (no memory or descriptors for it).
  static Result<std::unique_ptr<DirectReader>> Open(const File& file,
                                                    const DirectReaderOptions& options);
  virtual ~DirectReader() = default;

  // Queues a piece; it starts with the next Collect at the latest. Its memory is the reader's until
  // it has landed. REQUIRES: in_flight() < depth.
  virtual void Submit(const PieceRead& piece) = 0;
  // Appends what has landed. `wait`: sleeps until at least one piece has landed or Wake was called
  // since the last wait.
  virtual void Collect(bool wait, std::vector<LandedPiece>* landed) = 0;
  virtual void Wake() = 0;
  // Submitted and not yet collected.
  virtual int in_flight() const = 0;

  // "io_uring" or "threads".
  virtual std::string_view method() const = 0;
  // What offsets, lengths and addresses of direct reads are multiples of; 0: all reads go through
  // the page cache.
  virtual size_t direct_align() const = 0;
};

}  // namespace sluice
