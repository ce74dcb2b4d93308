#include "engine/experts/tiered_experts.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/base/check.h"

namespace sluice {
namespace {

// Layers looked at for reads ahead, beyond which guesses are worth little.
constexpr int kMaxDistance = 4;
// A guess below this is not worth a read: a demand that comes meanwhile waits for it. Measured at
// half and a quarter of a model, against 0.3 and 0.5: 4 to 9% more tokens, 6% fewer bytes.
constexpr float kLeastProbability = 0.7f;
// Experts handed over together while others wait for memory: small enough that memory comes free
// while the next are computed, large enough to keep all workers busy.
constexpr size_t kWave = 8;
constexpr int kFillReads = 4;
// The least precision that is read ahead.
constexpr int kLeastAheadBits = 2;
// Of what demands accept: what a step leaves of the steps before.
constexpr float kAcceptedKeep = 0.95f;

float Decay(int64_t steps) {
  return std::exp2(-static_cast<float>(steps) / ExpertTierStats{}.heat_half_life_steps);
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

TieredExperts::TieredExperts(ExpertCache cache, std::unique_ptr<ExpertStore> store,
                             std::unique_ptr<ExpertPredictor> predictor,
                             const TieredOptions& options, const Clock* clock)
    : cache_(std::move(cache)),
      predictor_(std::move(predictor)),
      options_(options),
      clock_(clock),
      space_(cache_.space()),
      flights_(static_cast<size_t>(space_.size())),
      profiles_(space_),
      ahead_(static_cast<size_t>(space_.layers)),
      store_(std::move(store)) {
  for (Ahead& ahead : ahead_) {
    ahead.probability.resize(space_.experts_per_layer);
    ahead.candidates.reserve(space_.experts_per_layer);
  }
  const auto experts = static_cast<size_t>(space_.experts_per_layer);
  missing_.reserve(experts);
  ready_.reserve(experts);
  handed_over_.reserve(experts);
  errors_.resize(experts);
  least_.resize(experts);
  uses_.reserve(experts);
  stats_.layers.resize(space_.layers);
  stats_.links.resize(1);
  stats_.links[0].name = "disk";
  stats_.experts_per_layer = space_.experts_per_layer;
  stats_.heat.resize(static_cast<size_t>(space_.size()));
  heat_step_.resize(stats_.heat.size());
  accepted_[options_.lenient ? kLeastAheadBits : kAllBits] = 1;
  NoteAccepted();
  first_order_ = options_.fill_order;
  if (first_order_.empty()) {
    first_order_.resize(flights_.size());
    std::iota(first_order_.begin(), first_order_.end(), 0);
  }
  SLUICE_CHECK(first_order_.size() == flights_.size());
  SortFill();
  if (options_.guard && options_.read_ahead) guard_.emplace("prefetch", LiveGuardOptions{}, true);
  if (options_.keep) PumpFill();
}

TieredExperts::~TieredExperts() = default;

ExpertTierStats TieredExperts::stats() const {
  ExpertTierStats stats = stats_;
  const ExpertStoreStats store = store_->stats();
  stats.links[0].reads = store.reads;
  stats.links[0].busy_seconds = store.busy_seconds;
  stats.links[0].retries = store.retries;
  stats.links[0].method = store_->description();
  stats.links[0].pack_truncated = store.pack_truncated;
  stats.links[0].pack_replaced = store.pack_replaced;
  stats.tiers = {{"host", cache_.slab().limit(), cache_.slab().used()}};
  stats.resident_planes.resize(static_cast<size_t>(space_.size()));
  for (int place = 0; place < space_.size(); ++place) {
    if (!cache_.exists(place)) continue;
    stats.resident_planes[place] = static_cast<uint8_t>(cache_.resident_sets(place));
    ExpertTierStats::Layer& layer = stats.layers[space_.id(place).layer];
    if (cache_.whole(place)) ++layer.resident;
    if (cache_.pinned(place)) ++layer.pinned;
    // Evicted, and nobody asked since.
    if (flights_[place].ahead && cache_.resident_sets(place) == 0) ++layer.prefetch_wasted;
  }
  if (guard_) stats.guards.push_back(guard_->stats());
  if (predictor_ != nullptr) {
    const PredictorStats predictions = predictor_->stats();
    for (size_t i = 0; i < predictions.layers.size() && i < stats.layers.size(); ++i) {
      stats.layers[i].prediction_wanted = predictions.layers[i].wanted;
      stats.layers[i].prediction_hits = predictions.layers[i].predicted;
    }
  }
  // The heat of experts that were not asked for lately is brought up to date here.
  for (size_t place = 0; place < stats.heat.size(); ++place) {
    stats.heat[place] *= Decay(steps_ - heat_step_[place]);
  }
  return stats;
}

int TieredExperts::capacity() const {
  int experts = 0;
  for (int place = 0; place < space_.size(); ++place) experts += cache_.exists(place) ? 1 : 0;
  const double share =
      static_cast<double>(cache_.slab().limit()) / static_cast<double>(cache_.all_bytes());
  return static_cast<int>(std::min(1.0, share) * experts);
}

bool TieredExperts::reading_ahead() const {
  return options_.read_ahead && options_.keep && predictor_ != nullptr && !cache_.complete() &&
         (!guard_ || guard_->on());
}

int TieredExperts::horizon() const {
  return reading_ahead() ? std::min(predictor_->horizon(tokens_), kMaxDistance) : 0;
}

void TieredExperts::BeginStep(int tokens) {
  ++steps_;
  tokens_ = tokens;
  step_begin_ = clock_->Now();
  step_counts_ = {};
  for (Ahead& ahead : ahead_) ahead.valid = false;
}

void TieredExperts::OnStreamEnd(int64_t stream) {
  if (predictor_ != nullptr) predictor_->OnStreamEnd(stream);
  if (tap_ != nullptr) tap_->OnStreamEnd(stream);
}

void TieredExperts::EndStep() {
  if (tap_ != nullptr) tap_->EndStep();
  const double seconds = Seconds(clock_->Now() - step_begin_);
  layer_seconds_ = seconds / space_.layers;
  step_counts_.seconds = seconds;
  last_step_ = step_counts_;
  NoteAccepted();
  if (guard_ && !cache_.complete()) guard_->OnStep(/*kind=*/0, tokens_, seconds);
  const ExpertStoreStats store = store_->stats();
  if (store.busy_seconds > 0) {
    bytes_per_second_ = static_cast<double>(store.bytes) / store.busy_seconds;
  }
}

void TieredExperts::Submit(int place, Purpose purpose, int urgency) {
  ExpertRead read;
  read.ticket = static_cast<uint64_t>(place);
  read.expert = space_.id(place);
  read.first_set = cache_.resident_sets(place);
  read.end_set = cache_.held_sets(place);
  for (int set = read.first_set; set < read.end_set; ++set) {
    read.destination[set] = cache_.set_address(place, set);
  }
  read.urgency = urgency;
  Flight& flight = flights_[place];
  flight.purpose = purpose;
  // An earlier read ahead left the cache unused, or was of too few planes.
  if ((read.first_set == 0 || purpose == Purpose::kPredicted) &&
      std::exchange(flight.ahead, false)) {
    ++stats_.layers[read.expert.layer].prefetch_wasted;
  }
  ++flights_total_;
  switch (purpose) {
    case Purpose::kDemand:
      break;
    case Purpose::kPredicted:
      predicted_.push_back(place);
      predicted_bytes_ += cache_.bytes(place, read.first_set, read.end_set);
      ++stats_.layers[read.expert.layer].prefetch_issued;
      break;
    case Purpose::kFill:
      ++fill_flights_;
      break;
    case Purpose::kNone:
      SLUICE_CHECK(false);
  }
  store_->Submit(read);
}

void TieredExperts::Settle(int place) {
  switch (std::exchange(flights_[place].purpose, Purpose::kNone)) {
    case Purpose::kPredicted:
      predicted_.erase(std::find(predicted_.begin(), predicted_.end(), place));
      predicted_bytes_ -= cache_.bytes(place, cache_.resident_sets(place), cache_.held_sets(place));
      break;
    case Purpose::kFill:
      --fill_flights_;
      break;
    case Purpose::kDemand:
    case Purpose::kNone:
      break;
  }
  --flights_total_;
}

void TieredExperts::Land(const LandedRead& landed) {
  const int place = static_cast<int>(landed.ticket);
  Flight& flight = flights_[place];
  SLUICE_CHECK(flight.purpose != Purpose::kNone, "a read landed that nobody asked for");
  const bool predicted = flight.purpose == Purpose::kPredicted;
  ExpertTierStats::Layer& counts = stats_.layers[space_.id(place).layer];
  ExpertTierStats::Link& link = stats_.links[0];
  Settle(place);
  if (landed.ok) {
    const int first = cache_.resident_sets(place), end = cache_.held_sets(place);
    const size_t bytes = cache_.bytes(place, first, end);
    counts.planes_read += static_cast<uint64_t>(end - first);
    counts.bytes_read += bytes;
    (flight.waiting ? link.demand_bytes : link.prefetch_bytes) += bytes;
    cache_.Land(place);
    if (predicted) flight.ahead = true;
  } else {
    cache_.Abandon(place);
    if (predicted) ++counts.prefetch_wasted;
  }
  if (!std::exchange(flight.waiting, false)) return;
  const bool cancelled = !landed.ok && landed.error.code == ErrorCode::kCancelled;
  if (cancelled || (landed.ok && cache_.resident_sets(place) < least_[flight.demand])) {
    // It was withdrawn before its layer asked for it, or brought less than that needs.
    missing_.push_back(flight.demand);
    return;
  }
  if (!landed.ok) return FailDemand(flight.demand, landed.error);
  cache_.Pin(place);
  ready_.push_back({flight.demand, &cache_.weights(place)});
}

void TieredExperts::FailDemand(int demand, Error error) {
  ++stats_.links[0].failures;
  errors_[demand] = std::move(error);
  ready_.push_back({demand, nullptr, &errors_[demand]});
}

void TieredExperts::Collect(bool wait) {
  landed_.clear();
  store_->Collect(wait, &landed_);
  for (const LandedRead& landed : landed_) Land(landed);
}

bool TieredExperts::Withdraw(int place) {
  if (!store_->Cancel(static_cast<uint64_t>(place))) return false;
  if (flights_[place].purpose == Purpose::kPredicted) {
    ++stats_.layers[space_.id(place).layer].prefetch_cancelled;
  }
  Settle(place);
  cache_.Abandon(place);
  return true;
}

void TieredExperts::Drop(int layer) {
  for (size_t i = predicted_.size(); i-- > 0;) {
    const int place = predicted_[i];
    if (layer < 0 || space_.id(place).layer == layer) Withdraw(place);
  }
  if (layer >= 0 || fill_flights_ == 0) return;
  for (int place = 0; place < space_.size(); ++place) {
    if (flights_[place].purpose == Purpose::kFill && Withdraw(place)) fill_next_ = 0;
  }
}

void TieredExperts::Begin(int layer, std::span<const ExpertDemand> demands,
                          const RoutedTokens& routed) {
  layer_ = layer;
  demands_ = demands;
  missing_.clear();
  missing_next_ = 0;
  outstanding_ = demands.size();
  ready_.clear();
  uses_.clear();
  if (flights_total_ > 0) Collect(false);
  ExpertTierStats::Layer& counts = stats_.layers[layer];
  for (size_t d = 0; d < demands.size(); ++d) {
    const int place = space_.place({layer, demands[d].expert});
    const int demand = static_cast<int>(d);
    Flight& flight = flights_[place];
    const int8_t bits = demands[d].least_bits;
    const int least = cache_.SetsFor(place, bits);
    least_[d] = least;
    accepted_[bits] += 1;
    const int resident = cache_.resident_sets(place);
    const bool hit = resident > 0 && resident >= least;
    uses_.push_back({demands[d].expert, demands[d].tokens, demands[d].weight, hit});
    const bool skipped = resident == 0 && least == 0;
    if (!skipped) ++(hit ? counts.hits : counts.misses);
    step_counts_.missed += hit || skipped ? 0 : 1;
    stats_.heat[place] = 1 + stats_.heat[place] * Decay(steps_ - heat_step_[place]);
    heat_step_[place] = steps_;
    flight.demand = demand;
    if (std::exchange(flight.ahead, false)) ++(hit ? counts.prefetch_used : counts.prefetch_wasted);
    if (hit) {
      cache_.Pin(place);
      ready_.push_back({demand, &cache_.weights(place)});
    } else if (skipped) {
      ready_.push_back({demand});
    } else if (cache_.reading(place)) {
      flight.waiting = true;
      if (flight.purpose == Purpose::kPredicted) ++counts.prefetch_late;
      Settle(place);
      flight.purpose = Purpose::kDemand;
      ++flights_total_;
      store_->SetUrgency(static_cast<uint64_t>(place), kUrgencyDemand);
    } else {
      // Low planes that are here stay evictable: pinned, those of several experts could leave no
      // room for the rest of any.
      missing_.push_back(demand);
    }
  }
  step_counts_.touched += static_cast<int>(demands.size());
  profiles_.OnRouted(layer, routed);
  cache_.policy().OnLayer(layer, routed.tokens, uses_);
  if (tap_ != nullptr) tap_->OnLayer(layer, routed, uses_);
  if (predictor_ != nullptr) predictor_->OnRouted(layer, routed);
  ahead_[layer].valid = false;
  Drop(layer);
  std::stable_sort(missing_.begin(), missing_.end(),
                   [&](int a, int b) { return demands[a].tokens > demands[b].tokens; });
  PumpDemand();
}

void TieredExperts::PumpDemand() {
  while (missing_next_ < missing_.size()) {
    const int demand = missing_[missing_next_];
    const int place = space_.place({layer_, demands_[demand].expert});
    const int sets = least_[demand];
    if (!cache_.Claim(place, sets, CacheClaim::kDemand, layer_)) {
      // Memory may be held by reads that nobody waits for.
      if (predicted_.empty() && fill_flights_ == 0) return;
      Drop(-1);
      if (!cache_.Claim(place, sets, CacheClaim::kDemand, layer_)) return;
    }
    ++missing_next_;
    flights_[place].waiting = true;
    Submit(place, Purpose::kDemand, kUrgencyDemand);
  }
}

void TieredExperts::ReleaseHandedOver() {
  for (const ReadyExpert& expert : handed_over_) {
    const int place = space_.place({layer_, demands_[expert.demand].expert});
    flights_[place].demand = -1;
    if (cache_.pinned(place)) cache_.Unpin(place);
    if (!options_.keep && cache_.resident_sets(place) > 0) cache_.Evict(place);
  }
  handed_over_.clear();
}

std::span<const ReadyExpert> TieredExperts::Next(bool wait) {
  ReleaseHandedOver();
  if (outstanding_ == 0) return {};
  if (flights_total_ > 0) Collect(false);
  PumpDemand();
  PumpAhead();
  if (ready_.empty() && wait) {
    const TimePoint begin = clock_->Now();
    while (ready_.empty()) {
      if (flights_total_ == 0) {
        // Nothing is pinned or in flight and still there is no room.
        const int demand = missing_[missing_next_++];
        FailDemand(demand, ResourceExhausted("the expert cache is too small for one expert; raise "
                                             "the memory budget"));
        break;
      }
      Collect(true);
      PumpDemand();
    }
    const double seconds = Seconds(clock_->Now() - begin);
    stats_.layers[layer_].stall_seconds += seconds;
    step_counts_.stall_seconds += seconds;
  }
  // All that is ready; a part of it while others wait for the memory of those computed.
  const bool starved = missing_next_ < missing_.size();
  const size_t count = starved ? std::min(ready_.size(), kWave) : ready_.size();
  handed_over_.assign(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(count));
  ready_.erase(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(count));
  outstanding_ -= count;
  for (ReadyExpert& expert : handed_over_) {
    if (expert.error != nullptr) continue;
    const ExpertDemand& demand = demands_[expert.demand];
    expert.degraded = !expert.skipped() && !cache_.whole(space_.place({layer_, demand.expert}));
    if (expert.degraded || expert.skipped()) {
      stats_.layers[layer_].degraded_assignments += static_cast<uint64_t>(demand.tokens);
    }
  }
  return handed_over_;
}

void TieredExperts::End() {
  ReleaseHandedOver();
  SLUICE_CHECK(outstanding_ == 0, "a layer ends when all its experts were handed over");
  PumpAhead();
}

void TieredExperts::Predict(int layer, int distance, const GateScores& scores) {
  predictor_->OnScores(layer, distance, scores);
  ahead_[layer].valid = false;
}

void TieredExperts::EstimateLayer(int layer) {
  Ahead& ahead = ahead_[layer];
  ahead.valid = true;
  ahead.next = 0;
  ahead.candidates.clear();
  predictor_->Estimate(layer, tokens_, ahead.probability);
  cache_.policy().OnPredicted(layer, ahead.probability);
  if (tap_ != nullptr) tap_->OnPredicted(layer, ahead.probability);
  for (int e = 0; e < space_.experts_per_layer; ++e) {
    const int place = space_.place({layer, e});
    if (ahead.probability[e] < kLeastProbability || !cache_.exists(place)) continue;
    if (!cache_.whole(place)) ahead.candidates.emplace_back(ahead.probability[e], place);
  }
  std::sort(ahead.candidates.begin(), ahead.candidates.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
}

int TieredExperts::SetsAhead(int place) const { return cache_.SetsFor(place, bits_ahead_); }

void TieredExperts::NoteAccepted() {
  float sum = 0;
  for (const float count : accepted_) sum += count;
  if (sum > 0) {
    const float insisting = accepted_[kAllBits] / sum;
    lenient_ = insisting < 0.999f;
    cache_.SetHighShare(lenient_ ? insisting : 1);
    float below = 0;
    for (bits_ahead_ = 0; bits_ahead_ < kAllBits; ++bits_ahead_) {
      below += accepted_[bits_ahead_];
      if (bits_ahead_ >= kLeastAheadBits && below > sum / 2) break;
    }
  }
  for (float& count : accepted_) count *= kAcceptedKeep;
}

void TieredExperts::PumpAhead() {
  if (!reading_ahead()) {
    if (options_.keep) PumpFill();
    return;
  }
  // What the disk reads in the time of a layer is queued, not more: guesses of the next layer are
  // better than today's.
  const auto most = static_cast<size_t>(2 * layer_seconds_ * bytes_per_second_);
  const int furthest = std::min(kMaxDistance, space_.layers - 1);
  for (int distance = 1; distance <= furthest; ++distance) {
    const int layer = (layer_ + distance) % space_.layers;
    Ahead& ahead = ahead_[layer];
    if (!ahead.valid) EstimateLayer(layer);
    while (ahead.next < ahead.candidates.size()) {
      const auto [probability, place] = ahead.candidates[ahead.next];
      const int sets = SetsAhead(place);
      if (cache_.held_sets(place) < sets && !cache_.reading(place) && flights_[place].demand < 0) {
        const size_t bytes = cache_.bytes(place, 0, sets);
        if (predicted_.size() >= 2 && predicted_bytes_ + bytes > most) return;
        if (!cache_.Claim(place, sets, CacheClaim::kPredicted, layer_, probability)) {
          break;  // whoever is less likely would not get memory either
        }
        Submit(place, Purpose::kPredicted,
               kUrgencyPredicted * distance + static_cast<int>(ahead.next));
      }
      ++ahead.next;
    }
  }
  PumpFill();
  if (lenient_) PumpUpgrades();
}

void TieredExperts::PumpUpgrades() {
  // Only what the disk would not do otherwise: one at a time, when it has nothing else.
  if (flights_total_ > 0) return;
  const int furthest = std::min(kMaxDistance, space_.layers - 1);
  for (int distance = 1; distance <= furthest; ++distance) {
    const Ahead& ahead = ahead_[(layer_ + distance) % space_.layers];
    if (!ahead.valid) return;
    for (const auto& [probability, place] : ahead.candidates) {
      if (cache_.resident_sets(place) == 0 || cache_.whole(place) || flights_[place].demand >= 0) {
        continue;
      }
      if (!cache_.Claim(place, cache_.whole_sets(place), CacheClaim::kPredicted, layer_,
                        probability)) {
        return;
      }
      return Submit(place, Purpose::kFill, kUrgencyFill - 1);
    }
  }
}

void TieredExperts::SortFill() {
  fill_next_ = 0;
  fill_whole_ = false;
  fill_order_ = first_order_;
  const auto heat = [&](int place) {
    return stats_.heat[place] * Decay(steps_ - heat_step_[place]);
  };
  std::stable_sort(fill_order_.begin(), fill_order_.end(),
                   [&](int a, int b) { return heat(a) > heat(b); });
}

void TieredExperts::PumpFill() {
  while (fill_flights_ < kFillReads && fill_next_ < fill_order_.size()) {
    const int place = fill_order_[fill_next_];
    if (cache_.exists(place) && !cache_.reading(place) && flights_[place].demand < 0) {
      const int sets = fill_whole_ ? cache_.whole_sets(place) : SetsAhead(place);
      if (cache_.held_sets(place) < sets) {
        if (!cache_.Claim(place, sets, CacheClaim::kFill, layer_)) return;
        Submit(place, Purpose::kFill, kUrgencyFill);
      }
    }
    if (++fill_next_ < fill_order_.size() || fill_whole_) continue;
    fill_whole_ = true;
    fill_next_ = 0;
  }
}

bool TieredExperts::Background() {
  if (flights_total_ > 0) Collect(/*wait=*/true);
  if (options_.keep) PumpFill();
  return flights_total_ > 0;
}

void TieredExperts::SetFillOrder(std::span<const float> heat) {
  if (heat.size() != first_order_.size()) return;
  Drop(-1);
  std::stable_sort(first_order_.begin(), first_order_.end(),
                   [&](int a, int b) { return heat[a] > heat[b]; });
  SortFill();
}

void TieredExperts::SetMemory(size_t bytes) {
  Drop(-1);
  while (!cache_.SetLimit(bytes)) {
    SLUICE_CHECK(flights_total_ > 0, "between steps only reads in flight hold memory");
    Collect(/*wait=*/true);
  }
  SortFill();
}

}  // namespace sluice
