// The paged KV cache: physical blocks of 16 tokens, the same block ids in every layer. Who owns
// which block is the scheduler's business; here are only bytes. Layout of a block: AttentionArgs in
// kernels/cpu/ops.h.
#pragma once

#include "engine/arch/model_config.h"
#include "engine/base/result.h"
#include "engine/tensor/backend.h"

namespace sluice {

class PagedKvCache {
 public:
  static Result<PagedKvCache> Create(Backend* backend, const ModelConfig& config, DType dtype,
                                     int blocks);

  KvLayer layer(int index) const;
  DType dtype() const { return dtype_; }
  int blocks() const { return blocks_; }

 private:
  DeviceBuffer memory_;  // [layers][K of all blocks, V of all blocks]
  DType dtype_ = DType::kF32;
  int blocks_ = 0;
  int kv_heads_ = 0;
  int head_dim_ = 0;
};

}  // namespace sluice
