// The scheduler's invariants, for tests.
#include <algorithm>

#include "engine/scheduler/scheduler.h"

namespace sluice {
namespace {

std::string About(const Sequence& sequence, const char* what) {
  return "sequence " + std::to_string(sequence.spec.id) + " " + what;
}

}  // namespace

std::string Scheduler::CheckSequence(const Sequence& s) const {
  if (s.preemptions > 1) return About(s, "was preempted more than once");
  const bool runs = s.state == SequenceState::kRunning;
  const auto& line = runs ? running_ : waiting_;
  if (std::count(line.begin(), line.end(), &s) != 1) return About(s, "is not in its line once");
  if (s.prompt_size < 1 || s.prompt_size > s.size()) return About(s, "lost its prompt");
  if (s.generated() > s.spec.max_tokens) return About(s, "generated more than max_tokens");
  if (s.state == SequenceState::kWaiting && s.generated() != 0) return About(s, "ran unseen");
  if (!runs) {
    if (!s.blocks.empty()) return About(s, "does not run but holds blocks");
    if (s.computed != 0) return About(s, "does not run but counts computed tokens");
    if (s.promised) return About(s, "does not run but has a promise");
    return {};
  }
  const int full = options_.prefix_cache ? s.computed / options_.block_tokens : 0;
  if (s.indexed != full) return About(s, "has full blocks that are not indexed");
  for (int i = 0; i < s.indexed; ++i) {
    const int32_t parent = i == 0 ? -1 : s.blocks[static_cast<size_t>(i - 1)];
    const auto tokens = std::span(s.tokens).subspan(static_cast<size_t>(i * options_.block_tokens),
                                                    static_cast<size_t>(options_.block_tokens));
    if (index_.Find(s.spec.prefix_key, parent, tokens) != s.blocks[static_cast<size_t>(i)]) {
      return About(s, "holds a block under another name than its tokens");
    }
  }
  if (s.computed < 0 || s.computed >= s.size()) return About(s, "runs with nothing to compute");
  const auto held = static_cast<int>(s.blocks.size());
  if (held < BlocksFor(s.size() - 1)) return About(s, "runs without blocks for its tokens");
  if (held > BlocksFor(s.size())) return About(s, "holds blocks that it does not need");
  return {};
}

std::string Scheduler::CheckInvariants() const {
  if (std::string wrong = pool_.CheckInvariants(); !wrong.empty()) return wrong;
  if (std::string wrong = index_.CheckInvariants(); !wrong.empty()) return wrong;
  if (in_step_) return "a step is open";
  int promised = 0;
  std::vector<int> sequences_of(accounts_.size(), 0), running_of(accounts_.size(), 0);
  std::vector<int> holders(static_cast<size_t>(pool_.total()), 0);
  for (const auto& [id, sequence] : sequences_) {
    if (id != sequence->spec.id) return "a sequence is filed under another id";
    if (std::string wrong = CheckSequence(*sequence); !wrong.empty()) return wrong;
    const auto whose = static_cast<size_t>(sequence->spec.account);
    ++sequences_of[whose];
    running_of[whose] += sequence->state == SequenceState::kRunning;
    if (sequence->promised) promised += BlocksToCome(*sequence);
    for (int32_t block : sequence->blocks) {
      if (block < 0 || block >= pool_.total()) return About(*sequence, "holds no real block");
      ++holders[static_cast<size_t>(block)];
    }
  }
  for (int32_t block = 0; block < pool_.total(); ++block) {
    if (pool_.kept(block) != index_.Contains(block)) {
      return "block " + std::to_string(block) + " is kept without a name, or named and not kept";
    }
    if (holders[static_cast<size_t>(block)] != pool_.references(block)) {
      return "block " + std::to_string(block) + " has " +
             std::to_string(holders[static_cast<size_t>(block)]) + " holders but counts " +
             std::to_string(pool_.references(block));
    }
  }
  if (promised != promised_) return "promises are miscounted";
  if (promised_ > pool_.free()) return "more blocks are promised than free";
  for (size_t i = 0; i < accounts_.size(); ++i) {
    if (accounts_[i].sequences != sequences_of[i] || accounts_[i].running != running_of[i]) {
      return "account " + std::to_string(i) + " has lost count";
    }
  }
  if (running_.size() + waiting_.size() != sequences_.size()) return "a line holds a stranger";
  if (running() > options_.max_running) return "more sequences run than max_running";
  if (!std::is_sorted(running_.begin(), running_.end(), ServedBefore)) return "running: disorder";
  if (!std::is_sorted(waiting_.begin(), waiting_.end(), ServedAfter)) return "waiting: disorder";
  return {};
}

}  // namespace sluice
