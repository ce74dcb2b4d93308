// Decides what runs in the next step. It deals in ids, token counts and KvBlock numbers; tensors,
// sampling and sinks are elsewhere.
//
// Contract: Add and Cancel at any time outside a step; Schedule opens a step, Commit closes it.
//
//   const Batch& batch = scheduler.Schedule();
//   ... Forward and sample, one ChunkResult per chunk ...
//   scheduler.Commit(results, &ends);
//
// Order
//   Within one account (an API key) a sequence's rank is arrival - priority * ageing, in seconds;
//   the smaller rank is served first, equal ranks in order of arrival. All who wait age alike, so
//   the order of two sequences never changes, and one with a priority lower by p is overtaken only
//   by those that arrive within p * ageing after it: nobody starves.
//
//   Between accounts: deficit by tokens. Every computed token, prompt or decode, is charged to its
//   account, divided by the account's weight; of the accounts that have a prompt to go on with or
//   to begin, the one charged least goes first (deficit round robin whose quantum is one chunk). An
//   account that was away begins level with the least charged of those present: idling earns
//   nothing. So a single prompt of one account waits for at most the step that runs when it
//   arrives, however many prompts another account has in the line.
//
// A step
//   First one token for every running sequence that decodes; then, account by account as above,
//   chunks of at most prefill_chunk tokens: first of its running sequences whose prompt is not
//   computed, then of its waiting ones, which are admitted in order, while the budget of
//   max_batch_tokens, max_running and the KvBlocks last. The head of the line is never overtaken
//   for want of blocks or places.
//
//   While somebody decodes, chunks are also cut so that the step takes at most
//   max_decode_stall_seconds longer than the decodes alone, as StepCost predicts from the steps
//   before; one prompt token a step is always computed. So the time between two tokens of a stream
//   is at most that bound and one decoding step, and chunks fill the whole step when nobody
//   decodes.
//
//   Chunks of prompts whose rows are wanted are cut so that a step has at most max_rows rows, one
//   being kept for every other sequence that may run.
//
// Memory
//   The first admission takes blocks for all current tokens, and needs room for one more token and
//   one spare block for every running sequence that may still be preempted (so that newcomers are
//   not preempted at once). Decoding takes a block when a token needs it. When none is free, a
//   running sequence loses its blocks and goes back to the line with its tokens: the last in rank
//   of the account that holds most blocks for its weight; nobody is admitted in that step.
//
//   A sequence is preempted once at most: it is admitted again only when the pool can hold all that
//   it may still generate, which is then promised to it, and it is not a victim any more. So every
//   sequence finishes: the line does not overtake its head, a promise needs nobody to give way, and
//   one sequence fits the pool alone (CanEverRun).
//
//   When a waiting account has no sequence running, or few for its weight, and places or blocks are
//   short, the accounts that run more for theirs give way in the same manner (MakeRoom).
//
// Prefix cache (prefix_index.h)
//   A full block that was computed is known by its tokens and all before them, and stays known
//   after its sequence, until the pool needs it (least recently used first). A sequence begins with
//   the known blocks of its tokens and computes the rest, at least its last token. While it
//   computes its prompt it also takes blocks over that others have finished since; and it waits
//   while another sequence of the same step computes the very block that it needs next (n
//   candidates of one prompt compute it once). A block that two sequences computed at the same time
//   is kept once: what a token's keys and values are does not depend on who computed them. The
//   chunk of a failed sequence is never known. Rows of prompt tokens that are wanted are computed.
//
// Batch former (batch_former.h)
//   In steps without prompts it may choose who of those who can decode do; the others keep their
//   blocks. Deficits, the bound on stalls and memory are decided without it. Without a former all
//   decode.
//
// Drafts (draft_source.h)
//   A decode is a chunk of one token, or, where a draft of its continuation is at hand, of 1 + k,
//   all rows wanted. Of these the caller keeps what it found right: Commit appends it and counts
//   as computed what is before the newest token; what was computed for the others is overwritten
//   by the tokens that come instead, and never indexed. Drafts take what is left over when prompts
//   were admitted: tokens, half of the rows that prompts may have, and free blocks, which are given
//   back in Commit if the tokens were wrong; nobody is preempted for one. A draft never reaches
//   past max_tokens. Its rows are decode work to StepCost, and only those kept are charged to the
//   account.
//
// Invariants (between calls; CheckInvariants verifies them)
//   1. Every block is free or held by exactly as many sequences as its count says; those that the
//      prefix index knows are kept, and nothing else is.
//   2. Blocks promised to readmitted sequences are free.
//   3. waiting, preempted: no blocks, computed == 0. running: blocks cover all tokens but perhaps
//      the newest one, computed < size; with the prefix cache its full computed blocks are indexed.
//   4. Each sequence is in exactly one of the two lines; both lines are in order.
//   5. running sequences <= max_running; generated <= max_tokens.
//   6. Someone waits or runs <=> Schedule gives a batch that is not empty.
//
// One owner thread. Schedule and Commit allocate nothing once their buffers have grown.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/scheduler/batch_former.h"
#include "engine/scheduler/draft_source.h"
#include "engine/scheduler/kv_block_pool.h"
#include "engine/scheduler/prefix_index.h"
#include "engine/scheduler/sequence.h"
#include "engine/scheduler/step_cost.h"

namespace sluice {

struct SchedulerOptions {
  int kv_blocks = 0;  // REQUIRED > 0
  int block_tokens = 16;
  int max_running = 64;  // REQUIRED <= max_batch_tokens
  int max_batch_tokens = 512;
  int prefill_chunk = 256;
  int max_rows = 0;  // logits rows of one step; 0: max_batch_tokens. REQUIRED > max_running, or
                     // >= max_batch_tokens
  double ageing_seconds = 10;  // waiting this long is worth one level of priority; REQUIRED > 0
  // By account; at least one, each > 0.
  std::vector<double> account_weights = {1};
  bool prefix_cache = false;
  // What prompts may add to a step in which somebody decodes; 0: anything.
  double max_decode_stall_seconds = 0;
  double attention_cost = 0;  // StepCost's `attention`
  double expert_touch = 0;    // StepCost's `touch`
};

struct PrefixCacheStats {
  uint64_t queried_tokens = 0;  // prompt tokens of sequences when they were first admitted
  uint64_t hit_tokens = 0;      // of those, found (also a little later, see above)
  uint64_t evicted_blocks = 0;  // forgotten because the pool needed them
};

enum class RowsWanted {
  kNone,
  kLast,  // the row of the chunk's last token
  kAll,   // a row per token
};

// A run of one sequence's tokens. The spans are valid until Commit.
struct ScheduledChunk {
  SequenceId id = 0;
  std::span<const int32_t> tokens;
  int position = 0;                    // of tokens[0]
  std::span<const int32_t> kv_blocks;  // exactly those that cover position + tokens.size()
  RowsWanted rows = RowsWanted::kNone;
  bool samples = false;  // the last row chooses a token ...
  int sample_index = 0;  // ... which is generated token number sample_index
  // With kAll: chunk rows [prompt_rows_begin, prompt_rows_end) belong to prompt tokens that were
  // not delivered before; row r predicts the prompt token at position + r + 1.
  int prompt_rows_begin = 0;
  int prompt_rows_end = 0;
  int cached_tokens = 0;  // Sequence::cached
  // The last so many tokens are guesses: row r of this chunk chooses generated token number
  // sample_index + r, and means something only if the r guesses before it are what was chosen.
  int drafts = 0;
};

struct Batch {
  std::vector<ScheduledChunk> chunks;
  int tokens = 0;
  int prompt_tokens = 0;                    // of them, those that are no decodes
  int draft_tokens = 0;                     // of them, guesses
  std::vector<SequenceId> first_scheduled;  // admitted for the first time
  std::vector<SequenceId> preempted;        // during this Schedule
};

// What became of a chunk.
struct ChunkResult {
  int32_t token = -1;   // the sampled token, when the chunk samples
  int accepted = 0;     // guesses that were right, from the first on; `token` comes after them
  bool failed = false;  // the sequence cannot go on; it is finished and freed
};

enum class EndReason { kStop, kLength, kFailed };

struct SequenceEnd {
  SequenceId id = 0;
  EndReason reason = EndReason::kStop;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Whether a request of this size fits the pool when it has it to itself.
  bool CanEverRun(int64_t prompt_tokens, int64_t max_tokens) const;

  // REQUIRES: a new id, a prompt, CanEverRun, outside a step.
  void Add(SequenceSpec spec);
  // Forgets the sequence and frees its blocks; false when there is none. REQUIRES: outside a step.
  bool Cancel(SequenceId id);

  // REQUIRES: the step before was committed. Valid until the next Schedule, its spans until Commit.
  // An empty batch needs no Commit.
  const Batch& Schedule();
  // Applies the step: results in the order of the batch's chunks. `ends` receives those that
  // finished; they are forgotten and their blocks are free.
  void Commit(std::span<const ChunkResult> results, std::vector<SequenceEnd>* ends);

  // Before the first Add: enters a block that another run computed, the most recently used one
  // first. -1: there is no room, or it is known. The caller fills it before EndRestore.
  int32_t RestoreBlock(uint64_t key, int32_t parent, std::span<const int32_t> tokens);
  void EndRestore();

  // After Commit: how long the step took, from Schedule to now. Without it no bound can be kept.
  void ObserveStep(double seconds);
  // Whether experts of prompts may come from disk: then chunks beside decodes grow step by step.
  void SetOffloaded(bool offloaded) { offloaded_ = offloaded; }
  // `former` outlives the scheduler; null: everybody decodes.
  void SetBatchFormer(BatchFormer* former) { former_ = former; }
  // `drafts` outlives the scheduler; null: decodes have one token.
  void SetDraftSource(DraftSource* drafts) { draft_source_ = drafts; }
  // Steps in which prompts kept decodes waiting for longer than max_decode_stall_seconds.
  uint64_t stalls() const { return stalls_; }

  bool empty() const { return sequences_.empty(); }
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }  // the preempted included
  const KvBlockPool& pool() const { return pool_; }
  const PrefixIndex& prefix_index() const { return index_; }
  const PrefixCacheStats& prefix_stats() const { return prefix_stats_; }
  const Sequence* Find(SequenceId id) const;

  // Empty when every invariant above holds, else a sentence about the first that does not.
  // Takes time in proportion to all tokens and blocks: for tests.
  std::string CheckInvariants() const;

 private:
  struct Account {
    double weight = 1;
    double served = 0;  // tokens computed for it, divided by its weight
    int sequences = 0;
    int running = 0;
    std::vector<Sequence*> candidates;  // of the step being made: prompts to go on with or begin
    size_t next = 0;                    // in candidates
  };

  int BlocksFor(int64_t tokens) const;
  Account& account(const Sequence& sequence) {
    return accounts_[static_cast<size_t>(sequence.spec.account)];
  }
  // Served less for its weight, or as much and fewer running.
  static bool LessServed(const Account& a, const Account& b);
  // Blocks that the sequence may still take beyond those that it holds.
  int BlocksToCome(const Sequence& sequence) const;
  // Tokens of the sequence's next chunk when `computed` of them are, 0 when the step has no rows
  // left for it.
  int ChunkTokens(const Sequence& sequence, int computed, int budget) const;
  bool Grow(Sequence* sequence);
  // Who gives way to growth: never one with a promise.
  Sequence* Victim();
  void Preempt(Sequence* sequence);
  void MakeRoom();
  // Blocks that must become free before the sequence, whose MatchPrefix was called, is admitted.
  int BlocksMissing(const Sequence& sequence) const;
  // Marks those that the batch former leaves out of the step.
  void ChooseDecoders();
  // Chunks of one token for all who decode and are not left out; false when somebody was preempted
  // for it.
  bool Decode();
  bool DecodeChosen();
  // Asks for drafts of the step's decodes; then, when all else is in the step, adds them.
  void PlanDrafts();
  void AddDrafts();
  // Blocks for a draft of at most `count` tokens; how many it may have.
  int GrowForDraft(Sequence* sequence, int count);
  void AddPrompts(bool admit);
  void GoOn(Sequence* sequence, int* budget);
  bool Admit(Sequence* sequence, int* budget);
  // REQUIRES: count <= ChunkTokens for a chunk of a prompt.
  void AddChunk(const Sequence& sequence, int count, bool decode);
  // A block for one holder; forgets what it held. -1: none is free.
  int32_t TakeBlock();
  // Leading tokens of the sequence that need not be computed if they are known.
  int MostCached(const Sequence& sequence) const;
  // Fills matched_ with the known blocks that follow the sequence's indexed ones.
  void MatchPrefix(const Sequence& sequence);
  // Goes on with matched_ instead of what it computed or would have to.
  void TakeMatched(Sequence* sequence);
  // Whether a chunk of this step computes the block that would follow `blocks` (all indexed).
  bool IsBeingComputed(const Sequence& sequence, std::span<const int32_t> blocks) const;
  // Makes the sequence's full computed blocks known.
  void IndexBlocks(Sequence* sequence);
  // Appends the tokens of a result that did not fail; whether one of them ends the sequence.
  std::optional<EndReason> Append(const ScheduledChunk& chunk, const ChunkResult& result,
                                  Sequence* sequence);
  // Gives back blocks that only wrong guesses needed.
  void TrimBlocks(Sequence* sequence);
  void ReleaseBlocks(Sequence* sequence);
  void Remove(Sequence* sequence);
  std::string CheckSequence(const Sequence& sequence) const;

  const SchedulerOptions options_;
  KvBlockPool pool_;
  PrefixIndex index_;
  PrefixCacheStats prefix_stats_;
  StepCost cost_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // best rank first
  std::vector<Sequence*> waiting_;  // best rank last
  std::vector<Account> accounts_;
  int promised_ = 0;  // free blocks that readmitted sequences may still take
  Batch batch_;
  std::vector<const Sequence*> prefilling_;  // in the step being made, beside decodes
  std::vector<int32_t> matched_;             // of MatchPrefix
  std::vector<int32_t> restored_;
  std::vector<Sequence*> victims_;            // of MakeRoom
  int prompt_rows_ = 0;                       // of one step
  int prompt_rows_left_ = 0;                  // of the step being made
  double decode_work_ = 0, prompt_work_ = 0;  // of the step, in StepCost's units
  double prompt_work_left_ = 0;               // of the step being made
  bool offloaded_ = false;
  BatchFormer* former_ = nullptr;
  DraftSource* draft_source_ = nullptr;
  std::vector<Sequence*> drafted_;                // those whose decodes the step has, in order
  std::vector<int> draft_limits_;                 // of drafted_
  std::vector<std::span<const int32_t>> drafts_;  // of drafted_
  std::vector<int32_t> draft_tokens_;             // the tokens of chunks with drafts
  int planned_drafts_ = 0;                        // tokens
  bool nobody_fits_ = false;                      // of those who wait, as of the last step
  std::vector<Sequence*> decoders_;               // of ChooseDecoders
  std::vector<SequenceId> decoder_ids_;
  std::vector<uint8_t> chosen_;
  uint64_t stalls_ = 0;
  bool in_step_ = false;
  uint64_t arrivals_ = 0;
};

}  // namespace sluice
