// Where the engine thread leaves what happened to the sequences of one request, and the connection
// takes it. Posting never blocks beyond a short lock. The mailbox bounds what a slow reader can
// pile up: past `limit_bytes` of tokens it overflows, and the sequence is cancelled from the engine
// thread, however long the reader sleeps.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "engine/runtime/engine.h"

namespace sluice {

class Metrics;

struct Mail {
  int choice = 0;
  std::chrono::steady_clock::time_point time;
  std::variant<std::vector<TokenOutput>, TokenOutput, Finish> content;
};

class Mailbox {
 public:
  // `wake` is called, outside the lock, when the mailbox stops being empty.
  Mailbox(size_t limit_bytes, std::function<void()> wake);

  // False when the mailbox has overflowed: tokens are dropped from then on, finishes are kept.
  bool Post(Mail mail);
  // Takes everything, in order. Returns whether the mailbox has ever overflowed.
  bool Drain(std::vector<Mail>& out);

 private:
  const size_t limit_bytes_;
  const std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<Mail> mail_;
  size_t bytes_ = 0;
  bool overflowed_ = false;
};

// The engine's end of the mailbox for one sequence.
class MailboxSink final : public OutputSink {
 public:
  // `engine` outlives the calls that it makes here. `metrics` may be null.
  MailboxSink(std::shared_ptr<Mailbox> mailbox, int choice, Engine* engine,
              std::shared_ptr<Metrics> metrics);

  // Submit's answer, for cancelling on overflow.
  void SetId(RequestId id) { id_.store(id); }

  void OnPrompt(std::vector<TokenOutput> prompt) override;
  void OnToken(TokenOutput token) override;
  void OnFinish(Finish finish) override;

 private:
  const std::shared_ptr<Mailbox> mailbox_;
  const int choice_;
  Engine* const engine_;
  const std::shared_ptr<Metrics> metrics_;
  std::atomic<RequestId> id_ = kNoId;
  static constexpr RequestId kNoId = ~RequestId{0};
};

}  // namespace sluice
