// Tokens per second of a model through the real engine (scheduler, forward pass and sampler),
// beside what this machine's memory and arithmetic would allow.
//
// The roofline is measured in the same run and with the same number of threads (roofline.h), and
// the bound of a step follows from it (cost_model.h). The bound of a test is its tokens over the
// sum of its steps' bounds. A model that fits in the caches can exceed it: the bound is that of
// memory, as for any model that does not fit. A model whose experts are partly on disk is also
// bound by the bytes of the experts that it misses over the bandwidth of direct reads of the pack,
// the mean of before and after.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/model.h"
#include "engine/runtime/batch_order.h"
#include "engine/runtime/roofline.h"

namespace sluice {

struct BenchmarkOptions {
  std::filesystem::path model;
  int prompt = 512;    // tokens of every prompt
  int generate = 128;  // tokens generated after each
  int streams = 1;     // concurrent requests
  int threads = 0;     // 0: the cores that the process may use
  int repeats = 5;     // of each test, after one warm-up
  cpu::Isa isa = cpu::Isa::kAuto;
  int activation_bits = 8;
  std::optional<KvDType> kv_dtype;  // default: as ModelOptions
  int expert_bits = 0;              // packs: precision of routed experts; 0: all there is
  int prefill_chunk = 512;
  BatchOrder batch_order = BatchOrder::kFcfs;  // of streams whose experts come from disk
  double max_affinity_delay_seconds = 2;
  TierOptions tiers;  // packs only
  QualitySettings quality = {};
  bool warm_up = true;  // false: the first counted run finds cold caches
  uint64_t seed = 1;
  double temperature = -1;  // of decoding; 0: greedy, negative: greedy with one stream, else 1
  // Called with a sentence as phases begin; may be empty.
  std::function<void(const std::string&)> progress;
};

struct BenchmarkRow {
  std::string test;  // "prefill" or "decode"
  int prompt = 0, generate = 0, streams = 0, threads = 0;
  double tokens_per_second = 0;  // median over repeats
  double min = 0, max = 0;
  double bound = 0;           // tokens per second
  double bound_fraction = 0;  // tokens_per_second / bound
  std::string bound_by;       // "memory", "arithmetic" or "disk"
  double unique_experts_per_step = 0;
  double bytes_per_token = 0;  // weights and KV that a token's share of a step reads
  // Of routed experts, over all repeats; without tiers everything hits.
  double hit_rate = 1;
  double missed_bytes_per_token = 0;  // of experts that were not in memory when asked for
  double bytes_read_per_token = 0;    // from disk, reads ahead and fills included
  double stall_fraction = 0;          // of the time: waiting for experts with nothing to compute
  // Of (token, expert) pairs, over all repeats.
  double degraded_fraction = 0;  // computed at less than the pack's full precision
  double skipped_fraction = 0;   // not computed
};

struct BenchmarkReport {
  std::vector<BenchmarkRow> rows;
  Roofline roofline;
  std::string model, isa, weight_dtype, kv_dtype;
  double load_seconds = 0;    // until the model answers
  double fill_seconds = 0;    // then, until all experts are in memory, where they fit; else 0
  size_t peak_rss_bytes = 0;  // since the model began to load
  std::shared_ptr<const ExpertTierStats> experts;  // of the whole run; null: all in memory for good
  double disk_bandwidth = 0;  // bytes per second of direct reads of the pack; 0: not a pack
  ModelFootprint footprint;
};

// Prompts are seeded random token ids: with random weights the routing is random too, which
// flatters no cache.
Result<BenchmarkReport> RunBenchmark(const BenchmarkOptions& options);

}  // namespace sluice
