// `sluice trace record`: a model's routing on texts, as a server would see them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/result.h"

namespace sluice {

struct TraceRecordOptions {
  std::string model, cache_directory, isa = "auto";
  std::vector<std::string> texts;
  std::string out;
  int prompt_tokens = 128;  // of each document, in steps of up to batch_tokens
  int decode_tokens = 128;  // that follow, one per step and stream; the text says which
  int documents = 0;        // per text; 0: all that it holds
  int streams = 1;          // documents at once
  int batch_tokens = 512;
  int threads = 0;
};

struct TraceRecordReport {
  int64_t documents = 0, tokens = 0, steps = 0, lost_steps = 0;
  uint64_t file_bytes = 0;
};

Result<TraceRecordReport> RecordTrace(const TraceRecordOptions& options);

}  // namespace sluice
