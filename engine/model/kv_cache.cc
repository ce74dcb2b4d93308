#include "engine/model/kv_cache.h"

#include <cstring>

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
  cache.layers_ = config.num_layers();
  cache.block_ = {.dtype = dtype,
                  .k_block_bytes = KeyBlockBytes(config, dtype),
                  .v_block_bytes = ValueBlockBytes(config, dtype),
                  .kv_heads = config.kv_heads,
                  .head_dim = config.head_dim};
  return cache;
}

void PagedKvCache::CopyBlockOut(int block, std::span<std::byte> out) const {
  const auto at = static_cast<size_t>(block);
  SLUICE_CHECK(block >= 0 && block < blocks_);
  for (int i = 0; i < layers_; ++i) {
    const KvLayer from = layer(i);
    SLUICE_CHECK(out.size() >= from.k_block_bytes + from.v_block_bytes);
    std::memcpy(out.data(), static_cast<const std::byte*>(from.k) + at * from.k_block_bytes,
                from.k_block_bytes);
    out = out.subspan(from.k_block_bytes);
    std::memcpy(out.data(), static_cast<const std::byte*>(from.v) + at * from.v_block_bytes,
                from.v_block_bytes);
    out = out.subspan(from.v_block_bytes);
  }
}

void PagedKvCache::CopyBlockIn(int block, std::span<const std::byte> bytes) {
  const auto at = static_cast<size_t>(block);
  SLUICE_CHECK(block >= 0 && block < blocks_);
  for (int i = 0; i < layers_; ++i) {
    const KvLayer to = layer(i);
    SLUICE_CHECK(bytes.size() >= to.k_block_bytes + to.v_block_bytes);
    std::memcpy(static_cast<std::byte*>(to.k) + at * to.k_block_bytes, bytes.data(),
                to.k_block_bytes);
    bytes = bytes.subspan(to.k_block_bytes);
    std::memcpy(static_cast<std::byte*>(to.v) + at * to.v_block_bytes, bytes.data(),
                to.v_block_bytes);
    bytes = bytes.subspan(to.v_block_bytes);
  }
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
