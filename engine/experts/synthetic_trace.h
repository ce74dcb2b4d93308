// Traces of models that do not exist, with known skew and locality: what policies are measured on
// besides real ones.
//
// Documents follow one another; each has a prompt, which is one step, and then tokens, one per
// step. A token's experts of a layer are drawn one by one, without repetition: with probability
// `locality` one of those last used by the layer (rank r of the recency list with a geometric
// distribution), otherwise by popularity, which falls with the rank to the power of -skew. Every
// layer has its own order of ranks.
#pragma once

#include <cstdint>
#include <filesystem>

#include "engine/base/result.h"
#include "engine/experts/trace.h"

namespace sluice {

struct SyntheticTraceOptions {
  TraceModel model;
  uint64_t seed = 1;
  int documents = 10;
  int prompt_tokens = 64;  // 0: documents have none
  int decode_tokens = 200;
  double skew = 0;
  double locality = 0;
  double recency_depth = 8;  // mean rank that locality draws
  // Predictions for the next layers, up to `horizon`: each expert that will be chosen is named with
  // probability recall^distance, and as many that will not be as makes the named ones right that
  // often. Steps of one token only.
  int horizon = 0;
  double recall = 0;
};

// Errors: kInvalidArgument, and those of TraceWriter. The same options give the same file.
Result<void> WriteSyntheticTrace(const std::filesystem::path& path,
                                 const SyntheticTraceOptions& options);

}  // namespace sluice
