// Quality of a model: perplexity of a text, and exact-match accuracy on task files. Both run
// through the real engine, several sequences at a time; the figures do not depend on how many.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/runtime/engine.h"
#include "engine/text/tokenizer.h"

namespace sluice {

struct PerplexityOptions {
  int context = 0;  // tokens per window; 0: the smaller of the engine's max_context and 2048
  int stride = 0;   // tokens between windows; 0: half of context. Only tokens not yet scored count
                    // in a window.
  QualitySettings quality = {};
  std::function<void(double fraction)> progress;
};

struct Perplexity {
  double perplexity = 0;     // exp(nll_per_token)
  double nll_per_token = 0;  // nats
  int64_t tokens = 0;        // scored; the text's first token is not
  ExpertCounts experts;
};

// kInvalidArgument when the text has fewer than two tokens.
Result<Perplexity> EvaluateText(Engine& engine, const Tokenizer& tokenizer, std::string_view text,
                                const PerplexityOptions& options);

// One line of a task file: {"task": ..., "prompt": ..., "answer": ...}.
struct TaskItem {
  std::string task, prompt, answer;
};

// Reads a .jsonl file. Errors name file and line.
Result<std::vector<TaskItem>> ReadTaskFile(const std::filesystem::path& path);

struct TaskScore {
  int items = 0;
  int correct = 0;
  double accuracy() const { return items == 0 ? 0.0 : static_cast<double>(correct) / items; }
};

struct TaskReport {
  std::map<std::string, TaskScore> tasks;
  // The first few wrong answers of each task, for a person: prompt, expected, got.
  struct Miss {
    std::string task, prompt, expected, got;
  };
  std::vector<Miss> misses;
  ExpertCounts experts;
};

// Greedy continuation of each raw prompt up to the first line break or end-of-sequence token;
// correct when it equals the answer, both stripped of surrounding white space.
Result<TaskReport> EvaluateTasks(Engine& engine, std::shared_ptr<const Tokenizer> tokenizer,
                                 const std::vector<TaskItem>& items, const QualitySettings& quality,
                                 const std::function<void(double)>& progress);

}  // namespace sluice
