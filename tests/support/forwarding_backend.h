// A Backend that hands every call to another one: subclasses override what they watch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "engine/tensor/backend.h"

namespace sluice {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  const char* name() const override { return backend_->name(); }
  int threads() const override { return backend_->threads(); }
  Result<DeviceBuffer> Allocate(size_t bytes, const char* what) override {
    return backend_->Allocate(bytes, what);
  }
  Result<> Prepare(const WorkspaceLimits& limits) override { return backend_->Prepare(limits); }
  size_t workspace_bytes() const override { return backend_->workspace_bytes(); }
  void Pack(DType dtype, const void* src, int rows, int cols, void* packed) override {
    backend_->Pack(dtype, src, rows, cols, packed);
  }
  void ToF32(DType dtype, const void* src, int64_t n, float* out) override {
    backend_->ToF32(dtype, src, n, out);
  }
  void Embed(const EmbeddingTable& table, std::span<const int32_t> ids, float* out) override {
    backend_->Embed(table, ids, out);
  }
  void Linear(const LinearArgs& args) override { backend_->Linear(args); }
  void RopeCache(const RopeCacheArgs& args) override { backend_->RopeCache(args); }
  void Attention(const PagedAttentionArgs& args) override { backend_->Attention(args); }
  void TopK(const TopKArgs& args) override { backend_->TopK(args); }
  void Mlp(const MlpArgs& args) override { backend_->Mlp(args); }
  void Combine(const CombineArgs& args) override { backend_->Combine(args); }

 protected:
  std::unique_ptr<Backend> backend_;
};

}  // namespace sluice
