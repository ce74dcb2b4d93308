// What the scheduler knows of a request: tokens, how many of them the KV cache holds, and where.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace sluice {

using SequenceId = uint64_t;
using TimePoint = std::chrono::steady_clock::time_point;

// waiting -> running -> finished, with running -> preempted -> running any number of times.
// A finished sequence is forgotten at once, so the state is never seen from outside.
enum class SequenceState {
  kWaiting,    // never scheduled; holds no KvBlock
  kRunning,    // holds blocks for at least all of its tokens but the newest
  kPreempted,  // lost its blocks; keeps its tokens and will compute them again
};

struct SequenceSpec {
  SequenceId id = 0;
  std::vector<int32_t> prompt;      // at least one token
  int max_tokens = 0;               // 0: compute the prompt and finish
  std::vector<int32_t> ending_ids;  // a generated token among these ends the sequence
  int priority = 0;                 // higher is served first, within its account
  int account = 0;                  // whose it is: SchedulerOptions::account_weights
  bool prompt_rows = false;         // logits rows of prompt tokens are wanted, each once
  // What beside the tokens decides the values in its KvBlocks (a quality setting): blocks are
  // shared between sequences of one key only. 0: exact.
  uint64_t prefix_key = 0;
  TimePoint arrival;
};

// Owned by the Scheduler; read-only to everyone else.
struct Sequence {
  SequenceSpec spec;            // its prompt is moved into `tokens`
  std::vector<int32_t> tokens;  // prompt, then generated
  std::vector<int32_t> blocks;  // blocks[i] holds tokens [16 i, 16 i + 16)
  int prompt_size = 0;
  int computed = 0;          // tokens whose keys and values are in `blocks`
  int indexed = 0;           // leading blocks that the prefix index knows, all of them full
  int cached = 0;            // prompt tokens that others had computed when it first needed them
  int prompt_rows_done = 0;  // rows [0, prompt_rows_done) were delivered, before any preemption too
  SequenceState state = SequenceState::kWaiting;
  int preemptions = 0;          // 1 at most
  bool left_out = false;        // of the step being made, by the batch former
  bool promised = false;        // runs, and the blocks for all that it may generate are its own
  double rank = 0;              // smaller is served first: see Scheduler
  uint64_t arrival_number = 0;  // breaks ties of rank

  int size() const { return static_cast<int>(tokens.size()); }
  int generated() const { return size() - prompt_size; }
  // Runs, and its next chunk is its newest token.
  bool decodes() const { return state == SequenceState::kRunning && computed + 1 == size(); }
};

// Strict orders by rank, then by arrival.
inline bool ServedBefore(const Sequence* a, const Sequence* b) {
  return a->rank < b->rank || (a->rank == b->rank && a->arrival_number < b->arrival_number);
}
inline bool ServedAfter(const Sequence* a, const Sequence* b) { return ServedBefore(b, a); }

}  // namespace sluice
