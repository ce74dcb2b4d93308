#include "engine/runtime/expert_forecast.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <unordered_map>
#include <utility>

#include "engine/base/check.h"
#include "engine/experts/replay.h"

namespace sluice {
namespace {

// What the prompts of a trace touch: means over its prompt steps.
struct PromptUse {
  double tokens = 0;
  double unique = 0;
};

// Unique experts of a step's visits.
int64_t CountUnique(const Trace& trace, std::span<const Trace::Visit> visits) {
  std::vector<uint8_t> seen(static_cast<size_t>(trace.model.space.experts_per_layer));
  int64_t unique = 0;
  for (const Trace::Visit& visit : visits) {
    std::fill(seen.begin(), seen.end(), uint8_t{0});
    const RoutedTokens routed = trace.routed(visit);
    for (int i = 0; i < routed.tokens * routed.experts_per_token; ++i) seen[routed.ids[i]] = 1;
    unique += std::count(seen.begin(), seen.end(), 1);
  }
  return unique;
}

// A step's visits; a step is a prompt's when any stream has several tokens in it.
struct TraceStep {
  std::vector<Trace::Visit> visits;
  bool prompt = false;
};

std::vector<TraceStep> StepsOf(const Trace& trace) {
  std::vector<TraceStep> steps(1);
  for (const Trace::Event& event : trace.events) {
    if (event.kind == Trace::Kind::kVisit) {
      steps.back().visits.push_back(trace.visits[static_cast<size_t>(event.value)]);
      steps.back().prompt |= HasPrompt(trace.routed(steps.back().visits.back()));
    }
    if (event.kind == Trace::Kind::kStepEnd && !steps.back().visits.empty()) steps.emplace_back();
  }
  steps.pop_back();
  return steps;
}

struct TraceUse {
  Trace decode;             // the decode steps' visits, for their frequencies
  double decode_steps = 0;  // with their unique experts and tokens
  double decode_unique = 0;
  PromptUse prompts;
};

TraceUse SplitSteps(const Trace& trace) {
  TraceUse use;
  use.decode.model = trace.model;
  use.decode.ids = trace.ids;
  use.decode.streams = trace.streams;
  int64_t prompts = 0;
  for (const TraceStep& step : StepsOf(trace)) {
    const auto unique = static_cast<double>(CountUnique(trace, step.visits));
    if (!step.prompt) {
      use.decode.visits.insert(use.decode.visits.end(), step.visits.begin(), step.visits.end());
      use.decode_unique += unique;
      ++use.decode_steps;
    } else {
      ++prompts;
      use.prompts.tokens += step.visits.front().tokens;
      use.prompts.unique += unique;
    }
  }
  if (prompts > 0) {
    use.prompts.tokens /= static_cast<double>(prompts);
    use.prompts.unique /= static_cast<double>(prompts);
  }
  return use;
}

// What a user does next: a prompt's step of the trace, or one token.
struct Item {
  bool prompt = false;
  size_t step = 0;
  int64_t stream = 0;  // of the token
};

// What follows one another in each user's sequences: the trace's, in order of appearance, cut into
// parts with equally many tokens.
std::vector<std::vector<Item>> DealItems(const Trace& trace, const std::vector<TraceStep>& steps,
                                         int users) {
  std::vector<std::vector<Item>> sequences;
  std::unordered_map<int64_t, size_t> index;
  const auto items_of = [&](int64_t stream) -> std::vector<Item>& {
    const auto [it, added] = index.try_emplace(stream, sequences.size());
    if (added) sequences.emplace_back();
    return sequences[it->second];
  };
  int64_t tokens = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const RoutedTokens first = trace.routed(steps[i].visits.front());
    if (steps[i].prompt) {
      items_of(first.streams[0]).push_back({true, i, 0});
      continue;
    }
    for (int t = 0; t < first.tokens; ++t) {
      items_of(first.streams[t]).push_back({false, i, first.streams[t]});
    }
    tokens += first.tokens;
  }
  std::vector<std::vector<Item>> dealt(static_cast<size_t>(users));
  int64_t dealt_tokens = 0;
  for (const std::vector<Item>& sequence : sequences) {
    for (const Item& item : sequence) {
      const auto user = std::min<int64_t>(dealt_tokens * users / std::max<int64_t>(tokens, 1),
                                          int64_t{users} - 1);
      dealt[static_cast<size_t>(user)].push_back(item);
      dealt_tokens += item.prompt ? 0 : 1;
    }
  }
  return dealt;
}

// The number of drawn tokens that touch as many experts, by bisection: it grows with them.
template <class Unique>
double DrawnTokens(double unique, double most, Unique&& unique_of) {
  double low = 0, high = most;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (unique_of(middle) < unique ? low : high) = middle;
  }
  return high;
}

}  // namespace

Trace RetimeTrace(const Trace& trace, int users) {
  SLUICE_CHECK(users >= 1);
  Trace out;
  out.model = trace.model;
  out.ids = trace.ids;
  out.weights = trace.weights;
  out.streams = trace.streams;
  const auto k = static_cast<size_t>(trace.model.experts_per_token);
  const auto visit = [&out](const Trace::Visit& v) {
    out.events.push_back({Trace::Kind::kVisit, static_cast<int64_t>(out.visits.size())});
    out.visits.push_back(v);
  };
  const auto end_step = [&out] {
    out.events.push_back({Trace::Kind::kStepEnd, 0});
    ++out.steps;
  };
  const std::vector<TraceStep> steps = StepsOf(trace);
  const std::vector<std::vector<Item>> dealt = DealItems(trace, steps, users);
  std::vector<size_t> next(dealt.size(), 0);
  for (;;) {
    for (size_t user = 0; user < dealt.size(); ++user) {
      for (; next[user] < dealt[user].size() && dealt[user][next[user]].prompt; ++next[user]) {
        for (const Trace::Visit& v : steps[dealt[user][next[user]].step].visits) visit(v);
        end_step();
      }
    }
    bool any = false;
    for (int layer = 0; layer < trace.model.space.layers; ++layer) {
      Trace::Visit merged = {layer, 0, out.streams.size()};
      for (size_t user = 0; user < dealt.size(); ++user) {
        if (next[user] == dealt[user].size()) continue;
        const Item& item = dealt[user][next[user]];
        for (const Trace::Visit& v : steps[item.step].visits) {
          if (v.layer != layer) continue;
          for (size_t row = v.first_token; row < v.first_token + static_cast<size_t>(v.tokens);
               ++row) {
            if (trace.streams[row] != item.stream) continue;
            for (size_t i = 0; i < k; ++i) {
              out.ids.push_back(trace.ids[row * k + i]);
              if (!trace.weights.empty()) out.weights.push_back(trace.weights[row * k + i]);
            }
            out.streams.push_back(static_cast<int64_t>(user));
            ++merged.tokens;
          }
        }
      }
      if (merged.tokens == 0) continue;
      visit(merged);
      any = true;
    }
    if (!any) return out;
    end_step();
    for (size_t user = 0; user < dealt.size(); ++user) {
      if (next[user] < dealt[user].size()) ++next[user];
    }
  }
}

ExpertForecast::ExpertForecast(std::vector<float> frequency, double resident_share)
    : frequency_(std::move(frequency)), resident_share_(std::clamp(resident_share, 0.0, 1.0)) {
  std::erase_if(frequency_, [](float f) { return !(f > 0); });
  std::sort(frequency_.begin(), frequency_.end(), std::greater<>());
}

ExpertForecast ExpertForecast::Typical(const ModelConfig& config, double resident_share) {
  const int experts = config.router.num_experts;
  std::vector<float> layer(static_cast<size_t>(experts));
  double sum = 0;
  for (int rank = 0; rank < experts; ++rank) {
    layer[rank] = static_cast<float>(std::exp(-kTypicalDecay * rank / experts));
    sum += double{layer[rank]};
  }
  for (float& share : layer) {
    share =
        static_cast<float>(std::min(1.0, config.router.experts_per_token * double{share} / sum));
  }
  std::vector<float> frequency;
  for (const LayerConfig& each : config.layers) {
    if (each.sparse) frequency.insert(frequency.end(), layer.begin(), layer.end());
  }
  ExpertForecast forecast(std::move(frequency), resident_share);
  forecast.locality_ = kTypicalLocality;
  return forecast;
}

Result<ExpertForecast> ExpertForecast::FromTrace(const Trace& trace, const ModelConfig& config,
                                                 const std::string& policy,
                                                 const ExpertPrior& prior, double resident_share,
                                                 int users) {
  const ExpertSpace space = {config.num_layers(), config.router.num_experts};
  if (trace.model.space != space ||
      trace.model.experts_per_token != config.router.experts_per_token) {
    return InvalidArgument(
        "the trace is of a model with " + std::to_string(trace.model.space.layers) + " layers of " +
        std::to_string(trace.model.space.experts_per_layer) + " experts, this one has " +
        std::to_string(space.layers) + " of " + std::to_string(space.experts_per_layer) +
        "; record one with `sluice trace record`");
  }
  const Trace timed = RetimeTrace(trace, users);
  const TraceUse use = SplitSteps(timed);
  if (use.decode.visits.empty()) {
    return InvalidArgument(
        "the trace has no decode step to learn hit rates from; record one with --decode-tokens "
        "above 0");
  }
  ExpertForecast forecast(CountFrequency(use.decode).frequency, resident_share);
  forecast.decode_unique_ = use.decode_unique / use.decode_steps;
  // Prompts that touch nearly everything tell nothing.
  if (use.prompts.tokens > 1 && use.prompts.unique > 0 &&
      use.prompts.unique < 0.95 * static_cast<double>(forecast.frequency_.size())) {
    const double drawn = DrawnTokens(use.prompts.unique, use.prompts.tokens,
                                     [&](double tokens) { return forecast.Draw(tokens).unique; });
    forecast.likeness_ = std::clamp(std::log(drawn) / std::log(use.prompts.tokens), 0.1, 1.0);
  }
  if (resident_share >= 1) return forecast;  // the trace says what is touched, no more
  ReplayOptions options;
  options.policy = policy;
  options.budget = std::clamp(resident_share, 0.0, 1.0);
  options.prior = prior;
  // The first eighth finds an empty cache.
  options.warm_steps = timed.steps / 8;
  const Result<ReplayResult> replayed = Replay(timed, options);
  if (!replayed) return replayed.error();
  const auto share = [](int64_t part, int64_t whole) -> std::optional<double> {
    if (whole <= 0) return std::nullopt;
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  forecast.decode_hit_rate_ =
      share(replayed->hits - replayed->prompt_hits, replayed->wanted - replayed->prompt_wanted);
  forecast.prefill_hit_rate_ = share(replayed->prompt_hits, replayed->prompt_wanted);
  return forecast;
}

ExpertForecast::Step ExpertForecast::Draw(double tokens) const {
  Step step;
  const double resident = resident_share_ * static_cast<double>(frequency_.size());
  for (size_t i = 0; i < frequency_.size(); ++i) {
    const double used = 1 - std::pow(1 - std::min(1.0, double{frequency_[i]}), tokens);
    step.unique += used;
    step.hits += used * std::clamp(resident - static_cast<double>(i), 0.0, 1.0);
  }
  return step;
}

ExpertForecast::Step ExpertForecast::Decode(double users) const {
  Step step = Draw(users);
  const double missed = std::pow(std::max(0.0, 1 - step.hit_rate()), 1 + locality_ / users);
  if (decode_unique_) step.unique = *decode_unique_;
  step.hits = step.unique * decode_hit_rate_.value_or(1 - missed);
  return step;
}

ExpertForecast::Step ExpertForecast::Prefill(double tokens, double prompts) const {
  Step step = Draw(std::max(1.0, prompts * std::pow(std::max(1.0, tokens), likeness_)));
  step.hits = step.unique * prefill_hit_rate_.value_or(resident_share_);
  return step;
}

}  // namespace sluice
