// What quantizing one expert does to its outputs, measured by running it on sampled inputs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/convert/allocation.h"
#include "engine/convert/calibration.h"
#include "engine/convert/quantizer.h"

namespace sluice {

// Row-major float matrices of one SwiGLU network.
struct ExpertFloats {
  int hidden = 0;
  int intermediate = 0;
  std::span<const float> gate;  // [intermediate, hidden]
  std::span<const float> up;    // [intermediate, hidden]
  std::span<const float> down;  // [hidden, intermediate]
};

// For each format (of all three matrices, at its full precision): the root mean square over samples
// of the length of the output's error. samples: [n, hidden]; none: zeros.
// Matrices are rounded as the packer rounds them (QuantizerOptions' defaults). Give the
// compensation factors if the pack will be made with them: on the demo model the allocation beat
// equal bits by 6% in KL divergence at 3 and 4 bits with errors measured so, and lost to them with
// errors measured without (both while outputs were scaled back to their size). Time: n * 3 * hidden
// * intermediate multiply-accumulates for each format, and the quantization.
std::vector<double> ExpertOutputErrors(const ExpertFloats& expert, const InputStatistics& inputs,
                                       const InputStatistics& down_inputs,
                                       std::span<const float> samples,
                                       std::span<const NestedFormat> formats);

// For AllocateBits. tokens: of the whole calibration; output_error: of ExpertOutputErrors, one for
// each step of the ladder.
ExpertProfile ProfileOf(const ExpertStatistics& statistics, int64_t tokens,
                        std::vector<double> output_error);

}  // namespace sluice
