#include "engine/scheduler/step_cost.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice {
namespace {

// Weights of the newest step in the averages. A size that turns out slow is believed at once, one
// that turns out fast after a few steps.
constexpr double kSlower = 0.5;
constexpr double kFaster = 0.2;
// Steps this many times slower than expected say that all sizes are: the disk or the processor
// has turned slow, or another kind of prompt has come.
constexpr double kSurprise = 1.5;
// One or two in a row say nothing: other decodes have their turn, and their experts are read.
constexpr int kSurprises = 3;
// Per step: what was possible once is not expected for ever.
constexpr double kForget = 1.0005;

double Along(double work, double work0, double seconds0, double work1, double seconds1) {
  return seconds0 + (seconds1 - seconds0) * (work - work0) / (work1 - work0);
}

}  // namespace

double StepCost::High(const Size& size) { return size.seconds + size.deviation; }

double StepCost::Work(int position, int tokens) const {
  const double n = tokens;
  return n + attention_ * n * (position + (n - 1) / 2);
}

int StepCost::Tokens(int position, double work) const {
  // A prompt that had to go on by a token may have left less than nothing.
  if (!(work > 0)) return 0;
  // Work is n (b + a n / 2): the positive root of a quadratic.
  const double a = attention_, b = 1 + attention_ * (position - 0.5);
  const double n = a > 0 ? (std::sqrt(b * b + 2 * a * work) - b) / a : work;
  constexpr double kMost = std::numeric_limits<int>::max() / 2;
  return static_cast<int>(std::min(n + 1e-6, kMost));
}

void StepCost::Observe(double work, double prompt_work, double seconds) {
  if (work <= 0) return;
  ++steps_;
  const double per_work = seconds / work;
  arithmetic_ = arithmetic_ == 0 ? per_work : std::min(arithmetic_ * kForget, per_work);
  if (prompt_work > 0) {
    last_prompt_work_ = prompt_work;
    last_prompt_step_ = steps_;
  }
  Size& size = sizes_[Index(work)];
  const double expected = AtMost(work);
  if (Fresh(size) && seconds > kSurprise * expected) {
    const double ratio = seconds / expected;
    slowdown_ = surprises_ == 0 ? ratio : std::min(slowdown_, ratio);
    if (++surprises_ == kSurprises) {
      surprises_ = 0;
      for (Size& each : sizes_) {
        each.seconds *= slowdown_;
        each.count = std::min(each.count, 1);  // a guess: the next step of this size weighs half
      }
    }
  } else {
    surprises_ = 0;
  }
  if (!Fresh(size)) size = Size{};
  const double usual = seconds > size.seconds ? kSlower : kFaster;
  const double share = std::max(usual, 1.0 / (size.count + 1));
  const double before = size.count == 0 ? seconds : size.seconds;
  size.work += share * (work - size.work);
  size.seconds += share * (seconds - size.seconds);
  size.deviation += share * (std::abs(seconds - before) - size.deviation);
  size.count = std::min(size.count + 1, 1000);
  size.step = steps_;
}

void StepCost::Neighbours(double work, const Size** below, const Size** above) const {
  *below = *above = nullptr;
  for (const Size& size : sizes_) {
    if (!Fresh(size)) continue;
    if (size.work <= work) {
      *below = &size;  // averages of a size stay within it: the sizes are in order
    } else if (*above == nullptr) {
      *above = &size;
    }
  }
}

double StepCost::Touched(double work) const {
  return touch_ > 0 ? 1 - std::pow(1 - std::min(touch_, 0.999), work) : work;
}

double StepCost::Scaled(const Size& size, double seconds, double work) const {
  const double arithmetic = std::min(seconds, arithmetic_ * size.work);
  return arithmetic * work / size.work +
         (seconds - arithmetic) * Touched(work) / Touched(size.work);
}

size_t StepCost::Index(double work) {
  const double half_octave = std::round(2 * std::log2(std::max(work, 1.0)));
  return static_cast<size_t>(std::min(half_octave, kSizes - 1.0));
}

double StepCost::AtMost(double work) const {
  const Size *below, *above;
  Neighbours(work, &below, &above);
  if (below == nullptr && above == nullptr) return std::numeric_limits<double>::infinity();
  if (below == nullptr) return High(*above);
  const double scaled = Scaled(*below, High(*below), work);
  if (above == nullptr) return scaled;
  return std::min(scaled, std::max(High(*below), High(*above)));
}

double StepCost::AtLeast(double work) const {
  const Size *below, *above;
  Neighbours(work, &below, &above);
  if (below == nullptr && above == nullptr) return 0;
  if (below == nullptr) return above->seconds * work / above->work;
  if (above == nullptr) return below->seconds;
  return std::min(Along(work, below->work, below->seconds, above->work, above->seconds),
                  std::max(below->seconds, above->seconds));
}

double StepCost::Usual(double work) const {
  const Size& own = sizes_[Index(work)];
  if (Fresh(own)) return own.seconds;
  const Size *below, *above;
  Neighbours(work, &below, &above);
  if (below == nullptr && above == nullptr) return 0;
  if (below == nullptr) return Scaled(*above, above->seconds, work);
  const double scaled = Scaled(*below, below->seconds, work);
  return above == nullptr ? scaled : std::min(scaled, std::max(below->seconds, above->seconds));
}

double StepCost::PromptWork(double decode_work, double stall_seconds, bool doubling) const {
  double work = std::ldexp(1.0, kSizes / 2 - 1);
  if (doubling) {
    const bool recent = steps_ - last_prompt_step_ < kFreshSteps;
    work = std::max(kFirstPrompt, recent ? 2 * last_prompt_work_ : 0);
  }
  const double limit = Usual(decode_work) + stall_seconds;
  while (work > 1 && AtMost(decode_work + work) > limit) work /= 1.125;
  return std::max(work, 1.0);
}

}  // namespace sluice
