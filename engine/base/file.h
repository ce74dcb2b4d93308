// Reading files that nobody vouches for. A File reads with pread and never maps: a file that is
// truncated or replaced under us becomes an error with its name, not a SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "engine/base/result.h"

namespace sluice {

// An open regular file, read only. Movable; closes on destruction. ReadAt is safe from any number
// of threads at once.
class File {
 public:
  // Refuses what is not a regular file (a directory, a pipe, a device) without blocking on it.
  static Result<File> Open(const std::filesystem::path& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }  // when it was opened
  int descriptor() const { return descriptor_; }       // for readers with their own I/O; not owned

  // Fills `destination` from `offset_bytes`, or fails: kCorrupt when the file ends before, kIo when
  // the operating system refuses.
  Result<void> ReadAt(uint64_t offset_bytes, std::span<std::byte> destination) const;

 private:
  File(std::filesystem::path path, int descriptor, uint64_t size_bytes);

  std::filesystem::path path_;
  int descriptor_ = -1;
  uint64_t size_bytes_ = 0;
};

// The whole file as text. Fails when it is longer than `max_bytes`.
Result<std::string> ReadTextFile(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace sluice
