// How fast a file's disk reads now: what `bench` reports as disk_bandwidth and `plan` reckons with.
#pragma once

#include <filesystem>
#include <string>

#include "engine/base/direct_reader.h"
#include "engine/base/result.h"

namespace sluice {

struct DiskSpeedOptions {
  double seconds = 0.6;  // at most, of reading; a read that is under way ends
  size_t piece_bytes = kReadPieceBytes;
  DirectReaderOptions reader;  // as the store reads
};

struct DiskSpeed {
  double bytes_per_second = 0;    // pieces at random places, `depth` in flight
  double small_read_seconds = 0;  // median of single reads of 4 KiB at random places
  uint64_t bytes = 0;             // read for bytes_per_second
  bool direct = false;            // false: the page cache may have answered
  std::string method;             // "io_uring" or "threads"
};

// Places are spread over the whole file at random, four pieces in a row, and never read twice, so
// that neither the page cache nor a disk's own read-ahead flatters it; a file shorter than what can
// be read in the time is read once. Memory: 34 MiB while it runs. Errors: kNotFound, kIo;
// kInvalidArgument when the file is shorter than a piece.
Result<DiskSpeed> MeasureDisk(const std::filesystem::path& path,
                              const DiskSpeedOptions& options = {});

}  // namespace sluice
