// An OutputSink that keeps everything and lets another thread wait for the end: for tools and tests
// that want whole results instead of a stream.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/runtime/engine.h"

namespace sluice {

class Collector final : public OutputSink {
 public:
  void OnPrompt(std::vector<TokenOutput> prompt) override { prompt_ = std::move(prompt); }
  void OnToken(TokenOutput token) override { tokens_.push_back(std::move(token)); }
  void OnFinish(Finish finish) override {
    std::lock_guard<std::mutex> lock(mutex_);
    finish_ = std::move(finish);
    finished_at_ = std::chrono::steady_clock::now();
    finished_ = true;
    done_.notify_all();
  }

  // Blocks until OnFinish; the accessors below are for afterwards.
  const Finish& Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return finished_; });
    return finish_;
  }
  std::chrono::steady_clock::time_point finished_at() const { return finished_at_; }
  const std::vector<TokenOutput>& prompt() const { return prompt_; }
  const std::vector<TokenOutput>& tokens() const { return tokens_; }

 private:
  // Written by the engine thread before finished_ is set, read after Wait().
  std::vector<TokenOutput> prompt_;
  std::vector<TokenOutput> tokens_;

  std::mutex mutex_;
  std::condition_variable done_;
  bool finished_ = false;                              // GUARDED_BY(mutex_)
  std::chrono::steady_clock::time_point finished_at_;  // GUARDED_BY(mutex_) until finished_
  Finish finish_;                                      // GUARDED_BY(mutex_) until finished_
};

}  // namespace sluice
