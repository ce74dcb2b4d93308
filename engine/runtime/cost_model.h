// What a step of a model costs, in bytes, multiply-accumulates and seconds: one reckoning for the
// bound of `sluice bench` and for what `sluice plan` foretells.
//
// The bound of a step is what the roofline allows:
//   max(bytes / bandwidth, macs / peak + attention macs / their peak)
// with bytes = dense weights + distinct experts touched + KV read, each counted once, and attention
// over full contexts (a sliding window is not credited). What a step will take has the same terms,
// each at the share of the roofline that kernels were measured to reach, what the roofline knows
// nothing of, then the disk:
//
//   memory     = bytes / typical bandwidth
//   arithmetic = the roofline's / kArithmeticEfficiency
//   matrices   = (memory^kOverlap + arithmetic^kOverlap)^(1 / kOverlap)
//   compute    = matrices + layers * kForksPerLayer forks of the thread pool
//                + values of activations that pass between matrices + sampling + a fixed overhead
//   read       = missed experts * expert bytes / (disk bandwidth * kDiskEfficiency)
//   step       = max(compute + stalls, read)
//
// Kernels stream the next weights while they multiply, but not perfectly: matrices take less than
// the sum of both and more than the larger (kOverlap 1 and infinity). While the disk is busy its
// transfers and the verifying of what arrives slow compute by kDiskSlowsCompute.
//
// A share of the missed experts, `covered`, was asked for before its layer came and costs nothing
// as long as the disk has time for it; the others are late. A layer with m late experts waits for
// their reads but for what it computes meanwhile, its other experts:
//   stall(m) = max(0, m * expert bytes / bandwidth + latency
//                     - compute's share in experts / layers * (1 - m / the layer's experts))
// and m spreads around its mean as independent misses do: binomially over the layer's experts, so
// that some layers wait while others have nothing to read. Threads: values.
#pragma once

#include "engine/model/model.h"
#include "engine/runtime/roofline.h"

namespace sluice {

// Measured with `sluice bench` on two cores (Zen 4, AVX-512): random weights in OLMoE's shape at
// Q4_0 and the demo model, with one and eight streams, decoding and prompts of 32 to 512 tokens.
inline constexpr double kArithmeticEfficiency = 0.75;
inline constexpr double kOverlap = 1.5;
// Times that a layer hands work to the thread pool and waits for it.
inline constexpr double kForksPerLayer = 8;
// Norms, rotations, gates, quantization of inputs: of one value, with one thread.
inline constexpr double kSecondsPerValue = 0.5e-9;
// Softmax and drawing, of one row and entry of the vocabulary; on one thread.
inline constexpr double kSecondsPerLogit = 10e-9;
// Scheduling, delivering.
inline constexpr double kSecondsPerStep = 20e-6;
inline constexpr double kDiskEfficiency = 0.9;
// A layer of decoding took 1.1 to 1.4 ms while the disk was busy instead of 0.75.
inline constexpr double kDiskSlowsCompute = 0.5;

// What happens in a step.
struct StepLoad {
  double tokens = 0;
  double unique_experts = 0;  // distinct (layer, expert) pairs
  // Of the tokens, those that go all the way to the output head (past the last layer's cache writes
  // the others need not).
  double logit_rows = 0;
  double kv_tokens = 0;  // cached tokens that are read, over all sequences
  double context = 0;    // tokens that a token of the step sees, on average
};

// What a step must move and compute at least.
struct StepCost {
  double bytes = 0;
  double expert_bytes = 0;  // of these, routed experts'
  double macs = 0;          // of the weights' type
  double attention_macs = 0;
};

// What the disk has to do for a step.
struct StepReads {
  double experts = 0;               // missed
  double bytes_per_second = 0;      // of the disk; 0 with no misses
  double latency_seconds = 100e-6;  // of the first bytes of a read
  double covered = 0;               // share of the misses that is asked for early enough, in [0, 1]
};

struct StepSeconds {
  double compute = 0;
  double stall = 0;  // waiting for the disk
  double read = 0;   // the disk is busy
  double total() const { return compute + stall; }
};

class CostModel {
 public:
  CostModel(const ModelFootprint& footprint, const ModelConfig& config, const Roofline& roofline)
      : footprint_(footprint),
        roofline_(roofline),
        layers_(config.num_layers()),
        attention_macs_(2.0 * config.heads * config.head_dim),
        vocab_(config.vocab),
        values_(12.0 * config.hidden + 4.0 * config.router.experts_per_token *
                                           (config.hidden + config.expert_intermediate)) {}

  StepCost Cost(const StepLoad& load) const;
  // The roofline's.
  double MemorySeconds(const StepCost& cost) const;
  double ArithmeticSeconds(const StepCost& cost) const;
  // What it will take with `threads` threads. REQUIRES: reads.experts <= load.unique_experts.
  StepSeconds Seconds(const StepLoad& load, const StepReads& reads, int threads) const;

 private:
  // Without stalls and an idle disk.
  double ComputeSeconds(const StepLoad& load, const StepCost& cost, int threads) const;
  // Of all layers, when a step computes for `compute` seconds.
  double StallSeconds(const StepLoad& load, const StepReads& reads, const StepCost& cost,
                      double compute, double read) const;

  ModelFootprint footprint_;
  Roofline roofline_;
  int layers_;
  double attention_macs_;  // per token, layer and token of context: scores and weighted values
  int vocab_;
  double values_;  // of activations that pass between a layer's matrices, per token
};

}  // namespace sluice
