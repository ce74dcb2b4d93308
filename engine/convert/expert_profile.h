// What each precision would cost the experts of a layer, measured on inputs that they really got.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/convert/allocation.h"
#include "engine/convert/calibration.h"
#include "engine/convert/checkpoint.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {

// The form that routed experts are quantized to.
NestedFormat ExpertFormat(int bits);

// One profile per expert of a sparse layer, its errors in the ladder's order (expert_error.h).
// Rounding is without error compensation. Memory: one expert in F32 for each thread of `pool`.
// `progress` (may be empty) gets fractions in [0, 1].
Result<std::vector<ExpertProfile>> ProfileExperts(const Checkpoint& source, int layer,
                                                  const CalibrationStatistics& statistics,
                                                  std::span<const int> ladder,
                                                  cpu::ThreadPool* pool,
                                                  const std::function<void(double)>& progress);

}  // namespace sluice
