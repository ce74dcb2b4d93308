// The Model of all families: a stack of (attention, experts or dense SwiGLU) layers over a residual
// stream, driven by ModelConfig alone.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "engine/arch/rope.h"
#include "engine/experts/moe_layer.h"
#include "engine/model/attention.h"
#include "engine/model/kv_cache.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/tensor/backend.h"

namespace sluice {

class Transformer final : public Model {
 public:
  // `options` with defaults resolved (LoadTransformer does).
  static Result<std::unique_ptr<Model>> Create(const ModelConfig& config,
                                               const ModelOptions& options,
                                               std::unique_ptr<Backend> backend,
                                               ModelWeights weights);

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  DType weight_dtype() const override { return weights_.dtype; }
  bool nested_weights() const override;
  const char* isa() const override { return backend_->name(); }
  ModelFootprint footprint() const override;
  std::span<const float> Forward(std::span<const SequenceChunk> chunks) override;
  void ReadKvBlock(int block, std::span<std::byte> out) const override;
  void WriteKvBlock(int block, std::span<const std::byte> bytes) override;
  const ForwardStats& last_stats() const override { return stats_; }
  std::span<const ChunkFailure> failures() const override { return failures_; }
  std::span<const ExpertCounts> chunk_experts() const override { return chunk_counts_; }
  std::span<const ExpertCounts> token_experts() const override { return token_counts_; }
  bool Background() override;
  void WarmExperts(std::span<const float> heat) override;
  Result<> SetMemoryBudget(uint64_t bytes) override;
  const ExpertOutlook* outlook() const override { return weights_.tiered.get(); }
  std::optional<MemoryDivision> memory() const override;
  void EndStream(int64_t stream) override;
  bool SetRoutingTap(RoutingTap* tap) override;
  std::shared_ptr<const ExpertTierStats> expert_stats() const override;

 private:
  Transformer(const ModelConfig& config, const ModelOptions& options,
              std::unique_ptr<Backend> backend, ModelWeights weights, PagedKvCache cache);
  // What a step of options_.max_batch_tokens needs.
  Result<> AllocateStep();
  Result<> AllocateArena();
  // The least budgets that leave experts this much.
  uint64_t BudgetFor(uint64_t expert_bytes) const;
  uint64_t LeastBudget() const;
  // Gives routed experts the memory that the budget leaves; steps become smaller where it leaves
  // too little. `resident_bytes`: of the process without KV cache and step buffers.
  Result<> AllocateExperts(uint64_t resident_bytes);
  // Leaves the step's token vectors in hidden_; marks those that cannot be had in failed_.
  void Embed(size_t tokens, Error* error);
  // Norm, projections, cache and attention: leaves its output in attention_.
  void Attend(int layer);
  // Adds the output projection of `rows` rows of `attention` to `hidden`.
  void AddAttention(int layer, const float* attention, int rows, float* hidden);
  // Copies the rows that logits are wanted for from attention_ and hidden_ to q_ and last_; returns
  // their number.
  int SelectLogitRows(std::span<const SequenceChunk> chunks);
  std::span<const float> Logits(const float* hidden, int rows);
  // Fills failures_ from failed_, by token; then from the last layer's, by row.
  void NoteFailures(std::span<const SequenceChunk> chunks, const Error& error);
  void NoteRowFailures(std::span<const SequenceChunk> chunks, const Error& error);
  // Sums token_counts_ up by chunk.
  void CountChunks(std::span<const SequenceChunk> chunks);

  ModelConfig config_;
  ModelOptions options_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  PagedKvCache cache_;
  std::optional<MoeRunner> moe_;  // always there once created
  RopeCache rope_;
  AttentionBatch batch_;
  ForwardStats stats_;
  uint64_t other_bytes_ = 0;                // resident beside cached experts, at most
  uint64_t budget_ = 0;                     // of the process; 0: not set, all experts fit
  std::vector<int64_t> streams_;            // [tokens], in the last layer [rows]
  std::vector<uint8_t> failed_;             // [tokens], in the last layer [rows]
  std::vector<int> row_tokens_;             // [rows]
  std::vector<QualitySettings> quality_;    // [tokens], in the last layer [rows]
  std::vector<ExpertCounts> counts_;        // [tokens], in the last layer [rows]
  std::vector<ExpertCounts> token_counts_;  // [tokens], all layers
  std::vector<ExpertCounts> chunk_counts_;  // [chunks]
  std::vector<ChunkFailure> failures_;

  DeviceBuffer arena_;
  int32_t* ids_ = nullptr;      // [max_batch_tokens]
  float* hidden_ = nullptr;     // [max_batch_tokens, hidden], the residual stream
  float* q_ = nullptr;          // [max_batch_tokens, heads * head_dim]
  float* k_ = nullptr;          // [max_batch_tokens, kv_heads * head_dim]
  float* v_ = nullptr;          // same
  float* attention_ = nullptr;  // [max_batch_tokens, heads * head_dim]
  float* last_ = nullptr;       // [max_logit_rows, hidden], the stream of rows that want logits
  float* logits_ = nullptr;     // [max_logit_rows, vocab]
  float* normed_ = nullptr;     // [max_batch_tokens, hidden], for the observer; null without one
};

// Model::Load on a given backend: for tests and profiles that watch the calls. `options.isa` and
// `options.threads` are not used.
Result<std::unique_ptr<Model>> LoadTransformer(const std::filesystem::path& path,
                                               ModelOptions options,
                                               std::unique_ptr<Backend> backend);

}  // namespace sluice
