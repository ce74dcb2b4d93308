// What one API key may do: requests at the same time, requests and tokens per minute. Asked before
// a request's body is read, and again before it is parsed.
//
// Rates are buckets that hold a minute's allowance and fill evenly. A request takes one from the
// first bucket when it enters; its tokens leave the second when they are known, also below zero:
// then the key waits until it has filled up again. So nothing is counted before it is refused.
//
// Safe from any thread.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/config/api_keys.h"

namespace sluice {

class KeyGate {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  struct Refusal {
    const char* reason = "";  // for metrics: "key_concurrency", "key_requests" or "key_tokens"
    std::string message;      // says which limit, without the key
    double retry_after_seconds = 0;
  };

  // A request on its way; counts until it is destroyed. May outlive the gate.
  class Pass;

  // `keys` by their index in ApiKeys; empty: one key without limits.
  explicit KeyGate(const std::vector<KeyLimits>& keys);

  // What Enter would refuse; nothing when it would let the request in. REQUIRES: key < the number
  // of keys.
  std::optional<Refusal> Check(size_t key, TimePoint now) const;
  // Null, with the reason in `refusal`, or the request's pass.
  std::shared_ptr<Pass> Enter(size_t key, TimePoint now, Refusal* refusal);

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

class KeyGate::Pass {
 public:
  Pass(std::shared_ptr<State> state, size_t key, TimePoint now)
      : state_(std::move(state)), key_(key), entered_(now) {}
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  ~Pass();

  size_t key() const { return key_; }
  // Charges tokens to the key.
  void Spend(int64_t tokens);

 private:
  const std::shared_ptr<State> state_;
  const size_t key_;
  const TimePoint entered_;
};

}  // namespace sluice
