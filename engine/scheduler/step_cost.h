// How long a step will take, learned from the steps that ran: what lets the scheduler add as many
// prompt tokens to a step as the decodes beside them can wait for.
//
// Work is counted in tokens: a token costs 1, and `attention` more for every token before it. Sizes
// of steps fall into half octaves; each remembers how long its recent steps took, disk reads
// included. Two properties of steps join them: more work takes longer, and it takes less than in
// proportion (weights are read once per step, whoever needs them; an expert that two tokens need is
// read once). So a size in between costs at least what the straight line between its neighbours
// says, and at most the smaller neighbour scaled up, or the larger one. Scaled up: arithmetic, at
// the least that a unit of work was seen to take, in proportion; the rest, which is reading, by the
// experts that so many tokens touch when each chooses a `touch` of a layer's at random. Tokens of a
// text have more of them in common. Prompts get what
// fits at most, the usual deviation of a size included; that ends up as a step that is seen, so the
// sizes creep up to the bound. Three steps in a row that are slower than expected by half make
// every size slower, until seen otherwise. What was not seen for kFreshSteps steps is not believed
// any more.
//
// The second property has a gap: the tokens of a new prompt may need experts that are on disk while
// the tokens before it found theirs in memory. Where that can be, prompt work at most doubles from
// one step to the next (`doubling`).
//
// One owner thread. Allocates nothing after construction.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sluice {

class StepCost {
 public:
  // `attention`: cost of one earlier token, in units of a token's other work. `touch`: share of a
  // layer's experts that one token uses; 0: reading, too, grows in proportion to work.
  explicit StepCost(double attention = 0, double touch = 0)
      : attention_(attention), touch_(touch) {}

  // Work of `tokens` tokens of one sequence, the first at `position`.
  double Work(int position, int tokens) const;
  // The most tokens at `position` whose work is at most `work`; at least 0.
  int Tokens(int position, double work) const;

  // A step took `seconds`; of its work `prompt_work` was not decoding.
  void Observe(double work, double prompt_work, double seconds);

  // Seconds that a step of this work should not exceed; infinity before the first observation.
  double AtMost(double work) const;
  // Seconds that it takes at least, 0 before the first observation.
  double AtLeast(double work) const;
  // What it usually takes: as seen, or as the nearest size seen, scaled; 0 before the first
  // observation.
  double Usual(double work) const;

  // The most prompt work that may join a step whose decodes are `decode_work`, so that it takes at
  // most `stall_seconds` longer than they alone. At least 1: prompts go on even where the bound is
  // out of reach.
  double PromptWork(double decode_work, double stall_seconds, bool doubling) const;

 private:
  static constexpr int kSizes = 64;          // half octaves: up to 2^32 tokens
  static constexpr int kFreshSteps = 256;    // two to ten seconds of decoding
  static constexpr double kFirstPrompt = 8;  // tokens, with doubling

  struct Size {
    double work = 0;  // averages of its recent steps
    double seconds = 0;
    double deviation = 0;
    int count = 0;
    int64_t step = 0;  // the last one
  };
  bool Fresh(const Size& size) const { return size.count > 0 && steps_ - size.step < kFreshSteps; }
  static double High(const Size& size);
  // The nearest fresh sizes with at most and with more than this work; null: none.
  void Neighbours(double work, const Size** below, const Size** above) const;

  // Share of the weights that are read for some tokens only.
  double Touched(double work) const;
  // `seconds`, which a step of `size` takes, for another work.
  double Scaled(const Size& size, double seconds, double work) const;
  // The size that steps of this work count for.
  static size_t Index(double work);

  const double attention_;
  const double touch_;
  double arithmetic_ = 0;  // least seconds that a unit of work was seen to take; 0: none yet
  std::array<Size, kSizes> sizes_;
  int64_t steps_ = 0;
  int surprises_ = 0;    // steps in a row that were slower than expected
  double slowdown_ = 0;  // the least of them, as a ratio
  double last_prompt_work_ = 0;
  int64_t last_prompt_step_ = -kFreshSteps;
};

}  // namespace sluice
