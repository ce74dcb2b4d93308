#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/base/check.h"

namespace sluice {
namespace {

bool ServedBefore(const Sequence* a, const Sequence* b) {
  return a->rank < b->rank || (a->rank == b->rank && a->arrival_number < b->arrival_number);
}

bool ServedAfter(const Sequence* a, const Sequence* b) { return ServedBefore(b, a); }

template <class Order>
void InsertSorted(std::vector<Sequence*>* line, Sequence* sequence, Order order) {
  line->insert(std::upper_bound(line->begin(), line->end(), sequence, order), sequence);
}

std::string About(const Sequence& sequence, const char* what) {
  return "sequence " + std::to_string(sequence.spec.id) + " " + what;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      pool_(options.kv_blocks),
      index_(options.kv_blocks, options.block_tokens),
      cost_(options.attention_cost) {
  SLUICE_CHECK(options.block_tokens > 0 && options.prefill_chunk > 0);
  SLUICE_CHECK(options.max_running > 0 && options.max_running <= options.max_batch_tokens,
               "every running sequence must be able to decode in one step");
  SLUICE_CHECK(options.ageing_seconds > 0 && options.max_decode_stall_seconds >= 0);
  const bool all_rows = options.max_rows == 0 || options.max_rows >= options.max_batch_tokens;
  prompt_rows_ = all_rows ? options.max_batch_tokens : options.max_rows - options.max_running;
  SLUICE_CHECK(prompt_rows_ > 0, "prompts whose rows are wanted must get on");
  running_.reserve(static_cast<size_t>(options.max_running));
}

int Scheduler::BlocksFor(int64_t tokens) const {
  return static_cast<int>((tokens + options_.block_tokens - 1) / options_.block_tokens);
}

bool Scheduler::CanEverRun(int64_t prompt_tokens, int64_t max_tokens) const {
  return prompt_tokens + max_tokens <= static_cast<int64_t>(pool_.total()) * options_.block_tokens;
}

const Sequence* Scheduler::Find(SequenceId id) const {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? nullptr : it->second.get();
}

void Scheduler::Add(SequenceSpec spec) {
  SLUICE_CHECK(!in_step_ && !spec.prompt.empty() && spec.max_tokens >= 0);
  SLUICE_CHECK(CanEverRun(static_cast<int64_t>(spec.prompt.size()), spec.max_tokens));
  auto sequence = std::make_unique<Sequence>();
  const double arrival = std::chrono::duration<double>(spec.arrival.time_since_epoch()).count();
  sequence->rank = arrival - static_cast<double>(spec.priority) * options_.ageing_seconds;
  sequence->arrival_number = arrivals_++;
  sequence->tokens = std::move(spec.prompt);
  sequence->prompt_size = sequence->size();
  sequence->spec = std::move(spec);
  const auto [it, added] = sequences_.try_emplace(sequence->spec.id, std::move(sequence));
  SLUICE_CHECK(added, "sequence ids are unique");
  InsertSorted(&waiting_, it->second.get(), ServedAfter);
}

bool Scheduler::Cancel(SequenceId id) {
  SLUICE_CHECK(!in_step_);
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  Remove(it->second.get());
  return true;
}

void Scheduler::ReleaseBlocks(Sequence* sequence) {
  // Backwards, so that the free stack hands them out again in the order of the sequence, and of
  // those kept the last one of a prefix is forgotten first.
  for (size_t i = sequence->blocks.size(); i-- > 0;) pool_.Release(sequence->blocks[i]);
  sequence->blocks.clear();
  sequence->computed = 0;
  sequence->indexed = 0;
}

void Scheduler::Remove(Sequence* sequence) {
  ReleaseBlocks(sequence);
  std::erase(sequence->state == SequenceState::kRunning ? running_ : waiting_, sequence);
  sequences_.erase(sequence->spec.id);
}

void Scheduler::Preempt(Sequence* sequence) {
  SLUICE_CHECK(running_.back() == sequence);
  running_.pop_back();
  ReleaseBlocks(sequence);
  sequence->state = SequenceState::kPreempted;
  ++sequence->preemptions;
  InsertSorted(&waiting_, sequence, ServedAfter);
  batch_.preempted.push_back(sequence->spec.id);
}

// False when the sequence itself had to give way.
bool Scheduler::Grow(Sequence* sequence) {
  const auto needed = static_cast<size_t>(BlocksFor(sequence->size()));
  while (sequence->blocks.size() < needed) {
    const int32_t block = TakeBlock();
    if (block >= 0) {
      sequence->blocks.push_back(block);
      continue;
    }
    Sequence* victim = running_.back();
    Preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

int Scheduler::ChunkTokens(const Sequence& sequence, int computed, int budget) const {
  const int left = sequence.size() - computed;
  int count = std::min({options_.prefill_chunk, left, budget});
  if (count > 0) {
    // The first prompt of a step goes on by a token at least.
    const int least = batch_.prompt_tokens == 0 ? 1 : 0;
    count = std::min(count, std::max(cost_.Tokens(computed, prompt_work_left_), least));
  }
  const bool rows = sequence.spec.prompt_rows &&
                    std::max(sequence.prompt_rows_done, computed) < sequence.prompt_size - 1;
  return rows ? std::min(count, prompt_rows_left_) : count;
}

void Scheduler::AddChunk(const Sequence& sequence, int count, bool decode) {
  ScheduledChunk& chunk = batch_.chunks.emplace_back();
  const int end = sequence.computed + count;
  chunk.id = sequence.spec.id;
  chunk.tokens = std::span(sequence.tokens)
                     .subspan(static_cast<size_t>(sequence.computed), static_cast<size_t>(count));
  chunk.position = sequence.computed;
  chunk.kv_blocks = std::span(sequence.blocks).first(static_cast<size_t>(BlocksFor(end)));
  chunk.samples = end == sequence.size() && sequence.generated() < sequence.spec.max_tokens;
  chunk.sample_index = sequence.generated();
  if (chunk.samples) chunk.rows = RowsWanted::kLast;
  if (sequence.spec.prompt_rows) {
    // The prompt's last row predicts no prompt token.
    const int begin = std::max(sequence.prompt_rows_done, sequence.computed);
    const int limit = std::min(sequence.prompt_size - 1, end);
    if (begin < limit) {
      chunk.rows = RowsWanted::kAll;
      prompt_rows_left_ -= count;
      chunk.prompt_rows_begin = begin - sequence.computed;
      chunk.prompt_rows_end = limit - sequence.computed;
    }
  }
  chunk.cached_tokens = sequence.cached;
  batch_.tokens += count;
  const double work = cost_.Work(sequence.computed, count);
  if (decode) {
    decode_work_ += work;
    return;
  }
  batch_.prompt_tokens += count;
  prompt_work_ += work;
  prompt_work_left_ -= work;
  prefilling_.push_back(&sequence);
}

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

// False when nobody behind it may be admitted in this step either.
bool Scheduler::Admit(Sequence* sequence, int* budget) {
  MatchPrefix(*sequence);
  if (IsBeingComputed(*sequence, matched_)) return true;
  const auto idle = std::count_if(matched_.begin(), matched_.end(),
                                  [this](int32_t block) { return pool_.references(block) == 0; });
  const int64_t most = sequence->prompt_size + static_cast<int64_t>(sequence->spec.max_tokens);
  const int needed =
      BlocksFor(std::min<int64_t>(sequence->size() + 1, most)) - static_cast<int>(matched_.size());
  if (pool_.free() - static_cast<int>(idle) < needed + running()) return false;
  const bool first = sequence->state == SequenceState::kWaiting;
  const int known = static_cast<int>(matched_.size()) * options_.block_tokens;
  const int count = ChunkTokens(*sequence, known, *budget);
  if (count == 0) return false;
  if (first) {
    batch_.first_scheduled.push_back(sequence->spec.id);
    if (options_.prefix_cache) {
      prefix_stats_.queried_tokens += static_cast<uint64_t>(sequence->prompt_size);
    }
  }
  std::erase(waiting_, sequence);
  sequence->state = SequenceState::kRunning;
  TakeMatched(sequence);
  const auto blocks = static_cast<size_t>(BlocksFor(sequence->size()));
  while (sequence->blocks.size() < blocks) sequence->blocks.push_back(TakeBlock());
  InsertSorted(&running_, sequence, ServedBefore);
  AddChunk(*sequence, count, /*decode=*/false);
  *budget -= count;
  return true;
}

void Scheduler::AdmitWaiting(int* budget) {
  // Who is admitted leaves the line: what is behind moves up.
  for (size_t behind = 0; behind < waiting_.size();) {
    if (*budget == 0 || running() >= options_.max_running) return;
    const size_t before = waiting_.size();
    if (!Admit(waiting_[before - 1 - behind], budget)) return;
    if (waiting_.size() == before) ++behind;
  }
}

const Batch& Scheduler::Schedule() {
  SLUICE_CHECK(!in_step_, "Commit the step before");
  batch_.chunks.clear();
  batch_.first_scheduled.clear();
  batch_.preempted.clear();
  batch_.tokens = batch_.prompt_tokens = 0;
  decode_work_ = prompt_work_ = 0;
  prefilling_.clear();
  prompt_rows_left_ = prompt_rows_;
  // A victim always has a larger rank than the sequence that grows, so it is behind `i` and not yet
  // in the batch.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    if (sequence->computed + 1 != sequence->size()) continue;
    if (!Grow(sequence)) break;
    AddChunk(*sequence, 1, /*decode=*/true);
  }
  const bool bounded = options_.max_decode_stall_seconds > 0 && decode_work_ > 0;
  prompt_work_left_ =
      bounded ? cost_.PromptWork(decode_work_, options_.max_decode_stall_seconds, offloaded_)
              : std::numeric_limits<double>::infinity();
  int budget = options_.max_batch_tokens - batch_.tokens;
  for (Sequence* sequence : running_) {
    const int left = sequence->size() - sequence->computed;
    if (left == 1) continue;
    if (budget == 0) break;
    if (options_.prefix_cache && sequence->computed < sequence->prompt_size) {
      MatchPrefix(*sequence);
      TakeMatched(sequence);
      const auto indexed = static_cast<size_t>(sequence->indexed);
      if (IsBeingComputed(*sequence, std::span(sequence->blocks).first(indexed))) continue;
    }
    const int count = ChunkTokens(*sequence, sequence->computed, budget);
    if (count == 0) continue;
    AddChunk(*sequence, count, /*decode=*/false);
    budget -= count;
  }
  if (batch_.preempted.empty()) AdmitWaiting(&budget);
  SLUICE_CHECK(!batch_.chunks.empty() || sequences_.empty(), "someone waits and nothing runs");
  in_step_ = !batch_.chunks.empty();
  return batch_;
}

void Scheduler::Commit(std::span<const ChunkResult> results, std::vector<SequenceEnd>* ends) {
  SLUICE_CHECK(in_step_ && results.size() == batch_.chunks.size());
  in_step_ = false;
  ends->clear();
  for (size_t i = 0; i < results.size(); ++i) {
    const ScheduledChunk& chunk = batch_.chunks[i];
    Sequence* sequence = sequences_.find(chunk.id)->second.get();
    sequence->computed += static_cast<int>(chunk.tokens.size());
    if (chunk.rows == RowsWanted::kAll) {
      sequence->prompt_rows_done = chunk.position + chunk.prompt_rows_end;
    }
    if (!results[i].failed) IndexBlocks(sequence);
    if (results[i].failed) {
      ends->push_back({chunk.id, EndReason::kFailed});
    } else if (chunk.samples) {
      SLUICE_CHECK(results[i].token >= 0, "the chunk samples: a token is due");
      sequence->tokens.push_back(results[i].token);
      const auto& endings = sequence->spec.ending_ids;
      if (std::find(endings.begin(), endings.end(), results[i].token) != endings.end()) {
        ends->push_back({chunk.id, EndReason::kStop});
      } else if (sequence->generated() >= sequence->spec.max_tokens) {
        ends->push_back({chunk.id, EndReason::kLength});
      }
    } else if (sequence->computed == sequence->size()) {
      ends->push_back({chunk.id, EndReason::kLength});  // max_tokens is 0
    }
  }
  for (const SequenceEnd& end : *ends) Remove(sequences_.find(end.id)->second.get());
}

void Scheduler::ObserveStep(double seconds) {
  SLUICE_CHECK(!in_step_);
  if (options_.max_decode_stall_seconds > 0 && decode_work_ > 0 && prompt_work_ > 0 &&
      seconds - cost_.AtLeast(decode_work_) > options_.max_decode_stall_seconds) {
    ++stalls_;
  }
  cost_.Observe(decode_work_ + prompt_work_, prompt_work_, seconds);
}

std::string Scheduler::CheckSequence(const Sequence& s) const {
  const bool runs = s.state == SequenceState::kRunning;
  const auto& line = runs ? running_ : waiting_;
  if (std::count(line.begin(), line.end(), &s) != 1) return About(s, "is not in its line once");
  if (s.prompt_size < 1 || s.prompt_size > s.size()) return About(s, "lost its prompt");
  if (s.generated() > s.spec.max_tokens) return About(s, "generated more than max_tokens");
  if (s.state == SequenceState::kWaiting && s.generated() != 0) return About(s, "ran unseen");
  if (!runs) {
    if (!s.blocks.empty()) return About(s, "does not run but holds blocks");
    if (s.computed != 0) return About(s, "does not run but counts computed tokens");
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
  std::vector<int> holders(static_cast<size_t>(pool_.total()), 0);
  for (const auto& [id, sequence] : sequences_) {
    if (id != sequence->spec.id) return "a sequence is filed under another id";
    if (std::string wrong = CheckSequence(*sequence); !wrong.empty()) return wrong;
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
  if (running_.size() + waiting_.size() != sequences_.size()) return "a line holds a stranger";
  if (running() > options_.max_running) return "more sequences run than max_running";
  if (!std::is_sorted(running_.begin(), running_.end(), ServedBefore)) return "running: disorder";
  if (!std::is_sorted(waiting_.begin(), waiting_.end(), ServedAfter)) return "waiting: disorder";
  return {};
}

}  // namespace sluice
