// How many bits each expert gets: pre-loading mixed-precision quantization (PMQ, of MC-MoE, Huang
// et al. 2024: "Mixture Compressor for Mixture-of-Experts LLMs Gains More"), solved exactly.
//
// Chosen are bits[i] from the ladder that minimise
//   sum over experts i of  frequency_i^alpha * mean_weight_i^beta * output_error_i(bits[i])^gamma
// with an average of bits at most `average_bits`. Super Experts (Su et al. 2025: "Unveiling Super
// Experts in Mixture-of-Experts Large Language Models") get the most bits whatever the sum says;
// they are paid from the same budget.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/expert_id.h"

namespace sluice {

// The precisions that packs are made of: those that the planes of an 8-bit code add up to
// (kernels/common/nested.h). Ascending.
std::vector<int> PrecisionLadder();

// What calibration knows of an expert.
struct ExpertProfile {
  double frequency = 0;    // share of tokens that chose it
  double mean_weight = 0;  // of its output, over these tokens
  // By place in the ladder: root mean square of the output's error over these tokens.
  std::vector<double> output_error;
  float peak = 0;  // largest magnitude of an output of its down projection
};

struct AllocationOptions {
  double average_bits = 3.0;
  std::vector<int> ladder = PrecisionLadder();  // ascending
  // Squares of weights and errors add up over tokens and experts. On the demo model these gave a
  // lower KL divergence than 1, 1, 1 at 2.5, 3 and 4 bits where errors were measured without
  // compensation; it has not been compared since they are measured with it (expert_profile.h).
  double alpha = 1;
  double beta = 2;
  double gamma = 2;
  // One budget for all layers together; otherwise each layer has the same average. Errors of
  // different layers are not on one scale (later layers amplify them), and the demo model is better
  // off with the same average.
  bool across_layers = false;
  bool protect_super_experts = true;
};

struct Allocation {
  std::vector<std::vector<int>> bits;  // [layer][expert]; empty for dense layers
  std::vector<ExpertId> super_experts;
  double average_bits = 0;  // reached; above the budget only where super experts alone exceed it
  double cost = 0;          // the sum above, super experts included
};

// profiles[layer][expert]; dense layers are empty. Of equal costs the one with fewer bits for later
// experts (and layers) wins. Errors: an empty or unordered ladder, an average outside of it,
// profiles whose errors do not match the ladder or are not finite.
// Time: experts * budget * ladder steps within layers, layers * budget * layer budget across them.
Result<Allocation> AllocateBits(std::span<const std::vector<ExpertProfile>> profiles,
                                const AllocationOptions& options);

// Experts whose peak is above the 99.5th percentile of all peaks and above a tenth of the largest.
std::vector<ExpertId> FindSuperExperts(std::span<const std::vector<ExpertProfile>> profiles);

}  // namespace sluice
