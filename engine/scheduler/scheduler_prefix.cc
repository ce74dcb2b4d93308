// The scheduler's side of the prefix cache: which blocks a sequence begins with, and which become
// known.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/scheduler/scheduler.h"

namespace sluice {

int32_t Scheduler::TakeBlock() {
  const int32_t block = pool_.Allocate();
  if (block < 0 || !index_.Contains(block)) return block;
  index_.Erase(block);
  ++prefix_stats_.evicted_blocks;
  return block;
}

int Scheduler::MostCached(const Sequence& sequence) const {
  if (!options_.prefix_cache) return 0;
  // The last token is computed for its row, and so is every token whose row is still wanted.
  const bool rows =
      sequence.spec.prompt_rows && sequence.prompt_rows_done < sequence.prompt_size - 1;
  return rows ? sequence.prompt_rows_done : sequence.size() - 1;
}

void Scheduler::MatchPrefix(const Sequence& sequence) {
  matched_.clear();
  const auto block_tokens = static_cast<size_t>(options_.block_tokens);
  const size_t most = static_cast<size_t>(MostCached(sequence)) / block_tokens;
  auto at = static_cast<size_t>(sequence.indexed);
  int32_t parent = at == 0 ? -1 : sequence.blocks[at - 1];
  for (; at < most; ++at) {
    const auto tokens = std::span(sequence.tokens).subspan(at * block_tokens, block_tokens);
    const int32_t block = index_.Find(sequence.spec.prefix_key, parent, tokens);
    if (block < 0) return;
    matched_.push_back(block);
    parent = block;
  }
}

void Scheduler::TakeMatched(Sequence* sequence) {
  for (int32_t block : matched_) {
    const auto at = static_cast<size_t>(sequence->indexed);
    pool_.AddReference(block);
    if (at < sequence->blocks.size()) {
      pool_.Release(sequence->blocks[at]);
      sequence->blocks[at] = block;
    } else {
      sequence->blocks.push_back(block);
    }
    const int end = ++sequence->indexed * options_.block_tokens;
    if (sequence->preemptions == 0) {
      const int hit = std::min(end, sequence->prompt_size) -
                      std::min(sequence->computed, sequence->prompt_size);
      sequence->cached += hit;
      prefix_stats_.hit_tokens += static_cast<uint64_t>(hit);
    }
    sequence->computed = end;
  }
}

bool Scheduler::IsBeingComputed(const Sequence& sequence, std::span<const int32_t> blocks) const {
  const auto block_tokens = static_cast<size_t>(options_.block_tokens);
  const size_t begin = blocks.size() * block_tokens;
  if (begin + block_tokens > static_cast<size_t>(MostCached(sequence))) return false;
  const auto wanted = std::span(sequence.tokens).subspan(begin, block_tokens);
  return std::any_of(prefilling_.begin(), prefilling_.end(), [&](const Sequence* other) {
    if (other->spec.prefix_key != sequence.spec.prefix_key) return false;
    if (static_cast<size_t>(other->indexed) != blocks.size()) return false;
    if (!blocks.empty() && other->blocks[blocks.size() - 1] != blocks.back()) return false;
    if (begin + block_tokens > other->tokens.size()) return false;
    const auto theirs = std::span(other->tokens).subspan(begin, block_tokens);
    return std::equal(wanted.begin(), wanted.end(), theirs.begin());
  });
}

void Scheduler::IndexBlocks(Sequence* sequence) {
  if (!options_.prefix_cache) return;
  const auto block_tokens = static_cast<size_t>(options_.block_tokens);
  const auto full = static_cast<size_t>(sequence->computed) / block_tokens;
  for (auto at = static_cast<size_t>(sequence->indexed); at < full; ++at) {
    const int32_t parent = at == 0 ? -1 : sequence->blocks[at - 1];
    const auto tokens = std::span(sequence->tokens).subspan(at * block_tokens, block_tokens);
    int32_t& block = sequence->blocks[at];
    const int32_t known = index_.Find(sequence->spec.prefix_key, parent, tokens);
    if (known < 0) {
      index_.Insert(sequence->spec.prefix_key, parent, tokens, block);
      pool_.Keep(block);
    } else {
      pool_.AddReference(known);
      pool_.Release(block);
      block = known;
    }
    ++sequence->indexed;
  }
}

int32_t Scheduler::RestoreBlock(uint64_t key, int32_t parent, std::span<const int32_t> tokens) {
  SLUICE_CHECK(sequences_.empty() && !in_step_);
  if (!options_.prefix_cache || pool_.free() == 0) return -1;
  if (index_.Find(key, parent, tokens) >= 0) return -1;
  const int32_t block = pool_.Allocate();
  index_.Insert(key, parent, tokens, block);
  pool_.Keep(block);
  restored_.push_back(block);
  return block;
}

void Scheduler::EndRestore() {
  // The last to be let go is the last to be taken.
  while (!restored_.empty()) {
    pool_.Release(restored_.back());
    restored_.pop_back();
  }
}

}  // namespace sluice
