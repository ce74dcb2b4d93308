// What a cache of some size, policy and horizon would have done on a recorded trace, on which disk
// and at which compute speed; and what the best possible one would have.
//
//   Result<Trace> trace = ReadTrace("day.trace");
//   ReplayOptions options;
//   options.policy = "lru";
//   options.budget = 0.5;
//   Result<ReplayResult> lru = Replay(*trace, options);
//
// The rules, for every policy alike: a visit of a layer pins the experts that it uses; those that
// are not resident are read, each into memory that the policy frees among experts not pinned. When
// all that is resident is pinned the expert passes through without staying. With experts of one
// size "optimal" is exact under these rules (Belady: the furthest next use leaves); with several
// sizes it is a good bound only.
//
// Time is simulated: a layer takes dense_seconds up to its gate, then its experts one by one, those
// that are there first, then in the order in which they land; waiting for one with none to compute
// is stall. The disk reads one expert after the other at its bandwidth, demanded ones before
// predicted ones and the nearer layer first, and each lands its latency after it was read.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/result.h"
#include "engine/experts/cache_policy.h"
#include "engine/experts/trace.h"

namespace sluice {

struct ReplayOptions {
  // What MakeCachePolicy knows; "optimal": Belady, with the whole trace in view; "none": nothing is
  // kept.
  std::string policy = "auto";
  double budget = 0.5;  // share of the bytes of all experts, in [0, 1]
  // Layers ahead for which predictions are used, by the policy and to read ahead; 0: none are.
  int horizon = 0;
  // "recorded" in the trace, or a name that MakeExpertPredictor knows: predicted anew from the
  // trace's choices (without gates, which traces do not hold).
  std::string predictor = "recorded";
  // Experts are read ahead from this probability on, when the policy prefers them to its victim.
  float least_probability = 0.25F;
  bool read_ahead = true;  // false: predictions inform the policy only
  ExpertPrior prior;
  int64_t warm_steps = 0;  // at the start, which are not counted

  double disk_bytes_per_second = 2e9;
  double disk_latency_seconds = 100e-6;
  double dense_seconds = 100e-6;  // per visit of a layer, everything but its routed experts
  double expert_seconds = 50e-6;  // per expert that a visit uses
};

struct ReplayResult {
  int64_t capacity_bytes = 0;
  int64_t steps = 0;
  int64_t tokens = 0;
  int64_t wanted = 0;  // experts used by visits
  int64_t hits = 0;    // of these, there with all bytes when the visit asked
  // The part of both in steps with several tokens of one stream: prompts.
  int64_t prompt_wanted = 0;
  int64_t prompt_hits = 0;
  int64_t bytes_read = 0;
  int64_t reads_ahead = 0;         // predicted experts that were read
  int64_t useful_reads_ahead = 0;  // of these, used before they were evicted
  double seconds = 0;
  double stall_seconds = 0;

  double hit_rate() const { return wanted == 0 ? 0 : Share(hits, wanted); }
  double bytes_per_token() const { return tokens == 0 ? 0 : Share(bytes_read, tokens); }
  double stall_fraction() const { return seconds == 0 ? 0 : stall_seconds / seconds; }

 private:
  static double Share(int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  }
};

// Errors: kInvalidArgument for unknown names and numbers out of range.
Result<ReplayResult> Replay(const Trace& trace, const ReplayOptions& options);

// Whether a stream has several tokens in a visit: it is a prompt's. Tokens of a stream are
// together.
bool HasPrompt(const RoutedTokens& routed);

// How often the trace's tokens chose each expert: [place] share of tokens. A prior for replays of
// other traces of the model.
ExpertPrior CountFrequency(const Trace& trace);

}  // namespace sluice
