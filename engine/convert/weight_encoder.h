// One weight of a checkpoint in a form of the pack, in memory: read piece by piece, converted by
// all threads.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/convert/checkpoint.h"
#include "engine/convert/quantizer.h"
#include "engine/formats/pack.h"
#include "engine/tensor/device_buffer.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {

struct EncodedWeight {
  WeightLayout layout;
  std::vector<DeviceBuffer> planes;  // host memory, ready for kernels

  std::vector<std::span<const std::byte>> spans() const {
    std::vector<std::span<const std::byte>> spans;
    for (const DeviceBuffer& plane : planes) spans.push_back(plane.span<const std::byte>());
    return spans;
  }
};

// What becomes of a weight.
struct WeightTarget {
  enum class Kind {
    kFloats,    // as the source's floats, in panels or row-major; blocks become F32 first
    kF32,       // the same in F32
    kExact,     // the source's blocks, without loss; REQUIRES ExactFormat
    kQuantize,  // to `quantizer.format`
  };
  Kind kind = Kind::kFloats;
  WeightForm form = WeightForm::kPanels;  // of floats: kPanels or kRowMajor
  QuantizerOptions quantizer = {};
  InputStatistics statistics = {};  // kQuantize
  bool fit_levels = false;          // kQuantize: fitted levels for the lower precisions
};

// Threads: one Encode at a time.
class WeightEncoder {
 public:
  // `source` outlives the encoder.
  WeightEncoder(const Checkpoint& source, int threads);

  Result<EncodedWeight> Encode(const CheckpointWeight& weight, const WeightTarget& target);

 private:
  Result<> EncodeFloats(const CheckpointWeight& weight, EncodedWeight* out);
  Result<> EncodeNested(const CheckpointWeight& weight, const WeightTarget& target,
                        EncodedWeight* out);

  const Checkpoint& source_;
  const cpu::Ops* ops_;
  cpu::ThreadPool pool_;
  std::vector<std::byte> raw_;
  std::vector<float> floats_;
  std::vector<NestedPanel> panels_;  // one per worker
};

}  // namespace sluice
