#include "engine/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/process_memory.h"
#include "engine/tensor/arena.h"

namespace sluice {
namespace {

// For what grows while requests run: connections, texts, samplers, stacks.
constexpr size_t kReserveBytes = size_t{16} << 20;

// Smaller steps read experts too often for what their buffers save.
constexpr int kLeastBatchTokens = 32;
// Buffers of a step take at most one in so many bytes of what they leave to experts, where smaller
// steps can help it.
constexpr uint64_t kArenaPart = 4;

// Of a budget: page tables take 8 bytes for every page of 4 KiB.
uint64_t UsableBytes(uint64_t budget) { return budget - budget / 512; }

void Add(const PackedMatrix& matrix, ActivationForms* forms) {
  if (matrix) forms->Add(matrix.activation_form());
}

void Add(const ExpertWeights& weights, ActivationForms* forms) {
  Add(weights.gate, forms);
  Add(weights.up, forms);
  Add(weights.down, forms);
}

// What the model's weights want their inputs packed as.
void SetForms(const ModelConfig& config, const ModelWeights& weights, WorkspaceLimits* limits) {
  limits->linear_forms = limits->mlp_forms = {};
  Add(weights.head, &limits->linear_forms);
  for (int i = 0; i < config.num_layers(); ++i) {
    const LayerWeights& layer = weights.layers[i];
    for (const PackedMatrix* matrix :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.moe.router, &layer.moe.shared_gate}) {
      Add(*matrix, &limits->linear_forms);
    }
    Add(layer.moe.dense, &limits->mlp_forms);
    Add(layer.moe.shared, &limits->mlp_forms);
    if (weights.tiered != nullptr || !config.layers[i].sparse) continue;
    for (int e = 0; e < config.router.num_experts; ++e) {
      Add(weights.experts.Lookup({i, e}), &limits->mlp_forms);
    }
  }
  limits->mlp_forms.Add(weights.expert_forms);
}

size_t LogitRowCount(const SequenceChunk& chunk) {
  if (chunk.logits == LogitRows::kAll) return chunk.tokens.size();
  return chunk.logits == LogitRows::kLast ? 1 : 0;
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const ModelOptions& options,
                         std::unique_ptr<Backend> backend, ModelWeights weights, PagedKvCache cache)
    : config_(config),
      options_(options),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      cache_(std::move(cache)),
      rope_(RopeTable(config), options.max_context),
      batch_(config, options.max_batch_tokens, options.max_sequences),
      streams_(options.max_batch_tokens),
      failed_(options.max_batch_tokens),
      row_tokens_(options.max_batch_tokens),
      quality_(options.max_batch_tokens),
      counts_(options.max_batch_tokens) {
  chunk_counts_.reserve(static_cast<size_t>(options.max_sequences));
  token_counts_.reserve(static_cast<size_t>(options.max_batch_tokens));
}

Result<std::unique_ptr<Model>> Transformer::Create(const ModelConfig& config,
                                                   const ModelOptions& options,
                                                   std::unique_ptr<Backend> backend,
                                                   ModelWeights weights) {
  ReturnFreeMemory();
  // All but what is allocated from here on.
  uint64_t resident_bytes = ResidentBytes() + options.later_bytes;
  if (!options.read_weights) resident_bytes += weights.dense_bytes;  // once they are read
  auto cache = PagedKvCache::Create(backend.get(), config, *options.kv_dtype, options.kv_blocks);
  if (!cache) return cache.error();
  std::unique_ptr<Transformer> model(
      new Transformer(config, options, std::move(backend), std::move(weights), std::move(*cache)));
  if (auto ok = model->AllocateStep(); !ok) return ok.error();
  if (auto ok = model->AllocateExperts(resident_bytes); !ok) return ok.error();
  return std::unique_ptr<Model>(std::move(model));
}

Result<> Transformer::AllocateStep() {
  WorkspaceLimits limits;
  limits.max_tokens = options_.max_batch_tokens;
  limits.max_cols = std::max(config_.hidden, config_.heads * config_.head_dim);
  MoeRunner::AddLimits(config_, options_.max_batch_tokens, &limits);
  SetForms(config_, weights_, &limits);
  if (auto ok = backend_->Prepare(limits); !ok) return ok.error();
  if (weights_.disk_embedding) {
    const int tokens = options_.max_batch_tokens;
    if (auto ok = weights_.disk_embedding->Allocate(backend_.get(), tokens); !ok) return ok.error();
  }
  moe_.reset();
  auto moe =
      MoeRunner::Create(backend_.get(), config_, options_.max_batch_tokens, options_.observer);
  if (!moe) return moe.error();
  moe_.emplace(std::move(*moe));
  std::vector<const MoeWeights*> layers;
  for (const LayerWeights& layer : weights_.layers) layers.push_back(&layer.moe);
  moe_->SetLayers(std::move(layers));
  moe_->SetQualityRules(options_.quality_rules);
  return AllocateArena();
}

Result<> Transformer::AllocateArena() {
  arena_ = {};
  const auto tokens = static_cast<size_t>(options_.max_batch_tokens);
  const auto hidden = static_cast<size_t>(config_.hidden);
  const auto rows = static_cast<size_t>(options_.max_logit_rows);
  const auto q_width = static_cast<size_t>(config_.heads) * config_.head_dim;
  const auto kv_width = static_cast<size_t>(config_.kv_heads) * config_.head_dim;
  ArenaLayout layout;
  layout.Add(&ids_, tokens);
  layout.Add(&hidden_, tokens * hidden);
  layout.Add(&q_, tokens * q_width);
  layout.Add(&k_, tokens * kv_width);
  layout.Add(&v_, tokens * kv_width);
  layout.Add(&attention_, tokens * q_width);
  layout.Add(&last_, rows * hidden);
  layout.Add(&logits_, rows * static_cast<size_t>(config_.vocab));
  if (options_.observer != nullptr) layout.Add(&normed_, tokens * hidden);
  auto memory = layout.Allocate(backend_.get(), "activations");
  if (!memory) return memory.error();
  arena_ = std::move(*memory);
  return {};
}

Result<> Transformer::AllocateExperts(uint64_t resident_bytes) {
  TieredExperts* tiered = weights_.tiered.get();
  if (tiered == nullptr) return {};
  const uint64_t budget = options_.tiers.memory_budget;
  const int least_tokens = std::max(kLeastBatchTokens, options_.max_sequences);
  for (;;) {
    const ModelFootprint sizes = footprint();
    other_bytes_ = resident_bytes + sizes.arena_bytes +
                   sizes.kv_bytes_per_block * static_cast<size_t>(options_.kv_blocks) +
                   kReserveBytes;
    if (budget == 0) {
      tiered->SetMemory(tiered->cache().all_bytes());
      return {};
    }
    const uint64_t usable = UsableBytes(budget);
    const uint64_t left = usable - std::min(usable, other_bytes_);  // for experts
    const bool fits = LeastBudget() <= budget && (left >= tiered->cache().all_bytes() ||
                                                  sizes.arena_bytes <= left / kArenaPart);
    if (fits || options_.max_batch_tokens / 2 < least_tokens) break;
    options_.max_batch_tokens /= 2;
    options_.max_logit_rows = std::min(options_.max_logit_rows, options_.max_batch_tokens);
    if (auto ok = AllocateStep(); !ok) return ok.error();
  }
  return SetMemoryBudget(budget);
}

uint64_t Transformer::BudgetFor(uint64_t expert_bytes) const {
  const uint64_t usable = other_bytes_ + expert_bytes;
  return usable + usable / 511 + 1;
}

uint64_t Transformer::LeastBudget() const {
  return BudgetFor(weights_.tiered->cache().LargestLayer(config_.router.experts_per_token));
}

std::optional<MemoryDivision> Transformer::memory() const {
  if (weights_.tiered == nullptr) return std::nullopt;
  const ExpertCache& cache = weights_.tiered->cache();
  return MemoryDivision{other_bytes_, weights_.dense_bytes, LeastBudget(), cache.all_bytes(),
                        cache.slab().limit()};
}

Result<> Transformer::SetMemoryBudget(uint64_t bytes) {
  TieredExperts* tiered = weights_.tiered.get();
  if (tiered == nullptr) return Model::SetMemoryBudget(bytes);
  const uint64_t least = LeastBudget();
  if (bytes < least) {
    const auto mib = [](uint64_t n) { return std::to_string((n + (1 << 20) - 1) >> 20) + " MiB"; };
    return InvalidArgument("a memory budget of " + mib(bytes) +
                           " is too small for this model: its dense weights, KV cache and buffers "
                           "take " +
                           mib(other_bytes_) + ", one layer's experts " +
                           mib(least - other_bytes_) + "; give it at least " + mib(least) +
                           ", or less KV cache or smaller batches");
  }
  tiered->SetMemory(
      std::min<uint64_t>(UsableBytes(bytes) - other_bytes_, tiered->cache().all_bytes()));
  budget_ = bytes;
  return {};
}

void Transformer::EndStream(int64_t stream) {
  if (weights_.tiered != nullptr) weights_.tiered->OnStreamEnd(stream);
}

bool Transformer::SetRoutingTap(RoutingTap* tap) {
  if (weights_.tiered == nullptr) return false;
  weights_.tiered->SetTap(tap);
  return true;
}

bool Transformer::Background() {
  return weights_.tiered != nullptr && weights_.tiered->Background();
}

std::shared_ptr<const ExpertTierStats> Transformer::expert_stats() const {
  if (weights_.tiered == nullptr) return nullptr;
  auto stats = std::make_shared<ExpertTierStats>(weights_.tiered->stats());
  stats->full_budget_bytes = BudgetFor(weights_.tiered->cache().all_bytes());
  stats->least_budget_bytes = LeastBudget();
  stats->budget_bytes = budget_ > 0 ? budget_ : stats->full_budget_bytes;
  return stats;
}

ModelFootprint Transformer::footprint() const {
  ModelFootprint footprint;
  footprint.weight_bytes = weights_.dense_bytes + weights_.disk_bytes + weights_.expert_bytes;
  footprint.kv_bytes_per_block = KvBytesPerBlock(config_, cache_.dtype());
  footprint.arena_bytes = arena_.bytes() + moe_->arena_bytes() + backend_->workspace_bytes() +
                          size_t{4} * static_cast<size_t>(config_.rotary_dim) *
                              static_cast<size_t>(options_.max_context);
  if (weights_.disk_embedding) footprint.arena_bytes += weights_.disk_embedding->memory_bytes();
  footprint.dense_bytes_per_token = weights_.dense_bytes - weights_.embedding.rows.bytes();
  if (!config_.tied_embeddings && weights_.embedding.packed) {
    footprint.dense_bytes_per_token -= weights_.embedding.packed.bytes();
  }

  const auto macs = [](const PackedMatrix& m) { return int64_t{m.rows} * m.cols; };
  const auto mlp = [&](const ExpertWeights& w) { return macs(w.gate) + macs(w.up) + macs(w.down); };
  footprint.dense_macs_per_token = macs(weights_.head);
  footprint.logit_row_macs = macs(weights_.head);
  int64_t sparse_layers = 0;
  int64_t expert_values = 0;
  for (int i = 0; i < config_.num_layers(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const int64_t cached = macs(layer.q) + macs(layer.k) + macs(layer.v);
    const int64_t rest = macs(layer.o) + macs(layer.moe.router) + mlp(layer.moe.dense) +
                         mlp(layer.moe.shared) + macs(layer.moe.shared_gate);
    int64_t routed = 0;
    if (config_.layers[i].sparse) {
      sparse_layers += 1;
      expert_values = int64_t{3} * config_.hidden * config_.expert_intermediate;
      routed = config_.router.experts_per_token * expert_values;
    }
    footprint.dense_macs_per_token += cached + rest;
    footprint.expert_macs_per_token += routed;
    if (i + 1 == config_.num_layers()) footprint.logit_row_macs += rest + routed;
  }
  if (sparse_layers > 0) {
    const int64_t experts = sparse_layers * config_.router.num_experts;
    footprint.expert_bytes = weights_.expert_bytes / static_cast<size_t>(experts);
    footprint.expert_bits = 8.0 * static_cast<double>(weights_.expert_bytes) /
                            static_cast<double>(experts * expert_values);
  }
  return footprint;
}

bool Transformer::nested_weights() const {
  for (int i = 0; i < config_.num_layers(); ++i) {
    if (!config_.layers[i].sparse) continue;
    if (weights_.tiered != nullptr) return weights_.expert_forms.Has(ActivationForm::kForNested);
    return weights_.experts.Lookup({i, 0}).gate.is_nested();
  }
  return weights_.layers[0].q.is_nested();
}

void Transformer::WarmExperts(std::span<const float> heat) {
  if (weights_.tiered != nullptr) weights_.tiered->SetFillOrder(heat);
}

void Transformer::ReadKvBlock(int block, std::span<std::byte> out) const {
  cache_.CopyBlockOut(block, out);
}

void Transformer::WriteKvBlock(int block, std::span<const std::byte> bytes) {
  cache_.CopyBlockIn(block, bytes);
}

void Transformer::Attend(int index) {
  const LayerWeights& layer = weights_.layers[index];
  const KvLayer kv = cache_.layer(index);
  const int tokens = batch_.tokens();
  const ptrdiff_t q_width = static_cast<ptrdiff_t>(config_.heads) * config_.head_dim;
  const ptrdiff_t kv_width = static_cast<ptrdiff_t>(config_.kv_heads) * config_.head_dim;
  const auto eps = static_cast<float>(config_.norm_eps);

  const LinearOutput projections[] = {
      {.weight = layer.q, .bias = layer.q_bias, .y = q_, .y_stride = q_width},
      {.weight = layer.k, .bias = layer.k_bias, .y = k_, .y_stride = kv_width},
      {.weight = layer.v, .bias = layer.v_bias, .y = v_, .y_stride = kv_width}};
  backend_->Linear({.x = hidden_,
                    .x_stride = config_.hidden,
                    .tokens = tokens,
                    .cols = config_.hidden,
                    .norm_weight = layer.attention_norm,
                    .norm_eps = eps,
                    .normed = normed_,
                    .outputs = projections});
  if (options_.observer != nullptr) {
    options_.observer->OnAttentionInputs(index, {normed_, tokens, config_.hidden});
  }
  backend_->RopeCache({.q = q_,
                       .k = k_,
                       .v = v_,
                       .tokens = tokens,
                       .heads = config_.heads,
                       .kv = kv,
                       .q_norm = layer.q_norm,
                       .k_norm = layer.k_norm,
                       .norm_full_width = config_.qk_norm == QkNorm::kFullWidth,
                       .norm_eps = eps,
                       .clip = static_cast<float>(config_.clip_qkv),
                       .rotary_dim = config_.rotary_dim,
                       .cos = rope_.cos(0),
                       .sin = rope_.sin(0),
                       .rope_stride = config_.rotary_dim,
                       .positions = batch_.positions(),
                       .slots = batch_.slots()});
  backend_->Attention({.kv = kv,
                       .heads = config_.heads,
                       .q = q_,
                       .out = attention_,
                       .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                       .groups = batch_.groups(index)});
}

void Transformer::AddAttention(int index, const float* attention, int rows, float* hidden) {
  const LayerWeights& layer = weights_.layers[index];
  const int q_width = config_.heads * config_.head_dim;
  if (options_.observer != nullptr) {
    options_.observer->OnAttentionOutputs(index, {attention, rows, q_width});
  }
  const LinearOutput residual = {.weight = layer.o,
                                 .bias = layer.o_bias,
                                 .y = hidden,
                                 .y_stride = config_.hidden,
                                 .add = true};
  backend_->Linear({.x = attention,
                    .x_stride = q_width,
                    .tokens = rows,
                    .cols = q_width,
                    .norm_weight = nullptr,
                    .norm_eps = 0,
                    .normed = nullptr,
                    .outputs = {&residual, 1}});
}

void Transformer::Embed(size_t tokens, Error* error) {
  if (!weights_.disk_embedding) {
    backend_->Embed(weights_.embedding, {ids_, tokens}, hidden_);
    return;
  }
  DiskEmbedding& disk = *weights_.disk_embedding;
  if (auto ok = disk.Read({ids_, tokens}, {failed_.data(), tokens}); !ok) *error = ok.error();
  backend_->Embed(disk.table(), disk.local_ids(), hidden_);
}

int Transformer::SelectLogitRows(std::span<const SequenceChunk> chunks) {
  const auto hidden = static_cast<size_t>(config_.hidden);
  const auto q_width = static_cast<size_t>(config_.heads) * config_.head_dim;
  size_t rows = 0;
  size_t token = 0;
  for (const SequenceChunk& chunk : chunks) {
    const size_t count = chunk.tokens.size();
    const size_t wanted = LogitRowCount(chunk);
    SLUICE_CHECK(rows + wanted <= static_cast<size_t>(options_.max_logit_rows));
    const size_t first = token + count - wanted;
    std::memcpy(last_ + rows * hidden, hidden_ + first * hidden, wanted * hidden * sizeof(float));
    std::memcpy(q_ + rows * q_width, attention_ + first * q_width,
                wanted * q_width * sizeof(float));
    for (size_t i = 0; i < wanted; ++i) row_tokens_[rows + i] = static_cast<int>(first + i);
    rows += wanted;
    token += count;
  }
  return static_cast<int>(rows);
}

std::span<const float> Transformer::Logits(const float* hidden, int rows) {
  const LinearOutput head = {.weight = weights_.head, .y = logits_, .y_stride = config_.vocab};
  backend_->Linear({.x = hidden,
                    .x_stride = config_.hidden,
                    .tokens = rows,
                    .cols = config_.hidden,
                    .norm_weight = weights_.final_norm,
                    .norm_eps = static_cast<float>(config_.norm_eps),
                    .normed = normed_,
                    .outputs = {&head, 1}});
  if (options_.observer != nullptr) {
    options_.observer->OnHeadInputs({normed_, rows, config_.hidden});
  }
  return {logits_, static_cast<size_t>(rows) * static_cast<size_t>(config_.vocab)};
}

void Transformer::NoteFailures(std::span<const SequenceChunk> chunks, const Error& error) {
  failures_.clear();
  size_t token = 0;
  for (size_t c = 0; c < chunks.size(); ++c) {
    const auto begin = failed_.begin() + static_cast<ptrdiff_t>(token);
    const auto end = begin + static_cast<ptrdiff_t>(chunks[c].tokens.size());
    const auto first = std::find(begin, end, uint8_t{1});
    if (first != end) {
      failures_.push_back({static_cast<int>(c), static_cast<int>(first - begin), error});
    }
    token += chunks[c].tokens.size();
  }
}

void Transformer::NoteRowFailures(std::span<const SequenceChunk> chunks, const Error& error) {
  size_t row = 0;
  for (size_t c = 0; c < chunks.size(); ++c) {
    const size_t count = LogitRowCount(chunks[c]);
    const auto begin = failed_.begin() + static_cast<ptrdiff_t>(row);
    const auto end = begin + static_cast<ptrdiff_t>(count);
    const auto first = std::find(begin, end, uint8_t{1});
    row += count;
    if (first == end) continue;
    const int chunk = static_cast<int>(c);
    const int token =
        static_cast<int>(chunks[c].tokens.size() - count) + static_cast<int>(first - begin);
    const auto known = std::find_if(failures_.begin(), failures_.end(),
                                    [&](const ChunkFailure& f) { return f.chunk == chunk; });
    if (known == failures_.end()) {
      failures_.push_back({chunk, token, error});
    } else {
      known->token = std::min(known->token, token);
    }
  }
}

void Transformer::CountChunks(std::span<const SequenceChunk> chunks) {
  size_t token = 0;
  for (const SequenceChunk& chunk : chunks) {
    ExpertCounts& sum = chunk_counts_.emplace_back();
    for (size_t i = 0; i < chunk.tokens.size(); ++i) sum += token_counts_[token++];
  }
}

std::span<const float> Transformer::Forward(std::span<const SequenceChunk> chunks) {
  SLUICE_CHECK(!chunks.empty() && static_cast<int>(chunks.size()) <= options_.max_sequences);
  size_t tokens = 0;
  bool exact = true;
  for (const SequenceChunk& chunk : chunks) {
    exact = exact && chunk.quality.exact();
    SLUICE_CHECK(
        chunk.position >= 0 &&
            chunk.position + static_cast<int64_t>(chunk.tokens.size()) <= options_.max_context,
        "a chunk past max_context");
    SLUICE_CHECK(tokens + chunk.tokens.size() <= static_cast<size_t>(options_.max_batch_tokens));
    for (const int32_t id : chunk.tokens) {
      SLUICE_CHECK(id >= 0 && id < config_.vocab, "a token id outside the vocabulary");
      streams_[tokens] = chunk.stream;
      quality_[tokens] = chunk.quality;
      ids_[tokens++] = id;
    }
    for (const int32_t block : chunk.kv_blocks) {
      SLUICE_CHECK(block >= 0 && block < cache_.blocks(), "a KV block that does not exist");
    }
  }
  batch_.Build(chunks);
  MoeStats moe_stats;
  Error error;
  std::fill_n(failed_.begin(), tokens, uint8_t{0});
  std::fill_n(counts_.begin(), tokens, ExpertCounts{});
  Embed(tokens, &error);
  ExpertSource* source = weights_.source();
  source->BeginStep(static_cast<int>(tokens));
  const auto experts = [&](int layer, int rows, float* hidden) {
    moe_->Run(layer, weights_.layers[layer].moe, source,
              {rows, streams_.data(), failed_.data(), &error, exact ? nullptr : quality_.data(),
               counts_.data()},
              hidden, &moe_stats);
  };
  const int last = config_.num_layers() - 1;
  for (int layer = 0; layer < last; ++layer) {
    Attend(layer);
    AddAttention(layer, attention_, static_cast<int>(tokens), hidden_);
    experts(layer, static_cast<int>(tokens), hidden_);
  }
  // Past the last layer's cache writes, only rows that logits are wanted for matter.
  Attend(last);
  const int rows = SelectLogitRows(chunks);
  NoteFailures(chunks, error);
  token_counts_.assign(counts_.begin(), counts_.begin() + static_cast<ptrdiff_t>(tokens));
  if (rows > 0) {
    AddAttention(last, q_, rows, last_);
    // From here on tokens are rows.
    for (int row = 0; row < rows; ++row) {
      streams_[row] = streams_[row_tokens_[row]];
      quality_[row] = quality_[row_tokens_[row]];
    }
    std::fill_n(failed_.begin(), rows, uint8_t{0});
    std::fill_n(counts_.begin(), rows, ExpertCounts{});
    experts(last, rows, last_);
    NoteRowFailures(chunks, error);
    for (int row = 0; row < rows; ++row) {
      token_counts_[static_cast<size_t>(row_tokens_[row])] += counts_[static_cast<size_t>(row)];
    }
  }
  chunk_counts_.clear();
  CountChunks(chunks);
  source->EndStep();
  stats_ = {static_cast<int>(tokens), moe_stats.assignments, moe_stats.unique_experts};
  if (rows == 0) return {};
  return Logits(last_, rows);
}

}  // namespace sluice
