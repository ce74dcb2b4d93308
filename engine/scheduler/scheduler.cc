#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/base/check.h"

namespace sluice {
namespace {

template <class Order>
void InsertSorted(std::vector<Sequence*>* line, Sequence* sequence, Order order) {
  line->insert(std::upper_bound(line->begin(), line->end(), sequence, order), sequence);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      pool_(options.kv_blocks),
      index_(options.kv_blocks, options.block_tokens),
      cost_(options.attention_cost, options.expert_touch) {
  SLUICE_CHECK(options.block_tokens > 0 && options.prefill_chunk > 0);
  SLUICE_CHECK(options.max_running > 0 && options.max_running <= options.max_batch_tokens,
               "every running sequence must be able to decode in one step");
  SLUICE_CHECK(options.ageing_seconds > 0 && options.max_decode_stall_seconds >= 0);
  const bool all_rows = options.max_rows == 0 || options.max_rows >= options.max_batch_tokens;
  prompt_rows_ = all_rows ? options.max_batch_tokens : options.max_rows - options.max_running;
  SLUICE_CHECK(prompt_rows_ > 0, "prompts whose rows are wanted must get on");
  running_.reserve(static_cast<size_t>(options.max_running));
  SLUICE_CHECK(!options.account_weights.empty(), "everyone has an account");
  for (double weight : options.account_weights) {
    SLUICE_CHECK(weight > 0);
    accounts_.emplace_back().weight = weight;
  }
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
  SLUICE_CHECK(spec.account >= 0 && static_cast<size_t>(spec.account) < accounts_.size());
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
  Account& owner = account(*it->second);
  if (owner.sequences++ > 0) return;
  double least = std::numeric_limits<double>::infinity();
  for (const Account& other : accounts_) {
    if (other.sequences > 0 && &other != &owner) least = std::min(least, other.served);
  }
  if (least < std::numeric_limits<double>::infinity()) owner.served = std::max(owner.served, least);
}

int Scheduler::BlocksToCome(const Sequence& sequence) const {
  const int64_t most = sequence.prompt_size + static_cast<int64_t>(sequence.spec.max_tokens);
  return BlocksFor(most) - static_cast<int>(sequence.blocks.size());
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
  if (sequence->promised) promised_ -= BlocksToCome(*sequence);
  sequence->promised = false;
  for (size_t i = sequence->blocks.size(); i-- > 0;) pool_.Release(sequence->blocks[i]);
  sequence->blocks.clear();
  sequence->computed = 0;
  sequence->indexed = 0;
}

void Scheduler::Remove(Sequence* sequence) {
  ReleaseBlocks(sequence);
  nobody_fits_ = false;
  const bool runs = sequence->state == SequenceState::kRunning;
  std::erase(runs ? running_ : waiting_, sequence);
  account(*sequence).running -= runs;
  --account(*sequence).sequences;
  sequences_.erase(sequence->spec.id);
}

void Scheduler::Preempt(Sequence* sequence) {
  SLUICE_CHECK(!sequence->promised, "it may not be preempted again");
  std::erase(running_, sequence);
  --account(*sequence).running;
  ReleaseBlocks(sequence);
  sequence->state = SequenceState::kPreempted;
  ++sequence->preemptions;
  InsertSorted(&waiting_, sequence, ServedAfter);
  batch_.preempted.push_back(sequence->spec.id);
}

bool Scheduler::LessServed(const Account& a, const Account& b) {
  if (a.served != b.served) return a.served < b.served;
  return a.running / a.weight < b.running / b.weight;
}

Sequence* Scheduler::Victim() {
  Sequence* victim = nullptr;
  double most = -1;
  for (const Account& candidate : accounts_) {
    if (candidate.running == 0) continue;
    size_t blocks = 0;
    Sequence* last = nullptr;
    for (Sequence* sequence : running_) {
      if (&account(*sequence) != &candidate) continue;
      blocks += sequence->blocks.size();
      if (!sequence->promised) last = sequence;  // in order of rank
    }
    const double held = static_cast<double>(blocks) / candidate.weight;
    if (last == nullptr || held < most) continue;
    if (held == most && ServedAfter(victim, last)) continue;
    victim = last;
    most = held;
  }
  SLUICE_CHECK(victim != nullptr, "who grows without a promise can give way itself");
  return victim;
}

// False when the sequence itself had to give way.
bool Scheduler::Grow(Sequence* sequence) {
  const auto needed = static_cast<size_t>(BlocksFor(sequence->size()));
  while (sequence->blocks.size() < needed) {
    if (sequence->promised || pool_.free() > promised_) {
      sequence->blocks.push_back(TakeBlock());
      promised_ -= sequence->promised;
      continue;
    }
    Sequence* victim = Victim();
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
  account(sequence).served += count / account(sequence).weight;
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

int Scheduler::BlocksMissing(const Sequence& sequence) const {
  const bool again = sequence.preemptions > 0;
  const int64_t most = sequence.prompt_size + static_cast<int64_t>(sequence.spec.max_tokens);
  const int64_t tokens = again ? most : std::min<int64_t>(sequence.size() + 1, most);
  const auto idle = std::count_if(matched_.begin(), matched_.end(),
                                  [this](int32_t block) { return pool_.references(block) == 0; });
  const auto spare = std::count_if(running_.begin(), running_.end(),
                                   [](const Sequence* s) { return !s->promised; });
  const int needed = BlocksFor(tokens) - static_cast<int>(matched_.size());
  return needed + static_cast<int>(spare + idle) - (pool_.free() - promised_);
}

// The waiting account that was served least gets a place and blocks from accounts that run more
// for their weight than it would: so many sequences are preempted, last in rank first, or none.
void Scheduler::MakeRoom() {
  if (accounts_.size() == 1 || waiting_.empty()) return;
  const Sequence* head = nullptr;
  for (size_t i = waiting_.size(); i-- > 0;) {
    const Sequence* sequence = waiting_[i];
    if (head == nullptr || LessServed(account(*sequence), account(*head))) head = sequence;
  }
  Account& owner = account(*head);
  MatchPrefix(*head);
  int missing = BlocksMissing(*head);
  bool place = running() < options_.max_running;
  if (missing <= 0 && place) return;
  const double share = (owner.running + 1) / owner.weight;
  for (Account& other : accounts_) other.next = 0;  // preempted so far
  victims_.clear();
  for (size_t i = running_.size(); i-- > 0 && (missing > 0 || !place);) {
    Sequence* sequence = running_[i];
    Account& other = account(*sequence);
    const int left = other.running - static_cast<int>(other.next) - 1;
    if (sequence->promised || &other == &owner || left / other.weight < share) continue;
    ++other.next;
    place = true;
    missing -= 1 + static_cast<int>(std::count_if(
                       sequence->blocks.begin(), sequence->blocks.end(),
                       [this](int32_t block) { return pool_.references(block) == 1; }));
    victims_.push_back(sequence);
  }
  if (missing > 0 || !place) return;
  for (Sequence* sequence : victims_) Preempt(sequence);
}

// False when nobody behind it may be admitted in this step either.
bool Scheduler::Admit(Sequence* sequence, int* budget) {
  if (running() >= options_.max_running) return false;
  MatchPrefix(*sequence);
  if (IsBeingComputed(*sequence, matched_)) return true;
  if (BlocksMissing(*sequence) > 0) return false;
  const int known = static_cast<int>(matched_.size()) * options_.block_tokens;
  const int count = ChunkTokens(*sequence, known, *budget);
  if (count == 0) return false;
  if (sequence->state == SequenceState::kWaiting) {
    batch_.first_scheduled.push_back(sequence->spec.id);
    if (options_.prefix_cache) {
      prefix_stats_.queried_tokens += static_cast<uint64_t>(sequence->prompt_size);
    }
  }
  std::erase(waiting_, sequence);
  ++account(*sequence).running;
  sequence->state = SequenceState::kRunning;
  TakeMatched(sequence);
  const auto blocks = static_cast<size_t>(BlocksFor(sequence->size()));
  while (sequence->blocks.size() < blocks) sequence->blocks.push_back(TakeBlock());
  sequence->promised = sequence->preemptions > 0;
  if (sequence->promised) promised_ += BlocksToCome(*sequence);
  InsertSorted(&running_, sequence, ServedBefore);
  AddChunk(*sequence, count, /*decode=*/false);
  *budget -= count;
  return true;
}

void Scheduler::ChooseDecoders() {
  decoders_.clear();
  decoder_ids_.clear();
  for (Sequence* sequence : running_) {
    sequence->left_out = false;
    if (!sequence->decodes()) continue;
    decoders_.push_back(sequence);
    decoder_ids_.push_back(sequence->spec.id);
  }
  // A prompt touches most experts, so that decodes beside it cost little.
  const bool prompts = decoders_.size() < running_.size() ||
                       (!waiting_.empty() && running() < options_.max_running && !nobody_fits_);
  if (former_ == nullptr || prompts || decoders_.size() < 2) return;
  chosen_.assign(decoders_.size(), 1);
  former_->Choose(decoder_ids_, chosen_);
  for (size_t i = 0; i < decoders_.size(); ++i) decoders_[i]->left_out = chosen_[i] == 0;
}

bool Scheduler::Decode() {
  const size_t before = batch_.preempted.size();
  // Who grows may preempt who has grown: chunks are made when all have.
  for (size_t i = 0; i < running_.size();) {
    Sequence* sequence = running_[i];
    if (sequence->decodes() && !sequence->left_out) Grow(sequence);
    // Sequences before it may be gone, and so may itself.
    i = static_cast<size_t>(
        std::upper_bound(running_.begin(), running_.end(), sequence, ServedBefore) -
        running_.begin());
  }
  drafted_.clear();
  for (Sequence* sequence : running_) {
    if (!sequence->decodes() || sequence->left_out) continue;
    AddChunk(*sequence, 1, /*decode=*/true);
    drafted_.push_back(sequence);
  }
  return batch_.preempted.size() == before;
}

bool Scheduler::DecodeChosen() {
  ChooseDecoders();
  bool all_kept = Decode();
  // All of those chosen may have had to give way.
  if (batch_.chunks.empty() && !running_.empty()) {
    for (Sequence* sequence : running_) sequence->left_out = false;
    all_kept = Decode() && all_kept;
  }
  return all_kept;
}

void Scheduler::PlanDrafts() {
  planned_drafts_ = 0;
  drafts_.assign(drafted_.size(), {});
  if (draft_source_ == nullptr || drafted_.empty()) return;
  const int most = std::min(prompt_rows_ / 2, (options_.max_batch_tokens - batch_.tokens) / 2);
  draft_limits_.clear();
  for (const Sequence* sequence : drafted_) {
    // The token after the draft is due, too.
    draft_limits_.push_back(std::max(0, sequence->spec.max_tokens - sequence->generated() - 1));
  }
  draft_source_->Draft(drafted_, draft_limits_, most, drafts_);
  for (size_t i = 0; i < drafted_.size(); ++i) {
    const int count = static_cast<int>(drafts_[i].size());
    SLUICE_CHECK(count <= draft_limits_[i]);
    planned_drafts_ += count;
    decode_work_ += cost_.Work(drafted_[i]->size(), count);
  }
  SLUICE_CHECK(planned_drafts_ <= std::max(most, 0));
  prompt_rows_left_ -= planned_drafts_;
}

int Scheduler::GrowForDraft(Sequence* sequence, int count) {
  const auto needed = static_cast<size_t>(BlocksFor(int64_t{sequence->size()} + count));
  while (sequence->blocks.size() < needed && (sequence->promised || pool_.free() > promised_)) {
    sequence->blocks.push_back(TakeBlock());
    promised_ -= sequence->promised;
  }
  const int room = static_cast<int>(sequence->blocks.size()) * options_.block_tokens;
  return std::min(count, room - sequence->size());
}

void Scheduler::AddDrafts() {
  if (planned_drafts_ == 0) return;
  draft_tokens_.clear();
  // The spans into it must stay.
  draft_tokens_.reserve(static_cast<size_t>(2 * options_.max_batch_tokens));
  for (size_t i = 0; i < drafted_.size(); ++i) {
    if (drafts_[i].empty()) continue;
    Sequence* sequence = drafted_[i];
    const int planned = static_cast<int>(drafts_[i].size());
    const int count = GrowForDraft(sequence, planned);
    const int size = sequence->size();
    decode_work_ -= cost_.Work(size + count, planned - count);
    if (count == 0) continue;
    ScheduledChunk& chunk = batch_.chunks[i];
    chunk.kv_blocks =
        std::span(sequence->blocks).first(static_cast<size_t>(BlocksFor(size + count)));
    const size_t begin = draft_tokens_.size();
    draft_tokens_.push_back(sequence->tokens.back());
    draft_tokens_.insert(draft_tokens_.end(), drafts_[i].begin(), drafts_[i].begin() + count);
    chunk.tokens = std::span(draft_tokens_).subspan(begin);
    chunk.rows = RowsWanted::kAll;
    chunk.drafts = count;
    batch_.tokens += count;
    batch_.draft_tokens += count;
  }
}

void Scheduler::GoOn(Sequence* sequence, int* budget) {
  if (options_.prefix_cache && sequence->computed < sequence->prompt_size) {
    MatchPrefix(*sequence);
    TakeMatched(sequence);
    const auto indexed = static_cast<size_t>(sequence->indexed);
    if (IsBeingComputed(*sequence, std::span(sequence->blocks).first(indexed))) return;
  }
  const int count = ChunkTokens(*sequence, sequence->computed, *budget);
  if (count == 0) return;
  AddChunk(*sequence, count, /*decode=*/false);
  *budget -= count;
}

void Scheduler::AddPrompts(bool admit) {
  for (Account& each : accounts_) {
    each.candidates.clear();
    each.next = 0;
  }
  for (Sequence* sequence : running_) {
    if (sequence->computed + 1 < sequence->size()) {
      account(*sequence).candidates.push_back(sequence);
    }
  }
  for (size_t i = waiting_.size(); i-- > 0;) {
    account(*waiting_[i]).candidates.push_back(waiting_[i]);
  }
  const auto goes_before = [](const Account& a, const Account& b) {
    if (LessServed(a, b) || LessServed(b, a)) return LessServed(a, b);
    return ServedBefore(a.candidates[a.next], b.candidates[b.next]);
  };
  for (int budget = options_.max_batch_tokens - batch_.tokens - planned_drafts_; budget > 0;) {
    Account* first = nullptr;
    for (Account& each : accounts_) {
      if (each.next == each.candidates.size()) continue;
      if (first == nullptr || goes_before(each, *first)) first = &each;
    }
    if (first == nullptr) return;
    Sequence* sequence = first->candidates[first->next++];
    if (sequence->state == SequenceState::kRunning) {
      GoOn(sequence, &budget);
    } else if (admit) {
      admit = Admit(sequence, &budget);
    }
  }
}

const Batch& Scheduler::Schedule() {
  SLUICE_CHECK(!in_step_, "Commit the step before");
  batch_.chunks.clear();
  batch_.first_scheduled.clear();
  batch_.preempted.clear();
  batch_.tokens = batch_.prompt_tokens = batch_.draft_tokens = 0;
  decode_work_ = prompt_work_ = 0;
  prefilling_.clear();
  prompt_rows_left_ = prompt_rows_;
  MakeRoom();
  const bool admit = DecodeChosen();
  PlanDrafts();
  const bool bounded = options_.max_decode_stall_seconds > 0 && decode_work_ > 0;
  prompt_work_left_ =
      bounded ? cost_.PromptWork(decode_work_, options_.max_decode_stall_seconds, offloaded_)
              : std::numeric_limits<double>::infinity();
  AddPrompts(admit);
  AddDrafts();
  SLUICE_CHECK(!batch_.chunks.empty() || sequences_.empty(), "someone waits and nothing runs");
  in_step_ = !batch_.chunks.empty();
  nobody_fits_ = !waiting_.empty() && batch_.prompt_tokens == 0;
  return batch_;
}

void Scheduler::Commit(std::span<const ChunkResult> results, std::vector<SequenceEnd>* ends) {
  SLUICE_CHECK(in_step_ && results.size() == batch_.chunks.size());
  in_step_ = false;
  ends->clear();
  for (size_t i = 0; i < results.size(); ++i) {
    const ScheduledChunk& chunk = batch_.chunks[i];
    Sequence* sequence = sequences_.find(chunk.id)->second.get();
    if (chunk.prompt_rows_begin < chunk.prompt_rows_end) {
      sequence->prompt_rows_done = chunk.position + chunk.prompt_rows_end;
    }
    if (results[i].failed) {
      ends->push_back({chunk.id, EndReason::kFailed});
      continue;
    }
    const int rejected = chunk.drafts - results[i].accepted;
    SLUICE_CHECK(results[i].accepted >= 0 && rejected >= 0);
    sequence->computed += static_cast<int>(chunk.tokens.size()) - rejected;
    account(*sequence).served += results[i].accepted / account(*sequence).weight;
    const auto end = chunk.samples ? Append(chunk, results[i], sequence) : std::nullopt;
    IndexBlocks(sequence);
    TrimBlocks(sequence);
    if (end) {
      ends->push_back({chunk.id, *end});
    } else if (sequence->computed == sequence->size()) {
      ends->push_back({chunk.id, EndReason::kLength});  // max_tokens is 0
    }
  }
  for (const SequenceEnd& end : *ends) Remove(sequences_.find(end.id)->second.get());
}

std::optional<EndReason> Scheduler::Append(const ScheduledChunk& chunk, const ChunkResult& result,
                                           Sequence* sequence) {
  SLUICE_CHECK(result.token >= 0, "the chunk samples: a token is due");
  const auto& endings = sequence->spec.ending_ids;
  const auto ends = [&](int32_t token) {
    return std::find(endings.begin(), endings.end(), token) != endings.end();
  };
  const size_t accepted = static_cast<size_t>(result.accepted);
  for (const int32_t token : chunk.tokens.last(static_cast<size_t>(chunk.drafts)).first(accepted)) {
    SLUICE_CHECK(!ends(token), "a token that ends the sequence is its last");
    sequence->tokens.push_back(token);
  }
  sequence->tokens.push_back(result.token);
  if (ends(result.token)) return EndReason::kStop;
  if (sequence->generated() >= sequence->spec.max_tokens) return EndReason::kLength;
  return std::nullopt;
}

void Scheduler::TrimBlocks(Sequence* sequence) {
  const auto needed = static_cast<size_t>(BlocksFor(sequence->size()));
  while (sequence->blocks.size() > needed) {
    pool_.Release(sequence->blocks.back());
    sequence->blocks.pop_back();
    promised_ += sequence->promised;
  }
}

void Scheduler::ObserveStep(double seconds) {
  SLUICE_CHECK(!in_step_);
  if (options_.max_decode_stall_seconds > 0 && decode_work_ > 0 && prompt_work_ > 0 &&
      seconds - cost_.Usual(decode_work_) > options_.max_decode_stall_seconds) {
    ++stalls_;
  }
  cost_.Observe(decode_work_ + prompt_work_, prompt_work_, seconds);
}

}  // namespace sluice
