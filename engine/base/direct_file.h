// The descriptors behind a DirectReader: one that reads directly, where the file system lets us,
// and one that reads through the page cache.
#pragma once

#include "engine/base/direct_reader.h"

namespace sluice {

class DirectFile {
 public:
  // Never fails: without direct reads there is always the descriptor of `file`, which must outlive
  // this.
  DirectFile(const File& file, bool direct);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  int buffered_descriptor() const { return buffered_; }
  int direct_descriptor() const { return direct_; }  // -1: none
  size_t align() const { return align_; }            // 0: none

  bool ReadsDirectly(const PieceRead& piece) const;
  // After a piece that was not read directly: lets the page cache forget it.
  void Forget(const PieceRead& piece) const;

 private:
  int buffered_;  // not owned
  int direct_ = -1;
  size_t align_ = 0;
};

// Null where the kernel refuses io_uring.
std::unique_ptr<DirectReader> MakeUringReader(const File& file, const DirectReaderOptions& options);
// Null where threads cannot be started.
std::unique_ptr<DirectReader> MakeThreadReader(const File& file,
                                               const DirectReaderOptions& options);

}  // namespace sluice
