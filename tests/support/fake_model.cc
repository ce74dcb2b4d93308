#include "tests/support/fake_model.h"

#include <cstring>
#include <limits>

namespace sluice {
namespace {

uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

uint64_t Chain(uint64_t before, int32_t token, int position) {
  return Mix(before ^ Mix(static_cast<uint64_t>(token) * 0x10001u +
                          (static_cast<uint64_t>(position) << 32)));
}

}  // namespace

FakeModel::FakeModel(const FakeModelOptions& options) : fake_(options) {
  config_.family = "fake";
  config_.vocab = options.vocab;
  config_.max_positions = options.max_context;
  config_.eos_ids = options.eos_ids;
  model_options_.max_batch_tokens = options.max_batch_tokens;
  model_options_.max_logit_rows = options.max_batch_tokens;
  model_options_.max_sequences = options.max_sequences;
  model_options_.max_context = options.max_context;
  model_options_.kv_blocks = options.kv_blocks;
  slots_.resize(static_cast<size_t>(options.kv_blocks) * kKvBlockTokens);
  block_used_.resize(static_cast<size_t>(options.kv_blocks));
}

bool FakeModel::Background() {
  if (background_work_ == 0) return false;
  ++background_done_;
  return --background_work_ > 0;
}

Result<> FakeModel::SetMemoryBudget(uint64_t bytes) {
  if (fake_.least_budget == 0) return Model::SetMemoryBudget(bytes);
  if (bytes < fake_.least_budget) {
    return InvalidArgument("give it at least " + std::to_string(fake_.least_budget));
  }
  budget_ = bytes;
  return {};
}

std::shared_ptr<const ExpertTierStats> FakeModel::expert_stats() const {
  if (fake_.least_budget == 0) return nullptr;
  ++snapshots_;
  auto stats = std::make_shared<ExpertTierStats>();
  stats->budget_bytes = budget_;
  stats->least_budget_bytes = fake_.least_budget;
  stats->links.resize(1);
  stats->links[0].reads = static_cast<uint64_t>(forwards_ + background_done_);
  return stats;
}

void FakeModel::ReadKvBlock(int block, std::span<std::byte> out) const {
  std::memcpy(out.data(), &slots_[static_cast<size_t>(block) * kKvBlockTokens],
              kKvBlockTokens * sizeof(Slot));
}

void FakeModel::WriteKvBlock(int block, std::span<const std::byte> bytes) {
  std::memcpy(&slots_[static_cast<size_t>(block) * kKvBlockTokens], bytes.data(),
              kKvBlockTokens * sizeof(Slot));
}

void FakeModel::Violated(const std::string& what) {
  if (violation_.empty()) violation_ = what;
}

bool FakeModel::CheckShape(std::span<const SequenceChunk> chunks) {
  if (chunks.empty()) return Violated("a step without chunks"), false;
  if (chunks.size() > static_cast<size_t>(fake_.max_sequences)) {
    return Violated("more chunks than max_sequences"), false;
  }
  size_t tokens = 0;
  for (const SequenceChunk& chunk : chunks) tokens += chunk.tokens.size();
  if (tokens > static_cast<size_t>(fake_.max_batch_tokens)) {
    return Violated("more tokens than max_batch_tokens"), false;
  }
  stats_.tokens = static_cast<int>(tokens);
  forwarded_tokens_ += static_cast<int64_t>(tokens);
  return true;
}

bool FakeModel::CheckBlocks(const SequenceChunk& chunk) {
  if (chunk.tokens.empty() || chunk.position < 0) return Violated("an empty chunk"), false;
  const size_t end = static_cast<size_t>(chunk.position) + chunk.tokens.size();
  if (end > static_cast<size_t>(fake_.max_context)) return Violated("past max_context"), false;
  if (chunk.kv_blocks.size() * kKvBlockTokens < end) {
    return Violated("the block table is too short"), false;
  }
  const size_t written = static_cast<size_t>(chunk.position) / kKvBlockTokens;
  for (size_t i = 0; i < chunk.kv_blocks.size(); ++i) {
    const int32_t block = chunk.kv_blocks[i];
    if (block < 0 || block >= fake_.kv_blocks) return Violated("a block id out of range"), false;
    // Many may read a block, but nobody beside the one that writes to it.
    BlockUse& use = block_used_[static_cast<size_t>(block)];
    const bool read_only = i < written;
    if (use.forward == forwards_ && !(use.read_only && read_only)) {
      return Violated("a block written by one and used by another"), false;
    }
    use = {forwards_, read_only};
  }
  for (int32_t token : chunk.tokens) {
    if (token < 0 || token >= fake_.vocab) return Violated("a token out of range"), false;
  }
  return true;
}

FakeModel::Slot* FakeModel::SlotAt(const SequenceChunk& chunk, int position) {
  const auto block = static_cast<size_t>(
      chunk.kv_blocks[static_cast<size_t>(position) / static_cast<size_t>(kKvBlockTokens)]);
  return &slots_[block * kKvBlockTokens + static_cast<size_t>(position) % kKvBlockTokens];
}

void FakeModel::RunChunk(const SequenceChunk& chunk) {
  uint64_t chain = 0;
  bool poisoned = false;
  for (int p = 0; p < chunk.position; ++p) {
    const Slot& slot = *SlotAt(chunk, p);
    chain = Chain(chain, slot.token, p);
    if (slot.position != p || slot.chain != chain) {
      Violated("position " + std::to_string(p) + " was written by another sequence, or not at all");
    }
    poisoned = slot.poisoned;
  }
  for (size_t i = 0; i < chunk.tokens.size(); ++i) {
    const int p = chunk.position + static_cast<int>(i);
    chain = Chain(chain, chunk.tokens[i], p);
    poisoned = poisoned || chunk.tokens[i] == fake_.poison_token;
    *SlotAt(chunk, p) = {chunk.tokens[i], p, chain, poisoned};
    const bool last = i + 1 == chunk.tokens.size();
    if (chunk.logits == LogitRows::kAll || (chunk.logits == LogitRows::kLast && last)) {
      const bool repeats = fake_.period > 0 && p + 1 >= fake_.period;
      AppendRow(*SlotAt(chunk, p), repeats ? SlotAt(chunk, p + 1 - fake_.period)->token : -1);
    }
  }
}

void FakeModel::AppendRow(const Slot& slot, int32_t likely) {
  const size_t begin = logits_.size();
  for (int v = 0; v < fake_.vocab; ++v) {
    const uint64_t hash = Mix(slot.chain ^ (static_cast<uint64_t>(v) * 0xD6E8FEB86659FD93ull));
    logits_.push_back(static_cast<float>(hash >> 40) * 0x1.0p-21f - 4.0f);  // [-4, 4)
  }
  for (int32_t eos : fake_.eos_ids) logits_[begin + static_cast<size_t>(eos)] += fake_.eos_bonus;
  if (likely >= 0) logits_[begin + static_cast<size_t>(likely)] += fake_.period_bonus;
  if (slot.poisoned) logits_[begin + 1] = std::numeric_limits<float>::quiet_NaN();
}

std::span<const float> FakeModel::Forward(std::span<const SequenceChunk> chunks) {
  if (on_forward_) on_forward_(chunks);
  logits_.clear();
  if (CheckShape(chunks)) {
    for (const SequenceChunk& chunk : chunks) {
      if (CheckBlocks(chunk)) RunChunk(chunk);
    }
  }
  ++forwards_;
  return logits_;
}

}  // namespace sluice
