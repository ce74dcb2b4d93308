// What a pack will take and do on this machine, reckoned in a few seconds without loading it.
//
// Memory is exact: the model is set up as a server would, but no weight is read
// (ModelOptions::read_weights). Times come from the cost model, of this machine's memory,
// arithmetic and disk as measured now. How often experts are in memory is expert_forecast.h's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "engine/base/result.h"
#include "engine/model/model.h"
#include "engine/runtime/expert_forecast.h"
#include "engine/runtime/roofline.h"

namespace sluice {

// Share of the reads that a predictor asks for early enough to hide them: measured on random
// weights, whose gates foretell little. Reads that the disk has no time for are never hidden.
inline constexpr double kCoveredReads = 0.1;

struct PlanOptions {
  std::filesystem::path model;  // a pack
  // As it would be loaded; read_weights is not used. REQUIRES: kv_dtype is set.
  ModelOptions load;
  int users = 1;
  int context = 512;            // tokens that each user's attention sees while decoding
  int prompt = 512;             // tokens of a prompt
  int prefill_chunk = 256;      // most of them in one step
  std::filesystem::path trace;  // empty: none
  std::function<void(const std::string&)> progress;  // may be empty
};

struct Plan {
  // Bytes. The first four, experts_in_memory and the rest of the process make up the budget.
  uint64_t budget = 0;         // 0: none was given
  uint64_t weights_bytes = 0;  // dense: resident always
  uint64_t kv_bytes = 0;
  uint64_t buffer_bytes = 0;   // activations, workspaces, tables
  uint64_t process_bytes = 0;  // code, bookkeeping, and a reserve for requests
  uint64_t expert_bytes = 0;
  uint64_t expert_bytes_in_memory = 0;
  int experts = 0;
  uint64_t least_budget = 0;  // of the same settings

  double hit_rate = 1;          // of decoding
  std::string hit_rate_source;  // "everything fits", "trace", "calibration" or "typical"
  double prefill_hit_rate = 1;
  double unique_experts_per_step = 0;
  double decode_tokens_per_second = 0;   // of all users together
  double prefill_tokens_per_second = 0;  // every user sends a prompt at once
  double bytes_read_per_token = 0;       // decoding, from disk
  double prefill_bytes_read_per_token = 0;
  double stall_fraction = 0;  // of decoding
  double startup_seconds = 0;

  Roofline roofline;
  double disk_bytes_per_second = 0;  // 0: not measured, the pack is shorter than a read
  std::string isa, weight_dtype, kv_dtype;
  int threads = 0;
};

// Errors: those of Model::Load (a budget below the least is kInvalidArgument and names it), of
// reading the trace, kInvalidArgument for numbers below 1 and what is not a pack.
Result<Plan> MakePlan(const PlanOptions& options);

// What is known of a pack's experts with the memory that they have now: from the trace (nullable),
// else from the pack's calibration, else as is typical. Errors: as ExpertForecast::FromTrace; those
// of PackReader::Open. source (nullable) receives Plan::hit_rate_source.
Result<ExpertForecast> ForecastExperts(const std::filesystem::path& pack, const Model& model,
                                       const Trace* trace, int users,
                                       std::string* source = nullptr);

// Rates of a model from what was measured: what MakePlan does after measuring, for callers that
// have a loaded model.
struct StepRates {
  double tokens_per_second = 0;
  double bytes_read_per_token = 0;
  double stall_fraction = 0;
  ExpertForecast::Step experts;
};
StepRates ForecastDecode(const Model& model, const ExpertForecast& experts,
                         const Roofline& roofline, double disk_bytes_per_second, double users,
                         double context);
// `prompts` of `prompt` tokens each, computed together in steps of up to `chunk` tokens of each.
StepRates ForecastPrefill(const Model& model, const ExpertForecast& experts,
                          const Roofline& roofline, double disk_bytes_per_second, int prompt,
                          int prompts, int chunk);

}  // namespace sluice
