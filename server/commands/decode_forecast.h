// How far the forecast of `sluice plan` was off, told by the server once it has decoded for a
// while: "plan: predicted X, measured Y tok/s".
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "engine/base/log.h"
#include "engine/model/model.h"
#include "engine/runtime/roofline.h"

namespace sluice {

// Threads: Prepare and SetModel before the engine starts, Observe on the engine thread.
class DecodeForecast {
 public:
  // Measures memory and disk for some tenths of a second, in memory that the model will need anyway
  // and that is free again afterwards. Null for what is not a pack.
  static std::unique_ptr<DecodeForecast> Prepare(const std::filesystem::path& model,
                                                 const ModelOptions& options);
  // `model` outlives the forecast's use. Measures arithmetic.
  void SetModel(const Model* model);

  // After every step. Logs one line after 200 steps that only decoded.
  void Observe(int batch_tokens, int sequences, double seconds, Logger* log);

 private:
  void Report(Logger* log) const;

  std::filesystem::path path_;
  Roofline roofline_;
  double disk_bytes_per_second_ = 0;
  const Model* model_ = nullptr;
  int64_t steps_ = 0;
  double tokens_ = 0, seconds_ = 0;
};

}  // namespace sluice
