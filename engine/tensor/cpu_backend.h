// The CPU backend: kernels/cpu over a fork-join pool of workers.
//
// How work is cut. Matrix products are cut by panels of 16 outputs into chunks that workers take
// from shares of their own; a chunk's weights are read from memory once and applied to all tokens,
// tile by tile (kTileTokens), so they stay in the worker's L2 cache between tiles. A chunk is at
// least kMinChunkCost so that small layers are not all overhead, and work below that runs on the
// calling thread without waking anybody.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/tensor/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {

class CpuBackend final : public Backend {
 public:
  // threads >= 1. `ops` must be a table that this CPU can run. `activation_terms`, 1 to 3:
  // inputs of bit-nested matrices are so many 8-bit numbers (the value, then what rounding it left,
  // and so on): 7 more bits for as much arithmetic again.
  CpuBackend(const cpu::Ops* ops, int threads, bool pin_threads, int activation_terms = 1);

  const char* name() const override { return ops_->name; }
  int threads() const override { return pool_.threads(); }
  Result<DeviceBuffer> Allocate(size_t bytes, const char* what) override;
  Result<> Prepare(const WorkspaceLimits& limits) override;
  size_t workspace_bytes() const override;
  void Pack(DType dtype, const void* src, int rows, int cols, void* packed) override;
  void ToF32(DType dtype, const void* src, int64_t n, float* out) override;
  void Embed(const EmbeddingTable& table, std::span<const int32_t> ids, float* out) override;
  void Linear(const LinearArgs& args) override;
  void RopeCache(const RopeCacheArgs& args) override;
  void Attention(const PagedAttentionArgs& args) override;
  void TopK(const TopKArgs& args) override;
  void Mlp(const MlpArgs& args) override;
  void Combine(const CombineArgs& args) override;

 private:
  static constexpr int kTileTokens = 64;   // tokens packed together
  static constexpr int kChunkPanels = 32;  // most panels in a chunk
  // Cost of a chunk in bytes of weights; see PanelCost.
  static constexpr int64_t kMinChunkCost = 24 << 10;
  // Most bytes of weights in a chunk: so that a worker slowed by other work holds up the rest for
  // microseconds only; and less when several tiles pass over them, so that they stay in L2.
  static constexpr int64_t kMaxChunkBytes = 512 << 10;
  static constexpr int64_t kMaxReusedBytes = 256 << 10;
  // Sums of 32 query heads of 128 over 200,000 tokens. Contexts that need more are not shared.
  static constexpr size_t kPartialBytes = size_t{4} << 20;
  static constexpr int kKernelPanels = 4;  // panels that the matmul kernels take together

  // Panels [begin, end) of output `index` (Linear) or of group `index` (Mlp).
  struct Chunk {
    int index;
    int begin;
    int end;
  };
  // Parts [begin, end) of a context for kv head `kv_head` of group `group` of an attention call;
  // sums of part 0 go to `partials`.
  struct AttentionPiece {
    int group;
    int kv_head;
    int begin;
    int end;
    float* partials;
  };
  // Tile `tile` of the rows of a group, packed at `packed`.
  struct Tile {
    int group;
    int begin;
    int count;
    std::byte* packed;
  };
  struct Worker {
    float* gate;    // [kTileTokens, kChunkPanels * 16]
    float* up;      // [kTileTokens, kChunkPanels * 16]
    float* row;     // [max row length]
    float* normed;  // [kTileTokens, max_cols]
    void* nested;   // scratch of nested_matmul
    float* terms;  // [terms * kTileTokens, most columns], then products [terms * kTileTokens, chunk
                   // rows]; null with one term
  };

  // Calls f(worker, item) or f(worker, item, next) for item in [0, count); `next` is what this
  // worker will probably do after it, or -1. On the calling thread alone when `small`.
  template <class F>
  void ForEach(int64_t count, bool small, F&& f);

  // The cost of one panel applied to `tokens` tokens: bytes read, or their equivalent in
  // arithmetic.
  static int64_t PanelCost(size_t panel_bytes, int tokens);
  // Appends chunks of `panels` panels to chunks_; `target` is the cost that a chunk should have.
  void AddChunks(int index, int panels, size_t panel_bytes, int tokens, int64_t target);
  int64_t ChunkTarget(int64_t total_cost) const;

  size_t ActivationBytes(ActivationForm form, int tokens, int cols) const;
  void PackActivations(ActivationForm form, const float* x, ptrdiff_t x_stride,
                       const int32_t* gather, int tokens, int cols, void* packed,
                       Worker& worker) const;
  // The same for bit-nested matrices with several terms: rows [tokens], then their remainders.
  void PackTerms(const float* x, ptrdiff_t x_stride, const int32_t* gather, int tokens, int cols,
                 void* packed, Worker& worker) const;
  // Panels of a matrix; null: none.
  struct Panels {
    const PackedMatrix* matrix = nullptr;
    int begin = 0;
    int end = 0;
  };
  // `panels` times packed inputs; y is where row 16 * panels.begin goes. `next`: what the worker
  // multiplies with afterwards, for prefetch.
  void MatmulPanels(const Panels& panels, const Panels& next, const void* packed, int tokens,
                    const float* bias, float* y, ptrdiff_t y_stride, Worker& worker) const;
  void MatmulChunk(const LinearArgs& args, int64_t index, int64_t next, Worker& worker);
  void PackTiles(const float* x, ptrdiff_t x_stride, int cols, const MlpArgs& args, bool gather);
  void GateUpChunk(const MlpArgs& args, int64_t index, int64_t next, Worker& worker);
  void DownChunk(const MlpArgs& args, int64_t index, int64_t next, Worker& worker);
  cpu::AttentionArgs KernelArgs(const PagedAttentionArgs& args, const AttentionPiece& piece) const;
  // Cuts contexts for Attention; false, with nothing cut, when partials_ is too small.
  bool CutContexts(const PagedAttentionArgs& args);
  void RopeCacheToken(const RopeCacheArgs& args, int token);
  void TopKToken(const TopKArgs& args, int token);

  const cpu::Ops* ops_;
  cpu::ThreadPool pool_;
  const int terms_;  // of an activation
  WorkspaceLimits limits_;

  // A worker's part of the items of a region.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares_;  // [threads]

  DeviceBuffer worker_memory_;
  std::vector<Worker> workers_;
  DeviceBuffer packed_[kActivationForms];     // Linear's packed input by form
  size_t tile_bytes_[kActivationForms] = {};  // of the current Linear call
  DeviceBuffer mlp_packed_;                   // Mlp's packed inputs, then its packed activations
  DeviceBuffer mlp_values_;                   // [assignments, intermediate] F32, group after group

  DeviceBuffer partials_;               // sums of attention's parts, when threads share contexts
  std::vector<AttentionPiece> pieces_;  // what the threads take
  std::vector<AttentionPiece> merges_;  // one of all parts for every group and kv head

  std::vector<Chunk> chunks_;
  std::vector<Tile> tiles_;
  struct GroupPlace {
    int64_t row;    // of y, first assignment
    int64_t value;  // first float in mlp_values_
    int tile;       // first tile
    int tile_count;
  };
  std::vector<GroupPlace> places_;
};

}  // namespace sluice
