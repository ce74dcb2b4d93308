#include "engine/model/kv_cache.h"

#include "engine/base/check.h"
#include "engine/model/model.h"

namespace sluice {
namespace {

size_t KeyBlockBytes(const ModelConfig& config, KvDType dtype) {
  return static_cast<size_t>(config.kv_heads) * KvKeyBytes(dtype, config.head_dim);
}
size_t ValueBlockBytes(const ModelConfig& config, KvDType dtype) {
  return static_cast<size_t>(config.kv_heads) * KvValueBytes(dtype, config.head_dim);
}

}  // namespace

size_t KvBytesPerBlock(const ModelConfig& config, KvDType kv_dtype) {
  return config.layers.size() *
         (KeyBlockBytes(config, kv_dtype) + ValueBlockBytes(config, kv_dtype));
}

std::optional<KvDType> ParseKvDType(std::string_view name) {
  if (name == "f32") return KvDType::kF32;
  if (name == "f16") return KvDType::kF16;
  if (name == "bf16") return KvDType::kBF16;
  if (name == "q8") return KvDType::kQ8;
  return std::nullopt;
}

Result<PagedKvCache> PagedKvCache::Create(Backend* backend, const ModelConfig& config,
                                          KvDType dtype, int blocks) {
  SLUICE_CHECK(blocks > 0);
  PagedKvCache cache;
  auto memory =
      backend->Allocate(KvBytesPerBlock(config, dtype) * static_cast<size_t>(blocks), "KV cache");
  if (!memory) return memory.error();
  cache.memory_ = std::move(*memory);
  cache.blocks_ = blocks;
  cache.block_ = {.dtype = dtype,
                  .k_block_bytes = KeyBlockBytes(config, dtype),
                  .v_block_bytes = ValueBlockBytes(config, dtype),
                  .kv_heads = config.kv_heads,
                  .head_dim = config.head_dim};
  return cache;
}

KvLayer PagedKvCache::layer(int index) const {
  const auto blocks = static_cast<size_t>(blocks_);
  KvLayer layer = block_;
  std::byte* base = memory_.as<std::byte>() + static_cast<size_t>(index) * blocks *
                                                  (layer.k_block_bytes + layer.v_block_bytes);
  layer.k = base;
  layer.v = base + blocks * layer.k_block_bytes;
  return layer;
}

}  // namespace sluice
