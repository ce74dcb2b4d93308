// Calibration of a model that may be too large to keep every layer's second moments at once: the
// text is run once for what is cheap to know of all layers and for the second moments of as many
// layers as memory allows, and again for those of the next layers, when they are asked for. A small
// model's text is run once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/convert/calibration.h"

namespace sluice {

struct LayerCalibratorOptions {
  int threads = 0;
  int sequence_tokens = 256;  // the text is cut into sequences of this length
  // For second moments. Layers are taken together while they fit; when one layer does not, its
  // experts share the layer's moments.
  size_t moment_bytes = size_t{2} << 30;
  // Called with what is being done and fractions in [0, 1]; may be empty.
  std::function<void(const std::string& what, double fraction)> progress;
};

// Threads: one caller.
class LayerCalibrator {
 public:
  // Loads the model (a Hugging Face directory or a pack) and runs `text` through it. Errors: as
  // Model::Load; kInvalidArgument for a text of fewer than 64 tokens.
  static Result<std::unique_ptr<LayerCalibrator>> Run(const std::filesystem::path& model,
                                                      const std::string& text,
                                                      const LayerCalibratorOptions& options);
  ~LayerCalibrator();

  // Of all layers; its second moments come and go: see Layer.
  const CalibrationStatistics& survey() const;
  // A layer with second moments. Valid until the next call; ascending layers cost least.
  const LayerStatistics& Layer(int layer);

 private:
  struct State;
  explicit LayerCalibrator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice
