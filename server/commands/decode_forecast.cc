#include "server/commands/decode_forecast.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/base/disk_speed.h"
#include "engine/base/process_memory.h"
#include "engine/formats/pack.h"
#include "engine/runtime/plan.h"
#include "kernels/cpu/thread_pool.h"

namespace sluice {
namespace {

constexpr int64_t kSteps = 200;
// More than caches hold, little enough to be quick.
constexpr uint64_t kMeasuredBytes = uint64_t{128} << 20;
constexpr double kDiskSeconds = 0.15;
// What attention sees is small beside the weights.
constexpr double kContext = 256;

}  // namespace

std::unique_ptr<DecodeForecast> DecodeForecast::Prepare(const std::filesystem::path& model,
                                                        const ModelOptions& options) {
  const cpu::Ops* ops = cpu::SelectOps(options.isa);
  if (ops == nullptr || !PackReader::LooksLikePack(model)) return nullptr;
  auto forecast = std::make_unique<DecodeForecast>();
  forecast->path_ = model;
  {
    cpu::ThreadPool pool(options.threads > 0 ? options.threads : cpu::UsableCores());
    uint64_t memory = kMeasuredBytes;
    if (options.tiers.memory_budget > 0) {
      memory = std::min(memory, options.tiers.memory_budget / 2);
    }
    forecast->roofline_ = MeasureMemory(*ops, pool, memory);
  }
  DiskSpeedOptions disk;
  disk.seconds = kDiskSeconds;
  if (const Result<DiskSpeed> speed = MeasureDisk(model, disk)) {
    forecast->disk_bytes_per_second_ = speed->bytes_per_second;
  }
  ReturnFreeMemory();
  return forecast;
}

void DecodeForecast::SetModel(const Model* model) {
  model_ = model;
  const cpu::Ops* ops = cpu::SelectOps(model->options().isa);
  cpu::ThreadPool pool(model->options().threads);
  MeasureArithmetic(*ops, pool, *model, &roofline_);
}

void DecodeForecast::Observe(int batch_tokens, int sequences, double seconds, Logger* log) {
  if (steps_ >= kSteps || batch_tokens != sequences) return;
  tokens_ += batch_tokens;
  seconds_ += seconds;
  if (++steps_ == kSteps) Report(log);
}

void DecodeForecast::Report(Logger* log) const {
  const double users = tokens_ / static_cast<double>(kSteps);
  const Result<ExpertForecast> experts =
      ForecastExperts(path_, *model_, nullptr, std::max(1, static_cast<int>(std::lround(users))));
  if (!experts) return;  // a pack that cannot be read any more is reported elsewhere
  const StepRates rates =
      ForecastDecode(*model_, *experts, roofline_, disk_bytes_per_second_, users, kContext);
  char text[80];
  std::snprintf(text, sizeof(text), "plan: predicted %.1f, measured %.1f tok/s",
                rates.tokens_per_second, tokens_ / seconds_);
  log->Info(text);
}

}  // namespace sluice
