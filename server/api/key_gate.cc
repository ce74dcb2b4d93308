#include "server/api/key_gate.h"

#include <algorithm>
#include <mutex>

#include "engine/base/check.h"

namespace sluice {
namespace {

double SecondsBetween(KeyGate::TimePoint from, KeyGate::TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

// An allowance per minute; no limit when it is 0.
class Bucket {
 public:
  explicit Bucket(int per_minute) : per_minute_(per_minute), level_(per_minute) {}

  bool limited() const { return per_minute_ > 0; }
  double Level(KeyGate::TimePoint now) const {
    const double filled = level_ + std::max(0.0, SecondsBetween(at_, now)) * per_minute_ / 60;
    return std::min(filled, per_minute_);
  }
  void Take(double amount, KeyGate::TimePoint now) {
    level_ = Level(now) - amount;
    at_ = now;
  }
  // Until it holds `amount`.
  double SecondsUntil(double amount, KeyGate::TimePoint now) const {
    return (amount - Level(now)) * 60 / per_minute_;
  }

 private:
  double per_minute_;
  double level_;
  KeyGate::TimePoint at_{};  // before all others: full
};

}  // namespace

struct KeyGate::State {
  struct Key {
    explicit Key(const KeyLimits& l)
        : limits(l), requests(l.requests_per_minute), tokens(l.tokens_per_minute) {}
    KeyLimits limits;
    int in_flight = 0;
    double usual_seconds = 0;  // of its requests; 0: none has ended
    Bucket requests, tokens;
  };

  std::optional<Refusal> Check(const Key& key, TimePoint now) const;

  mutable std::mutex mutex;
  std::vector<Key> keys;  // GUARDED_BY(mutex)
};

std::optional<KeyGate::Refusal> KeyGate::State::Check(const Key& key, TimePoint now) const {
  const KeyLimits& limits = key.limits;
  if (limits.max_concurrent > 0 && key.in_flight >= limits.max_concurrent) {
    // One of them ends after a share of what one usually takes.
    return Refusal{"key_concurrency",
                   "This API key may have " + std::to_string(limits.max_concurrent) +
                       " requests running at the same time (max_concurrent); wait for one to end.",
                   key.usual_seconds / limits.max_concurrent};
  }
  if (key.requests.limited() && key.requests.Level(now) < 1) {
    return Refusal{"key_requests",
                   "This API key may make " + std::to_string(limits.requests_per_minute) +
                       " requests per minute (requests_per_minute).",
                   key.requests.SecondsUntil(1, now)};
  }
  if (key.tokens.limited() && key.tokens.Level(now) <= 0) {
    return Refusal{"key_tokens",
                   "This API key may use " + std::to_string(limits.tokens_per_minute) +
                       " tokens per minute, of prompts and answers (tokens_per_minute).",
                   key.tokens.SecondsUntil(1, now)};
  }
  return std::nullopt;
}

KeyGate::KeyGate(const std::vector<KeyLimits>& keys) : state_(std::make_shared<State>()) {
  for (const KeyLimits& limits : keys) state_->keys.emplace_back(limits);
  if (keys.empty()) state_->keys.emplace_back(KeyLimits{});
}

std::optional<KeyGate::Refusal> KeyGate::Check(size_t key, TimePoint now) const {
  std::lock_guard lock(state_->mutex);
  SLUICE_CHECK(key < state_->keys.size());
  return state_->Check(state_->keys[key], now);
}

std::shared_ptr<KeyGate::Pass> KeyGate::Enter(size_t key, TimePoint now, Refusal* refusal) {
  {
    std::lock_guard lock(state_->mutex);
    SLUICE_CHECK(key < state_->keys.size());
    State::Key& entered = state_->keys[key];
    if (auto refused = state_->Check(entered, now)) {
      *refusal = std::move(*refused);
      return nullptr;
    }
    ++entered.in_flight;
    if (entered.requests.limited()) entered.requests.Take(1, now);
  }
  return std::make_shared<Pass>(state_, key, now);
}

void KeyGate::Pass::Spend(int64_t tokens) {
  const auto now = std::chrono::steady_clock::now();
  std::lock_guard lock(state_->mutex);
  Bucket& bucket = state_->keys[key_].tokens;
  if (bucket.limited()) bucket.Take(static_cast<double>(tokens), now);
}

KeyGate::Pass::~Pass() {
  const double seconds = SecondsBetween(entered_, std::chrono::steady_clock::now());
  std::lock_guard lock(state_->mutex);
  State::Key& key = state_->keys[key_];
  --key.in_flight;
  constexpr double kNewest = 0.2;
  key.usual_seconds += (key.usual_seconds > 0 ? kNewest : 1) * (seconds - key.usual_seconds);
}

}  // namespace sluice
