// What each precision would cost the experts of a layer, measured on inputs that they really got.
#pragma once

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/convert/allocation.h"
#include "engine/convert/calibration.h"
#include "engine/convert/checkpoint.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {

// The form that routed experts are quantized to.
NestedFormat ExpertFormat(int bits);

// What calibration says of one matrix's inputs, ready for the quantizer.
struct MatrixStatistics {
  std::vector<float> mean_square, compensation;

  InputStatistics view() const { return {mean_square, compensation}; }
};

// Of an expert of the layer in hand: the statistics that its gate and up, and its down projection
// will be quantized with. Called from several threads at once.
using ExpertStatisticsSource = std::function<std::pair<MatrixStatistics, MatrixStatistics>(int)>;

// One profile per expert of a sparse layer, its errors in the ladder's order (expert_error.h).
// Rounding is as in the pack, with the error compensation that `inputs_of` gives factors for (see
// ExpertOutputErrors on what measuring without it costs). Memory: one expert in F32 for each thread
// of `pool`.
// `progress` (may be empty) gets fractions in [0, 1].
Result<std::vector<ExpertProfile>> ProfileExperts(const Checkpoint& source, int layer,
                                                  const CalibrationStatistics& statistics,
                                                  std::span<const int> ladder,
                                                  const ExpertStatisticsSource& inputs_of,
                                                  cpu::ThreadPool* pool,
                                                  const std::function<void(double)>& progress);

}  // namespace sluice
