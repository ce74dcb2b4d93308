// A deterministic Model that checks its caller. Every KV slot stores what was written there: the
// token, its position and a hash chained over the sequence so far. Forward reads every earlier
// position through the given block table and verifies the chain, so a block table that is stale,
// shared or out of order is caught at once. Logits are a hash of the chain: they depend on all
// tokens of the sequence, in order, and on nothing else.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/model/model.h"

namespace sluice {

struct FakeModelOptions {
  int vocab = 97;
  int kv_blocks = 64;
  int max_batch_tokens = 64;
  int max_sequences = 16;
  int max_context = 4096;
  std::vector<int32_t> eos_ids = {2};
  // A sequence that contains this token gets a NaN logit from there on; -1: never.
  int32_t poison_token = -1;
  // Added to the logits of eos_ids: how likely sequences are to end by themselves.
  float eos_bonus = 0;
  // More than 0: the token that came so many before the next one is likely to come again.
  int period = 0;
  float period_bonus = 6;
  // More than 0: the model keeps experts in tiers, within a budget of at least this.
  uint64_t least_budget = 0;
};

class FakeModel final : public Model {
 public:
  explicit FakeModel(const FakeModelOptions& options);

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return model_options_; }
  DType weight_dtype() const override { return DType::kF32; }
  const char* isa() const override { return "fake"; }
  ModelFootprint footprint() const override {
    ModelFootprint footprint;
    footprint.kv_bytes_per_block = kKvBlockTokens * sizeof(Slot);
    return footprint;
  }
  void ReadKvBlock(int block, std::span<std::byte> out) const override;
  void WriteKvBlock(int block, std::span<const std::byte> bytes) override;
  std::span<const float> Forward(std::span<const SequenceChunk> chunks) override;
  const ForwardStats& last_stats() const override { return stats_; }
  bool Background() override;
  Result<> SetMemoryBudget(uint64_t bytes) override;
  // Its links[0].reads counts Forwards and Background's work.
  std::shared_ptr<const ExpertTierStats> expert_stats() const override;

  // The first breach of Model's contract, or empty.
  const std::string& violation() const { return violation_; }
  // Called at the start of every Forward with its chunks; may be empty.
  void set_on_forward(std::function<void(std::span<const SequenceChunk>)> hook) {
    on_forward_ = std::move(hook);
  }
  int64_t forwarded_tokens() const { return forwarded_tokens_; }
  int snapshots() const { return snapshots_; }
  void set_background_work(int calls) { background_work_ = calls; }

 private:
  struct Slot {
    int32_t token = -1;
    int position = -1;
    uint64_t chain = 0;
    bool poisoned = false;
  };

  void Violated(const std::string& what);
  bool CheckShape(std::span<const SequenceChunk> chunks);
  bool CheckBlocks(const SequenceChunk& chunk);
  Slot* SlotAt(const SequenceChunk& chunk, int position);
  void RunChunk(const SequenceChunk& chunk);
  // likely: a token that gets period_bonus; -1: none.
  void AppendRow(const Slot& slot, int32_t likely);

  FakeModelOptions fake_;
  ModelConfig config_;
  ModelOptions model_options_;
  std::vector<Slot> slots_;
  struct BlockUse {
    int64_t forward = -1;  // the last that used it
    bool read_only = false;
  };
  std::vector<BlockUse> block_used_;  // by block
  std::vector<float> logits_;
  ForwardStats stats_;
  std::string violation_;
  std::function<void(std::span<const SequenceChunk>)> on_forward_;
  int64_t forwards_ = 0;
  int64_t forwarded_tokens_ = 0;
  uint64_t budget_ = 0;
  int background_work_ = 0;  // calls of Background that have something to do
  int64_t background_done_ = 0;
  mutable int snapshots_ = 0;
};

}  // namespace sluice
