// A token table that stays on disk: each step reads the rows of its own tokens, and what the table
// would take in memory holds experts instead. Rows come through the system's page cache, so that
// frequent tokens cost no read while there is memory that nobody claims.
//
// Threads: one owner thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/formats/pack.h"
#include "engine/tensor/backend.h"

namespace sluice {

class DiskEmbedding {
 public:
  // Reads the whole table once to check it against its checksum; later reads are not checked again.
  // Errors: kCorrupt, kIo. `tensor` is of `pack`.
  static Result<DiskEmbedding> Open(std::shared_ptr<const PackReader> pack,
                                    const PackTensor& tensor);

  // Memory for steps of up to max_tokens.
  Result<> Allocate(Backend* backend, int max_tokens);
  size_t memory_bytes() const { return memory_.bytes(); }

  // Reads the rows of `ids`, each a row of the table. What cannot be read sets failed[i] to 1, and
  // its row means nothing; the first such error is returned: kCorrupt (the file lost its end), kIo.
  // REQUIRES: at most max_tokens; as many flags as ids.
  Result<> Read(std::span<const int32_t> ids, std::span<uint8_t> failed);
  // What Read left, until the next one: row local_ids()[i] of table() is row ids[i] of the file's.
  const EmbeddingTable& table() const { return table_; }
  std::span<const int32_t> local_ids() const { return local_ids_; }

 private:
  // Rows lie in units: panels of 16, or single rows. A unit has one piece in every plane.
  struct Plane {
    uint64_t offset = 0;  // in the file
    size_t unit_bytes = 0;
    size_t place = 0;  // of the first unit's piece in memory_
  };

  DiskEmbedding(std::shared_ptr<const PackReader> pack, const PackTensor& tensor);

  std::shared_ptr<const PackReader> pack_;
  WeightLayout layout_;
  int unit_rows_ = 1;
  std::vector<Plane> planes_;
  DeviceBuffer memory_;
  EmbeddingTable table_;
  std::vector<int32_t> local_ids_;
  size_t max_tokens_ = 0;
};

}  // namespace sluice
