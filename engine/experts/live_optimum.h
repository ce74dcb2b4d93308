// What the best possible cache would have hit on the last demands of a running engine, beside what
// the real one hit on the very same demands: how much a better policy could still gain.
//
// The window is replayed (replay.h, Belady) twice in a row with the cache's present size, and the
// second time counts: the optimum then begins with a full cache, as the real one does, and with the
// one that suits it best, so that it is a bound for every policy. It reads nothing ahead: real hits
// may exceed it where reads ahead are in time. Replays run on a thread of their own and only while
// somebody asks.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/experts/routing_tap.h"

namespace sluice {

class LiveOptimum final : public RoutingTap {
 public:
  static constexpr size_t kWindowDemands = size_t{1} << 15;

  // Shares of the window's demands; negative: not known yet.
  struct Rates {
    double optimal = -1;
    double hits = -1;
    int64_t demands = 0;
  };

  // expert_bytes: one size for all experts, or [place] (TraceModel::expert_bytes).
  LiveOptimum(ExpertSpace space, std::vector<uint64_t> expert_bytes,
              size_t window_demands = kWindowDemands);
  ~LiveOptimum() override;

  // Engine thread. EndStep takes a lock that is held elsewhere for the copy of the window only,
  // some 100 kB.
  void OnLayer(int layer, const RoutedTokens& routed, std::span<const ExpertUse> uses) override;
  void EndStep() override;

  // Any thread, without waiting: of the window that was replayed last. When there were steps since,
  // another replay begins, with a cache of `capacity_bytes`; a later call has its outcome.
  Rates Latest(uint64_t capacity_bytes);
  // For tests: waits until what was asked for is done.
  Rates Wait();

 private:
  void Run();
  static Rates Replay(ExpertSpace space, const std::vector<uint64_t>& expert_bytes,
                      const std::vector<uint32_t>& window, uint64_t capacity_bytes);

  const ExpertSpace space_;
  const std::vector<uint64_t> expert_bytes_;
  const size_t window_demands_;

  // The open step: for every visit its layer, its number of demands, and for each of them
  // 2 * expert + hit. Engine thread.
  std::vector<uint32_t> step_;
  uint32_t step_demands_ = 0;

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  // GUARDED_BY(mutex_), all of these.
  std::vector<uint32_t> window_;  // steps: words that follow, demands, then as step_
  size_t first_ = 0;              // word of the oldest step that counts
  size_t demands_ = 0;            // from there on
  uint64_t steps_ = 0, replayed_steps_ = 0;
  uint64_t capacity_bytes_ = 0;
  bool asked_ = false, closing_ = false;
  Rates rates_;

  std::thread thread_;  // last: starts when the rest is there
};

}  // namespace sluice
