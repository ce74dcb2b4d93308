#include "engine/base/direct_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "engine/base/check.h"
#include "engine/base/direct_file.h"

namespace sluice {
namespace {

// The same file again, with O_DIRECT. Its name may meanwhile belong to another file, so the open
// descriptor is asked first; where /proc is not mounted the name must still be of this file.
int OpenDirectly(const File& file) {
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_DIRECT;
  const std::string by_descriptor = "/proc/self/fd/" + std::to_string(file.descriptor());
  const int descriptor = ::open(by_descriptor.c_str(), kFlags);
  if (descriptor >= 0 || errno == EINVAL) return descriptor;
  const int named = ::open(file.path().c_str(), kFlags | O_NONBLOCK);
  struct stat a {
  }, b{};
  if (named >= 0 && ::fstat(named, &a) == 0 && ::fstat(file.descriptor(), &b) == 0 &&
      a.st_dev == b.st_dev && a.st_ino == b.st_ino) {
    return named;
  }
  if (named >= 0) ::close(named);
  return -1;
}

// Some file systems accept O_DIRECT and refuse the reads: only a read tells, and at what alignment.
size_t ProbeAlignment(int descriptor) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  constexpr size_t kPage = 4096;
  const std::unique_ptr<void, Free> memory(std::aligned_alloc(kPage, 2 * kPage));
  if (memory == nullptr) return 0;
  for (const size_t align : {size_t{512}, kPage}) {
    char* const to = static_cast<char*>(memory.get()) + align % kPage;
    if (::pread(descriptor, to, align, static_cast<off_t>(align % kPage)) >= 0) return align;
  }
  return 0;
}

}  // namespace

DirectFile::DirectFile(const File& file, bool direct) : buffered_(file.descriptor()) {
  if (!direct) return;
  direct_ = OpenDirectly(file);
  if (direct_ < 0) return;
  align_ = ProbeAlignment(direct_);
  if (align_ == 0) {
    ::close(direct_);
    direct_ = -1;
  }
}

DirectFile::~DirectFile() {
  if (direct_ >= 0) ::close(direct_);
}

bool DirectFile::ReadsDirectly(const PieceRead& piece) const {
  if (direct_ < 0) return false;
  uint64_t all = piece.offset_bytes;
  for (int i = 0; i < piece.part_count; ++i) {
    const iovec& part = piece.parts[static_cast<size_t>(i)];
    all |= reinterpret_cast<uintptr_t>(part.iov_base) | part.iov_len;
  }
  return all % align_ == 0;
}

void DirectFile::Forget(const PieceRead& piece) const {
  // Advice: nothing depends on it.
  static_cast<void>(::posix_fadvise(buffered_, static_cast<off_t>(piece.offset_bytes),
                                    static_cast<off_t>(piece.bytes()), POSIX_FADV_DONTNEED));
}

Result<std::unique_ptr<DirectReader>> DirectReader::Open(const File& file,
                                                         const DirectReaderOptions& options) {
  SLUICE_CHECK(options.depth >= 1 && options.depth <= 256);
  std::unique_ptr<DirectReader> reader;
  if (options.io_uring) reader = MakeUringReader(file, options);
  if (reader == nullptr) reader = MakeThreadReader(file, options);
  if (reader == nullptr) {
    return IoError("cannot start threads to read " + file.path().string() +
                   "; raise the limit of processes and threads");
  }
  return reader;
}

}  // namespace sluice
