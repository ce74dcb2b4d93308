// From a checkpoint to a pack: which weight gets which form, and the conversion itself.
//
// Streaming: at most one weight of the source and its planes are in memory at a time (for routed
// experts: the three projections of one expert).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/convert/allocation.h"
#include "engine/convert/checkpoint.h"

namespace sluice {

class LayerCalibrator;

// Bits of a setting that keeps what the source has: quantized blocks that a nested format holds
// without loss stay as they are, floats stay floats. Blocks that no format holds become 8 bits.
inline constexpr double kKeepBits = 0;

struct PackOptions {
  // Routed experts: kKeepBits, or the average bits per weight, scales left out. Without calibration
  // one of the ladder (2, 3, 4, 6, 8) for all; with it, allocated expert by expert (allocation.h).
  double expert_bits = kKeepBits;
  // Attention, embeddings, output head, shared experts, dense layers: kKeepBits or 2, 3, 4, 6, 8.
  int dense_bits = 0;
  // What the source's activations look like (layer_calibrator.h); null: data-free. It gives every
  // input column its importance, rounding errors something to be made up with, and experts their
  // bits.
  LayerCalibrator* calibration = nullptr;
  bool uniform = false;          // no allocation: every expert gets expert_bits
  bool compensate = true;        // error compensation; for comparisons
  AllocationOptions allocation;  // average_bits and ladder are set by PackModel
  int threads = 0;               // 0: the cores that the process may use
  // Said of the source, the calibration text and the tool, into the pack's provenance.
  std::string tool, source_name, calibration_name;
  // Called with what is being done and fractions in [0, 1]; may be empty.
  std::function<void(const std::string& what, double fraction)> progress;
};

struct PackReport {
  uint64_t source_bytes = 0;  // of weights
  uint64_t pack_bytes = 0;    // the file
  double expert_bits = 0;     // average bits per weight of routed experts, scales included
  double dense_bits = 0;      // of everything else
  Allocation allocation;      // empty without one
  double seconds = 0;         // profiling and calibration on demand included
};

// Writes `path` (atomically: see PackWriter). Errors: of the source, of the writer, and options
// that make no sense (kInvalidArgument, with what to give instead).
Result<PackReport> PackModel(const Checkpoint& source, const std::filesystem::path& path,
                             const PackOptions& options);

}  // namespace sluice
