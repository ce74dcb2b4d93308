// The paged KV cache: physical blocks of 16 tokens, the same block ids in every layer. Who owns
// which block is the scheduler's business; here are only bytes. Layout of a block:
// kernels/common/kv_format.h.
#pragma once

#include <cstddef>
#include <span>

#include "engine/arch/model_config.h"
#include "engine/base/result.h"
#include "engine/tensor/backend.h"

namespace sluice {

class PagedKvCache {
 public:
  static Result<PagedKvCache> Create(Backend* backend, const ModelConfig& config, KvDType dtype,
                                     int blocks);

  KvLayer layer(int index) const;
  // A block's bytes: K and V of each layer in turn. REQUIRES: KvBytesPerBlock bytes.
  void CopyBlockOut(int block, std::span<std::byte> out) const;
  void CopyBlockIn(int block, std::span<const std::byte> bytes);

  KvDType dtype() const { return block_.dtype; }
  int blocks() const { return blocks_; }

 private:
  DeviceBuffer memory_;  // [layers][K of all blocks, V of all blocks]
  KvLayer block_;        // of no layer: k and v are null
  int blocks_ = 0;
  int layers_ = 0;
};

}  // namespace sluice
