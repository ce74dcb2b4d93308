#include "engine/runtime/engine.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/check.h"
#include "engine/runtime/engine_core.h"

namespace sluice {
namespace {

// An idle engine thread still turns its loop this often: the watchdog's pulse.
constexpr std::chrono::seconds kIdleTurn{1};

class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(std::unique_ptr<Model> model, const EngineOptions& options, StepObserver observer)
      : model_(std::move(model)),
        core_(model_.get(), options, &clock_, std::move(observer)),
        thread_([this] { Run(); }) {}

  ~ThreadedEngine() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  Result<RequestId> Submit(GenerationRequest request, std::shared_ptr<OutputSink> sink) override {
    SLUICE_CHECK(sink != nullptr);
    if (Result<> valid = core_.Validate(request); !valid) return valid.error();
    RequestId id = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (draining_) return Unavailable("the server is draining: it takes no new requests");
      if (!core_.Reserve(static_cast<int64_t>(request.prompt.size()))) {
        const EngineStats stats = core_.Stats();
        return ResourceExhausted("the queue is full: " + std::to_string(stats.queued_requests) +
                                 " requests with " + std::to_string(stats.queued_tokens) +
                                 " prompt tokens wait already; try again later");
      }
      id = next_id_++;
      submissions_.push_back({id, std::move(request), std::move(sink), clock_.Now()});
    }
    wake_.notify_one();
    return id;
  }

  void Cancel(RequestId id) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (id == 0 || id >= next_id_) return;
      cancels_.push_back(id);
    }
    wake_.notify_one();
  }

  void BeginDrain() override {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
  }

  bool Idle() const override { return core_.Idle(); }

  void SetMemoryBudget(uint64_t bytes, std::function<void(Result<>)> done) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      budgets_.push_back({bytes, std::move(done)});
    }
    wake_.notify_one();
  }

  EngineStats Stats() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    EngineStats stats = core_.Stats();
    stats.waiting += static_cast<int>(submissions_.size());
    return stats;
  }

  std::chrono::steady_clock::time_point LastPulse() const override {
    return TimePoint(TimePoint::duration(pulse_.load(std::memory_order_relaxed)));
  }

  const Model& model() const override { return *model_; }
  int max_context() const override { return core_.max_context(); }

 private:
  struct Submission {
    RequestId id = 0;
    GenerationRequest request;
    std::shared_ptr<OutputSink> sink;
    TimePoint at;
  };

  struct Budget {
    uint64_t bytes = 0;
    std::function<void(Result<>)> done;
  };

  void Pulse() { pulse_.store(clock_.Now().time_since_epoch().count(), std::memory_order_relaxed); }

  void Run() {
    std::vector<Submission> submissions;
    std::vector<RequestId> cancels;
    std::vector<Budget> budgets;
    const auto pulse = [this] { Pulse(); };
    core_.RestoreState(pulse);
    for (bool stopping = false, busy = true; !stopping;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!busy) {
          wake_.wait_for(lock, kIdleTurn, [this] {
            return stopping_ || !submissions_.empty() || !cancels_.empty() || !budgets_.empty();
          });
        }
        submissions.swap(submissions_);
        cancels.swap(cancels_);
        budgets.swap(budgets_);
        stopping = stopping_;
      }
      // Submissions first: whoever cancels has an id, so its submission is here or was before.
      for (Submission& s : submissions) {
        core_.Add(s.id, std::move(s.request), std::move(s.sink), s.at);
      }
      submissions.clear();
      for (RequestId id : cancels) core_.Cancel(id);
      cancels.clear();
      for (const Budget& budget : budgets) {
        budget.done(stopping
                        ? Result<>(Cancelled("the server stops; the memory budget is as it was"))
                        : core_.SetMemoryBudget(budget.bytes));
      }
      budgets.clear();
      busy = !stopping && (core_.Step() || core_.Background());
      Pulse();
    }
    core_.CancelAll();
    core_.SaveState(pulse);
  }

  const SteadyClock clock_;
  const std::unique_ptr<Model> model_;
  EngineCore core_;  // the engine thread's, but for its functions for any thread

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Submission> submissions_;  // GUARDED_BY(mutex_)
  std::vector<RequestId> cancels_;       // GUARDED_BY(mutex_)
  std::vector<Budget> budgets_;          // GUARDED_BY(mutex_)
  RequestId next_id_ = 1;                // GUARDED_BY(mutex_)
  bool draining_ = false;                // GUARDED_BY(mutex_)
  bool stopping_ = false;                // GUARDED_BY(mutex_)

  std::atomic<TimePoint::rep> pulse_{clock_.Now().time_since_epoch().count()};
  std::thread thread_;  // last: it uses everything above
};

}  // namespace

std::unique_ptr<Engine> Engine::Start(std::unique_ptr<Model> model, const EngineOptions& options,
                                      StepObserver observer) {
  SLUICE_CHECK(model != nullptr);
  return std::make_unique<ThreadedEngine>(std::move(model), options, std::move(observer));
}

}  // namespace sluice
