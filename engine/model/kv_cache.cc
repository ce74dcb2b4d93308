#include "engine/model/kv_cache.h"

#include "engine/base/check.h"
#include "engine/model/model.h"

namespace sluice {

size_t KvBytesPerBlock(const ModelConfig& config, DType kv_dtype) {
  return size_t{2} * config.layers.size() * static_cast<size_t>(config.kv_heads) *
         static_cast<size_t>(config.head_dim) * kKvBlockTokens * DTypeBytes(kv_dtype);
}

Result<PagedKvCache> PagedKvCache::Create(Backend* backend, const ModelConfig& config, DType dtype,
                                          int blocks) {
  SLUICE_CHECK(blocks > 0);
  PagedKvCache cache;
  auto memory =
      backend->Allocate(KvBytesPerBlock(config, dtype) * static_cast<size_t>(blocks), "KV cache");
  if (!memory) return memory.error();
  cache.memory_ = std::move(*memory);
  cache.dtype_ = dtype;
  cache.blocks_ = blocks;
  cache.kv_heads_ = config.kv_heads;
  cache.head_dim_ = config.head_dim;
  return cache;
}

KvLayer PagedKvCache::layer(int index) const {
  const size_t block_elements = static_cast<size_t>(kv_heads_) * head_dim_ * kKvBlockTokens;
  const size_t half_bytes = block_elements * static_cast<size_t>(blocks_) * DTypeBytes(dtype_);
  std::byte* base = memory_.as<std::byte>() + static_cast<size_t>(index) * 2 * half_bytes;
  return {.dtype = dtype_,
          .k = base,
          .v = base + half_bytes,
          .k_block_stride = block_elements,
          .v_block_stride = block_elements,
          .kv_heads = kv_heads_,
          .head_dim = head_dim_};
}

}  // namespace sluice
