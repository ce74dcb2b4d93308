// A loaded model and the one function that the runtime calls: Forward (SEAM). It knows tokens,
// positions and KV blocks; it never sees requests, and the scheduler never sees tensors.
//
// Threads: load from any thread; Forward from one thread at a time (the engine thread), which owns
// the compute pool. Nothing large is allocated in Forward: every buffer is sized at load from
// ModelOptions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/base/model_files.h"
#include "engine/base/result.h"
#include "engine/experts/expert_outlook.h"
#include "engine/experts/forward_observer.h"
#include "engine/experts/quality.h"
#include "engine/experts/routing_tap.h"
#include "engine/experts/tier_stats.h"
#include "kernels/common/dtype.h"
#include "kernels/cpu/ops.h"

namespace sluice {

// Tokens per KV block, everywhere.
inline constexpr int kKvBlockTokens = cpu::kKvBlockTokens;

// Where the routed experts of a pack live.
struct TierOptions {
  // The whole process's resident memory, in bytes: what experts get is the rest beside weights that
  // every token needs, KV cache, buffers and code. 0: all experts fit.
  uint64_t memory_budget = 0;
  std::string policy = "auto";            // MakeCachePolicy
  std::string predictor = "cross-layer";  // MakeExpertPredictor; empty: no reads ahead
  bool guard_prefetch = true;             // reads ahead only while they pay (live_guard.h)
  // Whether the token table stays on disk (disk_embedding.h); default: where the pack is larger
  // than the budget. Tables that are the output head, too, never do.
  std::optional<bool> disk_embedding;
  bool cache = true;  // off: experts are read when a layer asks and kept no longer
  // Expected of most chunks: what is read before the first of them has come.
  Quality quality = Quality::kExact;
};

struct ModelOptions {
  cpu::Isa isa = cpu::Isa::kAuto;
  int threads = 0;  // 0: the cores that the process may use
  bool pin_threads = false;
  // Tokens in one Forward, over all chunks. Resolved to fewer where buffers for so many leave the
  // memory budget too little for experts.
  int max_batch_tokens = 512;
  int max_sequences = 64;  // chunks in one Forward
  int max_logit_rows = 0;  // rows that one Forward returns; 0: max_batch_tokens
  int max_context = 0;     // tokens per sequence; 0: the model's max_positions. Resolved to
                           // at most what kv_blocks hold
  int kv_blocks = 0;  // KV blocks of 16 tokens; REQUIRED > 0 (the caller turns memory into blocks
                      // with KvBytesPerBlock)
  std::optional<KvDType> kv_dtype;  // default: F32 for F32 weights, otherwise F16
  // Nullable: told of activations; outlives the model. For calibration: costs copies.
  ForwardObserver* observer = nullptr;
  // Packs only: routed experts at the highest precision up to this many bits; 0: all there is.
  int expert_bits = 0;
  // Inputs of bit-nested matrices: 8 bits, or 16 or 24 for about 15 or 22 bits of them at two or
  // three times the arithmetic.
  int activation_bits = 8;
  TierOptions tiers;  // packs only
  // Packs only. False: no weight is read, so that what a model would take is known at once:
  // footprint() and memory() are those of the whole model. Forward must not be called.
  bool read_weights = true;
  // Resident bytes that the process will take besides what it takes when the model is loaded; they
  // count in the budget.
  uint64_t later_bytes = 0;
  QualityRules quality_rules = DefaultQualityRules();
  // Called with fractions in [0, 1] while weights load; may be empty.
  std::function<void(double)> progress;
};

enum class LogitRows {
  kNone,  // a prefill chunk that does not end the prompt
  kLast,  // one row: the last token's
  kAll,   // one row per token: prompt log-probabilities
};

// A contiguous run of one sequence's tokens within a step.
struct SequenceChunk {
  std::span<const int32_t> tokens;     // at least one; ids in [0, vocab)
  int position = 0;                    // of tokens[0]; earlier positions are already in the cache
  std::span<const int32_t> kv_blocks;  // physical blocks, covering position + tokens.size() tokens
  LogitRows logits = LogitRows::kLast;
  // Names the sequence from step to step, for predicting its experts; changes no result.
  int64_t stream = -1;
  // What its tokens accept. Chunks that are exact() get the same bytes in any company.
  QualitySettings quality = {};
};

// A chunk whose result is meaningless, because an expert that it needed cannot be had.
struct ChunkFailure {
  int chunk = 0;
  int token = 0;  // of the chunk: the first that could not be computed; those before it are right
  Error error;
};

// What Forward measured about its last step; read by statistics. The last layer's experts run only
// for the tokens whose logits were asked for.
struct ForwardStats {
  int tokens = 0;
  int64_t expert_assignments = 0;  // (token, expert) pairs over all layers
  int64_t unique_experts = 0;      // distinct (layer, expert) pairs touched
};

struct ModelFootprint {
  size_t weight_bytes = 0;        // resident, packed
  size_t kv_bytes_per_block = 0;  // all layers
  size_t arena_bytes = 0;         // activations
  size_t dense_bytes_per_token =
      0;                    // weight bytes that any decode step reads once (embedding row aside)
  size_t expert_bytes = 0;  // one expert's bytes, the average (0 without sparse layers)
  double expert_bits = 0;   // bits per weight of routed experts, scales included
  int64_t dense_macs_per_token =
      0;  // multiply-accumulates per token outside routed experts, output head included
  int64_t expert_macs_per_token =
      0;                       // in the routed experts, experts_per_token of every sparse layer
  int64_t logit_row_macs = 0;  // the part of both that runs only for tokens whose logits were asked
                               // for: the last layer past its cache writes, and the output head
};

// How the memory of a model with tiers is divided.
struct MemoryDivision {
  uint64_t other_bytes = 0;   // all but cached experts, at most: code, dense weights, KV, buffers
  uint64_t dense_bytes = 0;   // of these, weights that are resident always
  uint64_t least_budget = 0;  // the least that SetMemoryBudget takes
  uint64_t expert_bytes = 0;  // of all experts, as the cache keeps them
  uint64_t expert_capacity = 0;  // bytes that cached experts may take now
};

class Model {
 public:
  // Loads a Hugging Face directory or a pack. Errors name the file, tensor, expert, shape or field
  // that is wrong.
  static Result<std::unique_ptr<Model>> Load(const std::filesystem::path& path,
                                             const ModelOptions& options);
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const ModelOptions& options() const = 0;  // with defaults resolved
  // Of the attention projections when they are floats.
  virtual DType weight_dtype() const = 0;
  // Whether the routed experts (the whole model, if it has none) are bit-nested: then they compute
  // with 8-bit activations.
  virtual bool nested_weights() const { return false; }
  virtual const char* isa() const = 0;
  virtual ModelFootprint footprint() const = 0;

  // Runs one step. Returns logits rows, [sum of rows asked for, vocab] F32, in chunk order; valid
  // until the next call. A token's row is bit-identical whatever else is in the batch and however
  // its prompt was chunked. REQUIRES: within max_batch_tokens, max_sequences and max_logit_rows;
  // block ids < kv_blocks.
  virtual std::span<const float> Forward(std::span<const SequenceChunk> chunks) = 0;

  // Between steps: the bytes of a KV block, all layers, ModelFootprint::kv_bytes_per_block of them.
  // For keeping a prefix cache over a restart.
  virtual void ReadKvBlock(int /*block*/, std::span<std::byte> /*out*/) const {}
  virtual void WriteKvBlock(int /*block*/, std::span<const std::byte> /*bytes*/) {}

  virtual const ForwardStats& last_stats() const = 0;
  // Of the last Forward; its other chunks are not affected. Valid until the next.
  virtual std::span<const ChunkFailure> failures() const { return {}; }
  // Of the last Forward, one per chunk; empty for models that do not say. Valid until the next.
  virtual std::span<const ExpertCounts> chunk_experts() const { return {}; }

  // The same by token, those of the first chunk first.
  virtual std::span<const ExpertCounts> token_experts() const { return {}; }

  // Between steps, when there is none to run: fills free memory with experts, for up to a few
  // milliseconds. False when there is nothing to do.
  virtual bool Background() { return false; }
  // Before the first step: experts that an earlier run used most (ExpertTierStats::heat, by place)
  // fill free memory first. Nothing for another number of them.
  virtual void WarmExperts(std::span<const float> /*heat*/) {}
  // Between steps: changes the budget that ModelOptions::tiers set. Errors: kInvalidArgument with
  // the least that can hold the model.
  virtual Result<> SetMemoryBudget(uint64_t /*bytes*/) {
    return Unsupported("this model keeps all of its experts in memory");
  }
  // What steps would use, for choosing their sequences; null when every expert is resident for
  // good.
  virtual const ExpertOutlook* outlook() const { return nullptr; }
  // Nothing when every expert is resident for good.
  virtual std::optional<MemoryDivision> memory() const { return std::nullopt; }
  // Between steps: a sequence (SequenceChunk::stream) ended.
  virtual void EndStream(int64_t /*stream*/) {}
  // Before the first step: who is told what the routed experts are asked for; outlives the last
  // step. False when every expert is resident for good: then nobody is told.
  virtual bool SetRoutingTap(RoutingTap* /*tap*/) { return false; }
  // Null when every expert is resident for good. Costs copies: not for every step.
  virtual std::shared_ptr<const ExpertTierStats> expert_stats() const { return nullptr; }
};

// The documents of what Load accepts: configuration, tokenizer, chat template.
Result<ModelFiles> ReadModelFiles(const std::filesystem::path& path);

// Bytes of a pack's weights outside routed experts: those that must be resident.
Result<uint64_t> DensePackBytes(const std::filesystem::path& path);

// The type of the weights for people: "BF16", or the average bits of bit-nested routed experts with
// their scales, "4.62-bit".
std::string WeightName(const Model& model);

// KV bytes of one block over all layers: turns a memory size into kv_blocks before loading.
size_t KvBytesPerBlock(const ModelConfig& config, KvDType kv_dtype);
// "f32", "f16", "bf16" or "q8"; nothing for any other name.
std::optional<KvDType> ParseKvDType(std::string_view name);

}  // namespace sluice
