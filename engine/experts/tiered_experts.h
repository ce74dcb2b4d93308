// Experts from a cache in front of a disk: the tiers that an expert layer sees as one ExpertSource.
//
// One layer of a step: what is resident is pinned and handed over at once; reads of what is missing
// are queued, the experts that most tokens wait for first; then reads of what the layers ahead will
// probably want, as far as the disk has time for them; experts are handed over as they land. So the
// disk works while the resident experts compute, and a step waits only when nothing is left to
// compute. When a layer needs more than the cache holds, experts come in waves: those computed make
// room for the next.
//
// Results do not depend on any of it where demands ask for all bits (quality.h): an expert is then
// computed from all the planes that the pack's precision asks for, or its tokens fail. A demand
// that accepts less waits for no more: it is handed over at once with the planes that are here when
// they are enough, only those that it needs are read when they are not, and it is skipped when it
// accepts that and nothing of the expert is here. The more demands accept it, the more experts are
// kept at low precision (ExpertCache::SetHighShare) and the fewer planes are read ahead; the rest
// follows when the disk has nothing else to do.
//
// Threads: one owner thread (the engine thread).
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/clock.h"
#include "engine/experts/expert_cache.h"
#include "engine/experts/expert_outlook.h"
#include "engine/experts/expert_predictor.h"
#include "engine/experts/expert_source.h"
#include "engine/experts/expert_store.h"
#include "engine/experts/live_guard.h"
#include "engine/experts/routing_tap.h"
#include "engine/experts/stream_profiles.h"
#include "engine/experts/tier_stats.h"

namespace sluice {

struct TieredOptions {
  bool keep = true;        // off: load on demand; nothing outlives its layer
  bool read_ahead = true;  // off: no read is issued before its layer asks
  bool guard = false;      // reads ahead only while they pay (live_guard.h)
  bool lenient = false;    // low precision is expected to be accepted, until requests tell
  // Every place once, in the order in which free memory is filled; empty: from the first layer on.
  std::vector<int> fill_order = {};
};

class TieredExperts final : public ExpertSource, public ExpertOutlook {
 public:
  // All but `clock` are owned. `predictor` may be null: then nothing is read ahead. What is
  // missing is read into free memory, in the order of fill_order, as soon as time allows.
  TieredExperts(ExpertCache cache, std::unique_ptr<ExpertStore> store,
                std::unique_ptr<ExpertPredictor> predictor, const TieredOptions& options,
                const Clock* clock);
  ~TieredExperts() override;

  void Begin(int layer, std::span<const ExpertDemand> demands, const RoutedTokens& routed) override;
  std::span<const ReadyExpert> Next(bool wait) override;
  void End() override;
  void BeginStep(int tokens) override;
  void EndStep() override;
  int horizon() const override;
  void Predict(int layer, int distance, const GateScores& scores) override;

  std::span<const float> Uses(int64_t stream) const override { return profiles_.Find(stream); }
  const ExpertSpace& space() const override { return space_; }
  bool resident(int place) const override { return cache_.whole(place) || !cache_.exists(place); }
  int capacity() const override;
  bool complete() const override { return cache_.complete(); }
  ExpertStepCounts last_step() const override { return last_step_; }

  // A sequence ended.
  void OnStreamEnd(int64_t stream);
  // Before the first step; null: nobody listens. `tap` outlives the last step.
  void SetTap(RoutingTap* tap) { tap_ = tap; }

  // Between steps. Fills free memory a little, taking up to a few milliseconds; false when there is
  // nothing to do.
  bool Background();
  // Between steps. Fills read the experts that were hottest in an earlier run first (by place), and
  // not layer by layer. Nothing for another number of them than there are.
  void SetFillOrder(std::span<const float> heat);
  // Between steps. Evicts down to `bytes`, or lets the cache grow to them.
  void SetMemory(size_t bytes);
  const ExpertCache& cache() const { return cache_; }
  // Cheap enough for several times a second, not for every step.
  ExpertTierStats stats() const;

 private:
  enum class Purpose : uint8_t { kNone, kDemand, kPredicted, kFill };
  struct Flight {
    Purpose purpose = Purpose::kNone;  // of the read that is queued or in flight
    bool ahead = false;                // resident by prediction, not asked for yet
    int demand = -1;                   // of the open layer
    bool waiting = false;              // the demand waits for the read
  };
  struct Ahead {
    std::vector<float> probability;                 // [experts_per_layer]
    std::vector<std::pair<float, int>> candidates;  // (probability, place), the likeliest first
    size_t next = 0;                                // candidates before it were looked at
    bool valid = false;                             // made in this step for the coming visit
  };

  using TimePoint = std::chrono::steady_clock::time_point;

  void Submit(int place, Purpose purpose, int urgency);
  // Takes a read that ended or changes its purpose out of the counts of its purpose.
  void Settle(int place);
  void Land(const LandedRead& landed);
  void Collect(bool wait);
  // Queues reads of missing_, while there is memory.
  void PumpDemand();
  // Queues predicted reads, then fills.
  void PumpAhead();
  void PumpFill();
  // Fills begin anew, with the hottest experts.
  void SortFill();
  // Makes ahead_[layer] for the coming visit.
  void EstimateLayer(int layer);
  // Forgets a read that has not begun; false when it has.
  bool Withdraw(int place);
  // Withdraws predicted reads for `layer`, whose experts are now known; -1: predicted reads and
  // fills of all layers.
  void Drop(int layer);
  void ReleaseHandedOver();
  void FailDemand(int demand, Error error);
  bool reading_ahead() const;
  // What is read of an expert before anybody asks: all, or what most demands accept.
  int SetsAhead(int place) const;
  // Reads the high planes of experts that are expected and partly here.
  void PumpUpgrades();
  void NoteAccepted();

  ExpertCache cache_;
  std::unique_ptr<ExpertPredictor> predictor_;
  TieredOptions options_;
  const Clock* const clock_;
  const ExpertSpace space_;
  std::optional<LiveGuard> guard_;  // of reads ahead
  RoutingTap* tap_ = nullptr;

  std::vector<Flight> flights_;  // [place]
  std::vector<int> predicted_;   // places with a predicted read queued or in flight
  size_t predicted_bytes_ = 0;   // of these
  int fill_flights_ = 0;
  int flights_total_ = 0;
  std::vector<int> first_order_;  // places, those to be filled first first, before any is used
  std::vector<int> fill_order_;   // as first_order_, but the hottest first
  size_t fill_next_ = 0;          // in fill_order_; those before it need no fill
  bool fill_whole_ = false;       // the low planes of all are here; now the others

  // The open layer.
  int layer_ = -1;
  std::span<const ExpertDemand> demands_;
  std::vector<int> missing_;  // demands, the most wanted first
  size_t missing_next_ = 0;
  size_t outstanding_ = 0;  // demands not handed over
  std::vector<ReadyExpert> ready_;
  std::vector<ReadyExpert> handed_over_;
  std::vector<Error> errors_;  // [demand]
  std::vector<int> least_;     // [demand] plane sets that it waits for

  // What demands of late accepted: those of each number of bits, older ones counting less.
  std::array<float, kAllBits + 1> accepted_{};
  int bits_ahead_ = kAllBits;  // that most accept
  bool lenient_ = false;       // some accept less than all

  // The step.
  StreamProfiles profiles_;
  ExpertStepCounts step_counts_, last_step_;
  int64_t steps_ = 0;
  std::vector<int64_t> heat_step_;  // [place] when its heat was last brought up to date
  int tokens_ = 0;
  TimePoint step_begin_;
  double layer_seconds_ = 0;     // of the last step
  double bytes_per_second_ = 0;  // of the disk, so far
  std::vector<Ahead> ahead_;     // [layer]

  std::vector<ExpertUse> uses_;
  std::vector<LandedRead> landed_;
  ExpertTierStats stats_;               // layers and heat; the rest is added by stats()
  std::unique_ptr<ExpertStore> store_;  // last: its reads write into the cache's memory
};

}  // namespace sluice
