#include "engine/experts/replay.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/experts/policies/scan.h"
#include "engine/experts/replay_disk.h"

namespace sluice {
namespace {

constexpr int kDemanded = 0;  // urgencies; predicted ones have their distance in layers

// A visit of the trace as the cache sees it.
struct Accesses {
  std::vector<ExpertUse> uses;  // of all visits
  std::vector<size_t> first;    // [visits + 1]

  std::span<const ExpertUse> visit(size_t v) const {
    return std::span(uses).subspan(first[v], first[v + 1] - first[v]);
  }
};

Accesses CollectAccesses(const Trace& trace) {
  Accesses result;
  std::vector<ExpertUse> layer(trace.model.space.experts_per_layer);
  for (const Trace::Visit& visit : trace.visits) {
    result.first.push_back(result.uses.size());
    std::fill(layer.begin(), layer.end(), ExpertUse{});
    const RoutedTokens routed = trace.routed(visit);
    const size_t k = static_cast<size_t>(routed.experts_per_token);
    for (size_t i = 0; i < static_cast<size_t>(routed.tokens) * k; ++i) {
      ExpertUse& use = layer[routed.ids[i]];
      ++use.tokens;
      use.weight += trace.weights[visit.first_token * k + i];
    }
    for (size_t e = 0; e < layer.size(); ++e) {
      if (layer[e].tokens == 0) continue;
      layer[e].expert = static_cast<int>(e);
      result.uses.push_back(layer[e]);
    }
  }
  result.first.push_back(result.uses.size());
  return result;
}

// Belady's rule, told of the whole trace.
class OptimalPolicy final : public CachePolicy {
 public:
  OptimalPolicy(const Trace& trace, const Accesses& accesses)
      : space_(trace.model.space), next_(space_.size(), kNever) {
    following_.resize(accesses.uses.size());
    for (size_t v = trace.visits.size(); v-- > 0;) {
      for (size_t u = accesses.first[v]; u < accesses.first[v + 1]; ++u) {
        const int place = space_.place({trace.visits[v].layer, accesses.uses[u].expert});
        following_[u] = next_[place];
        next_[place] = -static_cast<int64_t>(v);
      }
    }
  }
  std::string_view name() const override { return "optimal"; }
  void OnLayer(int layer, int, std::span<const ExpertUse> uses) override {
    for (const ExpertUse& use : uses) next_[space_.place({layer, use.expert})] = following_[at_++];
  }
  void OnInsert(int) override {}
  void OnEvict(int) override {}
  int Victim(int, int, std::span<const uint8_t> evictable) override {
    return LeastEvictable<int64_t>(next_, evictable);
  }
  bool SoonerThan(int place, int other) const { return next_[place] > next_[other]; }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::min();
  ExpertSpace space_;
  std::vector<int64_t> next_;       // [place] the visit of its next use, negated
  std::vector<int64_t> following_;  // [use of the trace] the same, after this use
  size_t at_ = 0;                   // uses that were visited
};

class Replayer {
 public:
  Replayer(const Trace& trace, const ReplayOptions& options)
      : trace_(trace),
        options_(options),
        space_(trace.model.space),
        accesses_(CollectAccesses(trace)),
        disk_(options.disk_bytes_per_second, options.disk_latency_seconds, space_.size()),
        resident_(space_.size(), 0),
        evictable_(space_.size(), 0),
        pinned_(space_.size(), 0),
        ahead_(space_.size(), 0),
        probability_(space_.experts_per_layer, 0) {}

  Result<ReplayResult> Run() {
    double total_bytes = 0;
    for (int i = 0; i < space_.size(); ++i) total_bytes += static_cast<double>(bytes(i));
    capacity_ = options_.policy == "none" ? 0 : std::floor(total_bytes * options_.budget + 1e-6);
    result_.capacity_bytes = static_cast<int64_t>(capacity_);
    if (Result<void> made = MakeParts(); !made) return made.error();
    policy_->SetCapacity(
        static_cast<int>(std::floor(capacity_ / total_bytes * space_.size() + 1e-6)));

    for (const Trace::Event& event : trace_.events) {
      switch (event.kind) {
        case Trace::Kind::kVisit:
          Visit(static_cast<size_t>(event.value));
          break;
        case Trace::Kind::kPrediction:
          if (options_.predictor == "recorded") UseRecorded(static_cast<size_t>(event.value));
          break;
        case Trace::Kind::kStreamEnd:
          if (predictor_ != nullptr) predictor_->OnStreamEnd(event.value);
          break;
        case Trace::Kind::kStepEnd:
          EndStep();
          break;
      }
    }
    FinishVisit();
    result_.seconds = now_ - started_at_;
    return result_;
  }

 private:
  Result<void> MakeParts() {
    if (!(options_.budget >= 0 && options_.budget <= 1)) {
      return InvalidArgument("a budget is a share of the experts from 0 to 1");
    }
    if (!(options_.disk_bytes_per_second > 0)) return InvalidArgument("the disk reads nothing");
    if (options_.horizon < 0) return InvalidArgument("a horizon cannot be negative");
    if (options_.policy == "optimal" || options_.policy == "none") {
      auto optimal = std::make_unique<OptimalPolicy>(trace_, accesses_);
      optimal_ = optimal.get();
      policy_ = std::move(optimal);
    } else {
      Result<std::unique_ptr<CachePolicy>> policy =
          MakeCachePolicy(options_.policy, space_, options_.prior);
      if (!policy) return policy.error();
      policy_ = std::move(*policy);
    }
    if (options_.predictor != "recorded") {
      Result<std::unique_ptr<ExpertPredictor>> predictor = MakeExpertPredictor(
          options_.predictor, space_, trace_.model.experts_per_token, options_.prior);
      if (!predictor) return predictor.error();
      predictor_ = std::move(*predictor);
    }
    return {};
  }

  uint64_t bytes(int place) const { return trace_.model.bytes(place); }
  int place(int layer, int expert) const { return layer * space_.experts_per_layer + expert; }
  bool counted() const { return steps_ >= options_.warm_steps; }

  void SetResident(int place, bool resident) {
    resident_[place] = resident ? 1 : 0;
    used_ += resident ? static_cast<double>(bytes(place)) : -static_cast<double>(bytes(place));
    SetEvictable(place);
  }
  // What is being read must stay until it has landed.
  void SetEvictable(int place) {
    evictable_[place] = resident_[place] != 0 && pinned_[place] == 0 && in_flight(place) == 0;
  }
  uint8_t in_flight(int place) const { return disk_.landed_at(place) > now_ ? 1 : 0; }

  void Evict(int place) {
    SetResident(place, false);
    ahead_[place] = 0;
    policy_->OnEvict(place);
  }
  void Read(int place, int urgency) {
    if (counted()) result_.bytes_read += static_cast<int64_t>(bytes(place));
    disk_.Submit(place, static_cast<double>(bytes(place)), urgency, now_);
  }

  // Reads whose landing nobody waited for become evictable.
  void Settle() {
    disk_.AdvanceTo(now_);
    std::erase_if(flying_, [this](int place) {
      if (in_flight(place) != 0) return false;
      SetEvictable(place);
      return true;
    });
  }

  // Memory for a demanded expert; false: everything is pinned.
  bool MakeRoom(int layer, int incoming) {
    while (used_ + static_cast<double>(bytes(incoming)) > capacity_) {
      int victim = policy_->Victim(layer, incoming, evictable_);
      if (victim < 0) victim = CancelOne();
      if (victim < 0 && optimal_ != nullptr) victim = LaterOfThisVisit(layer, incoming);
      if (victim < 0) return false;
      SLUICE_CHECK(resident_[victim] != 0);
      Evict(victim);
    }
    return true;
  }
  // A read ahead that was not started, when nothing else can make room.
  int CancelOne() {
    for (size_t i = flying_.size(); i-- > 0;) {
      const int place = flying_[i];
      if (pinned_[place] != 0 || disk_.started(place) || !disk_.Cancel(place)) continue;
      Unread(place);
      flying_.erase(flying_.begin() + static_cast<ptrdiff_t>(i));
      return place;
    }
    return -1;
  }
  void Unread(int place) {
    if (!counted()) return;
    result_.bytes_read -= static_cast<int64_t>(bytes(place));
    --result_.reads_ahead;
  }
  // Only the optimum chooses which of a visit too large for the cache stay.
  int LaterOfThisVisit(int layer, int incoming) {
    std::vector<uint8_t> own(space_.size(), 0);
    for (int e = 0; e < space_.experts_per_layer; ++e) {
      own[place(layer, e)] = resident_[place(layer, e)];
    }
    const int victim = policy_->Victim(layer, incoming, own);
    return victim >= 0 && optimal_->SoonerThan(incoming, victim) ? victim : -1;
  }

  void Visit(size_t v) {
    FinishVisit();
    const Trace::Visit& visit = trace_.visits[v];
    layer_ = visit.layer;
    step_tokens_ = std::max(step_tokens_, visit.tokens);
    now_ += options_.dense_seconds;
    Settle();

    const std::span<const ExpertUse> uses = accesses_.visit(v);
    uses_.assign(uses.begin(), uses.end());
    for (ExpertUse& use : uses_) {
      const int p = place(layer_, use.expert);
      use.hit = resident_[p] != 0 && in_flight(p) == 0;
      if (ahead_[p] != 0 && resident_[p] != 0 && counted()) ++result_.useful_reads_ahead;
      ahead_[p] = 0;
      pinned_[p] = 1;
      SetEvictable(p);
    }
    CancelStale();
    if (counted()) {
      result_.wanted += static_cast<int64_t>(uses_.size());
      int64_t hits = 0;
      for (const ExpertUse& use : uses_) hits += use.hit ? 1 : 0;
      result_.hits += hits;
      // The last layer of a prompt has only the tokens whose logits were asked for.
      prompt_step_ |= HasPrompt(trace_.routed(visit));
      if (prompt_step_) {
        result_.prompt_wanted += static_cast<int64_t>(uses_.size());
        result_.prompt_hits += hits;
      }
    }
    policy_->OnLayer(layer_, visit.tokens, uses_);
    for (const ExpertUse& use : uses_) {
      const int p = place(layer_, use.expert);
      if (use.hit) continue;
      if (resident_[p] != 0) {
        disk_.SetUrgency(p, kDemanded);
        continue;
      }
      const bool stays = MakeRoom(layer_, p);
      Read(p, kDemanded);
      if (!stays) continue;
      SetResident(p, true);
      policy_->OnInsert(p);
    }
    open_ = true;
    if (predictor_ == nullptr) return;
    predictor_->OnRouted(layer_, trace_.routed(visit));
    for (int ahead = 1; ahead <= std::min(options_.horizon, space_.layers - 1); ++ahead) {
      const int target = (layer_ + ahead) % space_.layers;
      predictor_->Estimate(target, visit.tokens, probability_);
      UsePrediction(target, ahead);
    }
  }

  void UseRecorded(size_t index) {
    const Trace::Prediction& prediction = trace_.predictions[index];
    int ahead = prediction.layer - layer_;
    if (ahead <= 0) ahead += space_.layers;
    if (ahead > options_.horizon) return;
    std::fill(probability_.begin(), probability_.end(), prediction.rest);
    for (int i = 0; i < prediction.count; ++i) {
      const size_t at = prediction.first + static_cast<size_t>(i);
      probability_[trace_.predicted_ids[at]] = trace_.predicted[at];
    }
    UsePrediction(prediction.layer, ahead);
  }

  // probability_ is for the next visit of `layer`, `ahead` layers from here.
  void UsePrediction(int layer, int ahead) {
    policy_->OnPredicted(layer, probability_);
    if (!options_.read_ahead || capacity_ == 0) return;
    order_.clear();
    for (int e = 0; e < space_.experts_per_layer; ++e) {
      if (probability_[e] >= options_.least_probability && resident_[place(layer, e)] == 0) {
        order_.push_back(e);
      }
    }
    std::stable_sort(order_.begin(), order_.end(),
                     [this](int a, int b) { return probability_[a] > probability_[b]; });
    for (const int e : order_) {
      const int p = place(layer, e);
      // It may be passing through just now.
      if (in_flight(p) != 0) continue;
      if (used_ + static_cast<double>(bytes(p)) > capacity_) {
        const int victim = policy_->Victim(layer_, p, evictable_);
        if (victim < 0 || !policy_->Prefers(layer_, p, probability_[e], victim)) continue;
        Evict(victim);
        if (used_ + static_cast<double>(bytes(p)) > capacity_) continue;
      }
      Read(p, ahead);
      if (counted()) ++result_.reads_ahead;
      ahead_[p] = 1;
      flying_.push_back(p);
      SetResident(p, true);
      policy_->OnInsert(p);
    }
  }

  // Computes the open visit's experts, waiting for what has not landed.
  void FinishVisit() {
    if (!open_) return;
    open_ = false;
    size_t waiting = 0;
    for (const ExpertUse& use : uses_) {
      if (use.hit) {
        now_ += options_.expert_seconds;
      } else {
        ++waiting;
      }
    }
    landings_.clear();
    for (const ExpertUse& use : uses_) {
      if (!use.hit) landings_.push_back(disk_.FinishTime(place(layer_, use.expert)));
    }
    std::sort(landings_.begin(), landings_.end());
    for (const double landing : landings_) {
      if (landing > now_) {
        if (counted()) result_.stall_seconds += landing - now_;
        now_ = landing;
      }
      now_ += options_.expert_seconds;
    }
    disk_.AdvanceTo(now_);
    for (const ExpertUse& use : uses_) {
      const int p = place(layer_, use.expert);
      pinned_[p] = 0;
      SetEvictable(p);
    }
  }

  // What was predicted for this visit, is not used and has not been started.
  void CancelStale() {
    std::erase_if(flying_, [this](int p) {
      if (space_.id(p).layer != layer_ || pinned_[p] != 0 || disk_.started(p)) return false;
      if (!disk_.Cancel(p)) return false;
      Unread(p);
      Evict(p);
      return true;
    });
  }

  void EndStep() {
    FinishVisit();
    if (step_tokens_ == 0) return;  // only the end of a stream
    if (counted()) {
      ++result_.steps;
      result_.tokens += step_tokens_;
    }
    prompt_step_ = false;
    ++steps_;
    if (steps_ == options_.warm_steps) started_at_ = now_;
    step_tokens_ = 0;
  }

  const Trace& trace_;
  const ReplayOptions& options_;
  ExpertSpace space_;
  Accesses accesses_;
  std::unique_ptr<CachePolicy> policy_;
  OptimalPolicy* optimal_ = nullptr;
  std::unique_ptr<ExpertPredictor> predictor_;
  ReplayDisk disk_;

  double capacity_ = 0;  // bytes
  double used_ = 0;
  std::vector<uint8_t> resident_, evictable_, pinned_;  // [place]
  std::vector<uint8_t> ahead_;                          // [place] read ahead and not used yet
  std::vector<int> flying_;                             // read ahead and not known to have landed

  double now_ = 0;
  double started_at_ = 0;  // counting
  int layer_ = 0;
  bool open_ = false;            // a visit whose experts are not computed
  std::vector<ExpertUse> uses_;  // its
  int step_tokens_ = 0;
  bool prompt_step_ = false;  // so far
  int64_t steps_ = 0;
  ReplayResult result_;

  std::vector<float> probability_;
  std::vector<int> order_;
  std::vector<double> landings_;
};

}  // namespace

bool HasPrompt(const RoutedTokens& routed) {
  for (int i = 1; i < routed.tokens; ++i) {
    if (routed.streams[i] == routed.streams[i - 1]) return true;
  }
  return false;
}

Result<ReplayResult> Replay(const Trace& trace, const ReplayOptions& options) {
  return Replayer(trace, options).Run();
}

ExpertPrior CountFrequency(const Trace& trace) {
  const ExpertSpace space = trace.model.space;
  std::vector<double> count(space.size(), 0), tokens(space.layers, 0);
  for (const Trace::Visit& visit : trace.visits) {
    const RoutedTokens routed = trace.routed(visit);
    for (int i = 0; i < routed.tokens * routed.experts_per_token; ++i) {
      count[space.place({visit.layer, routed.ids[i]})] += 1;
    }
    tokens[visit.layer] += routed.tokens;
  }
  ExpertPrior prior;
  for (int i = 0; i < space.size(); ++i) {
    prior.frequency.push_back(
        static_cast<float>(count[i] / std::max(1.0, tokens[space.id(i).layer])));
  }
  return prior;
}

}  // namespace sluice
