#include "engine/runtime/evaluation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/runtime/collector.h"
#include "engine/text/stream_decoder.h"

namespace sluice {
namespace {

std::string_view Strip(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// Cancels its own request as soon as the decoded text holds a line break.
class LineSink final : public OutputSink {
 public:
  LineSink(Engine& engine, std::shared_ptr<const Tokenizer> tokenizer)
      : engine_(engine), decoder_(std::move(tokenizer)) {}

  // REQUIRES: called once, after Submit returned; tokens may have arrived already.
  void SetId(RequestId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    id_ = id;
    if (cut_) engine_.Cancel(id);
  }

  void OnToken(TokenOutput token) override {
    if (cut_) return;
    text_ += decoder_.Push(token.token);
    // Leading line breaks would end an answer before it began; a model that writes one is wrong
    // anyway.
    if (text_.find('\n') == std::string::npos) return;
    std::lock_guard<std::mutex> lock(mutex_);
    cut_ = true;
    if (id_) engine_.Cancel(*id_);
  }
  void OnFinish(Finish finish) override {
    if (!cut_) text_ += decoder_.Finish();
    collector_.OnFinish(std::move(finish));
  }

  const Finish& Wait() { return collector_.Wait(); }
  std::string_view Line() const {
    return Strip(std::string_view(text_).substr(0, text_.find('\n')));
  }

 private:
  Engine& engine_;
  StreamDecoder decoder_;  // engine thread
  std::string text_;       // engine thread until Wait() returns
  Collector collector_;

  std::mutex mutex_;
  std::optional<RequestId> id_;  // GUARDED_BY(mutex_)
  bool cut_ = false;             // written by the engine thread under mutex_
};

// Submits when there is room, otherwise reports that there is none.
template <class Sink>
Result<std::optional<RequestId>> TrySubmit(Engine& engine, const GenerationRequest& request,
                                           std::shared_ptr<Sink> sink) {
  Result<RequestId> id = engine.Submit(request, std::move(sink));
  if (id) return std::optional<RequestId>(*id);
  if (id.error().code == ErrorCode::kResourceExhausted) return std::optional<RequestId>();
  return id.error();
}

struct Window {
  int64_t begin = 0;  // of the text's tokens
  int64_t first_scored = 0;
  int64_t end = 0;
};

std::vector<Window> Windows(int64_t tokens, int context, int stride) {
  std::vector<Window> windows;
  int64_t scored = 1;  // the first token has no prediction
  for (int64_t begin = 0; scored < tokens; begin += stride) {
    const int64_t end = std::min<int64_t>(begin + context, tokens);
    windows.push_back({begin, scored, end});
    scored = end;
  }
  return windows;
}

}  // namespace

Result<Perplexity> EvaluateText(Engine& engine, const Tokenizer& tokenizer, std::string_view text,
                                const PerplexityOptions& options) {
  const std::vector<int32_t> tokens = tokenizer.Encode(text);
  if (tokens.size() < 2) return InvalidArgument("the text has fewer than two tokens");
  const int context = options.context > 0 ? options.context : std::min(engine.max_context(), 2048);
  const int stride = options.stride > 0 ? options.stride : std::max(context / 2, 1);
  if (context < 2 || context > engine.max_context()) {
    return InvalidArgument("context must be from 2 to " + std::to_string(engine.max_context()) +
                           " tokens, got " + std::to_string(context));
  }
  if (stride >= context) return InvalidArgument("stride must be below context");

  const std::vector<Window> windows = Windows(static_cast<int64_t>(tokens.size()), context, stride);
  Perplexity result;
  double nll = 0;
  std::deque<std::pair<Window, std::shared_ptr<Collector>>> pending;
  // Sums in window order, so the figure does not depend on how many windows ran together.
  auto take_front = [&]() -> Result<void> {
    auto [window, sink] = pending.front();
    pending.pop_front();
    const Finish& finish = sink->Wait();
    if (finish.reason == FinishReason::kError) return finish.error;
    result.experts += finish.usage.experts;
    for (int64_t i = window.first_scored; i < window.end; ++i) {
      nll -= sink->prompt()[static_cast<size_t>(i - window.begin)].logprob;
      ++result.tokens;
    }
    return {};
  };
  for (size_t w = 0; w < windows.size(); ++w) {
    GenerationRequest request;
    request.name = "eval";
    request.quality = options.quality;
    request.prompt.assign(tokens.begin() + windows[w].begin, tokens.begin() + windows[w].end);
    request.max_tokens = 0;
    request.prompt_logprobs = 0;
    auto sink = std::make_shared<Collector>();
    while (true) {
      Result<std::optional<RequestId>> id = TrySubmit(engine, request, sink);
      if (!id) return id.error();
      if (*id) break;
      if (pending.empty()) return ResourceExhausted("the engine's queue is full");
      if (Result<void> taken = take_front(); !taken) return taken.error();
    }
    pending.emplace_back(windows[w], std::move(sink));
    if (options.progress) options.progress(static_cast<double>(w) / windows.size());
  }
  while (!pending.empty()) {
    if (Result<void> taken = take_front(); !taken) return taken.error();
  }
  if (options.progress) options.progress(1.0);
  result.nll_per_token = nll / result.tokens;
  result.perplexity = std::exp(result.nll_per_token);
  return result;
}

Result<std::vector<TaskItem>> ReadTaskFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return NotFound("cannot open the task file " + path.string());
  std::vector<TaskItem> items;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (Strip(line).empty()) continue;
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    TaskItem item;
    auto take = [&](const char* key, std::string* out) {
      if (!json.is_object() || !json.contains(key) || !json[key].is_string()) return false;
      *out = json[key].get<std::string>();
      return true;
    };
    if (!take("task", &item.task) || !take("prompt", &item.prompt) ||
        !take("answer", &item.answer)) {
      return InvalidArgument(path.string() + ":" + std::to_string(number) +
                             ": expected an object with the strings task, prompt and answer");
    }
    items.push_back(std::move(item));
  }
  if (items.empty()) return InvalidArgument(path.string() + " holds no items");
  return items;
}

Result<TaskReport> EvaluateTasks(Engine& engine, std::shared_ptr<const Tokenizer> tokenizer,
                                 const std::vector<TaskItem>& items, const QualitySettings& quality,
                                 const std::function<void(double)>& progress) {
  constexpr size_t kMissesPerTask = 3;
  TaskReport report;
  std::map<std::string, size_t> misses;
  std::deque<std::pair<size_t, std::shared_ptr<LineSink>>> pending;
  auto take_front = [&]() -> Result<void> {
    auto [index, sink] = pending.front();
    pending.pop_front();
    const Finish& finish = sink->Wait();
    if (finish.reason == FinishReason::kError) return finish.error;
    report.experts += finish.usage.experts;
    const TaskItem& item = items[index];
    TaskScore& score = report.tasks[item.task];
    ++score.items;
    if (sink->Line() == Strip(item.answer)) {
      ++score.correct;
    } else if (misses[item.task]++ < kMissesPerTask) {
      report.misses.push_back({item.task, item.prompt, item.answer, std::string(sink->Line())});
    }
    return {};
  };
  for (size_t i = 0; i < items.size(); ++i) {
    GenerationRequest request;
    request.name = "eval";
    request.quality = quality;
    request.prompt = tokenizer->Encode(items[i].prompt);
    if (request.prompt.empty()) return InvalidArgument("a task's prompt is empty");
    // Room for the answer and a wrong one somewhat longer; the line break usually ends it.
    request.max_tokens =
        static_cast<int>(std::min<size_t>(2 * tokenizer->Encode(items[i].answer).size() + 8,
                                          static_cast<size_t>(engine.max_context()) / 2));
    request.sampling.temperature = 0;
    auto sink = std::make_shared<LineSink>(engine, tokenizer);
    while (true) {
      Result<std::optional<RequestId>> id = TrySubmit(engine, request, sink);
      if (!id) return WithContext("task " + items[i].task, id.error());
      if (*id) {
        sink->SetId(**id);
        break;
      }
      if (pending.empty()) return ResourceExhausted("the engine's queue is full");
      if (Result<void> taken = take_front(); !taken) return taken.error();
    }
    pending.emplace_back(i, std::move(sink));
    if (progress) progress(static_cast<double>(i) / items.size());
  }
  while (!pending.empty()) {
    if (Result<void> taken = take_front(); !taken) return taken.error();
  }
  if (progress) progress(1.0);
  return report;
}

}  // namespace sluice
