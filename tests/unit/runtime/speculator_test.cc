#include "engine/runtime/speculator.h"

#include <algorithm>
#include <random>

#include "tests/support/catch.h"

namespace sluice {
namespace {

Sequence MakeSequence(SequenceId id, std::vector<int32_t> tokens) {
  Sequence sequence;
  sequence.spec.id = id;
  sequence.tokens = std::move(tokens);
  return sequence;
}

// What a plain search finds: the longest earlier occurrence of the end, the newest of equals.
NgramIndex::Match Search(std::span<const int32_t> tokens) {
  NgramIndex::Match best;
  for (size_t at = tokens.size() - 1; at-- > 0;) {
    int length = 0;
    while (static_cast<size_t>(length) <= at && length < NgramIndex::kMostMatch &&
           tokens[at - static_cast<size_t>(length)] ==
               tokens[tokens.size() - 1 - static_cast<size_t>(length)]) {
      ++length;
    }
    if (length >= NgramIndex::kLeastMatch && length > best.length) {
      best = {length, static_cast<int>(at) + 1};
    }
  }
  return best;
}

TEST_CASE("The index finds what a search of the whole sequence finds", "[runtime][speculation]") {
  std::mt19937 random(7);
  for (const int vocab : {40, 200}) {
    NgramIndex index;
    std::vector<int32_t> tokens;
    int found = 0;
    for (int i = 0; i < 600; ++i) {
      // Now and then a piece of the text comes again.
      const int run = i % 37 == 36 ? 9 : 1;
      const size_t from = tokens.empty() ? 0 : random() % tokens.size();
      for (int r = 0; r < run; ++r) {
        const bool copy = run > 1 && from + static_cast<size_t>(r) < tokens.size();
        tokens.push_back(copy ? tokens[from + static_cast<size_t>(r)]
                              : static_cast<int32_t>(random() % static_cast<unsigned>(vocab)));
      }
      const NgramIndex::Match match = index.Find(tokens);
      const NgramIndex::Match wanted = Search(tokens);
      CHECK(match.length == wanted.length);
      CHECK(match.next == wanted.next);
      found += match.length > 4 ? 1 : 0;
    }
    CHECK(found > 5);
  }
}

TEST_CASE("A guess goes on repeating past the end of the sequence", "[runtime][speculation]") {
  Speculator speculator({.mode = Speculation::kNgram});
  const Sequence sequence = MakeSequence(1, {5, 6, 7, 5, 6, 7, 5, 6});
  const Sequence* decoder = &sequence;
  const int limit = 6;
  std::span<const int32_t> draft;
  // Its own success makes it long.
  speculator.Draft({&decoder, 1}, {&limit, 1}, 100, {&draft, 1});
  REQUIRE_FALSE(draft.empty());
  CHECK(draft[0] == 7);
  std::vector<int32_t> all = sequence.tokens;
  for (int i = 0; i < 40; ++i) all.push_back(5 + (i + 2) % 3);
  const Sequence longer = MakeSequence(1, all);
  decoder = &longer;
  draft = {};
  speculator.Draft({&decoder, 1}, {&limit, 1}, 100, {&draft, 1});
  REQUIRE(draft.size() == 6);
  for (size_t i = 0; i < draft.size(); ++i) CHECK(draft[i] == all[all.size() - 3 + i % 3]);
}

TEST_CASE("Limits hold for each sequence and for all of them", "[runtime][speculation]") {
  Speculator speculator({.mode = Speculation::kNgram});
  std::vector<int32_t> tokens;
  for (int i = 0; i < 60; ++i) tokens.push_back(i % 3);
  std::vector<Sequence> sequences;
  for (SequenceId id = 1; id <= 4; ++id) sequences.push_back(MakeSequence(id, tokens));
  std::vector<const Sequence*> decoders;
  for (const Sequence& sequence : sequences) decoders.push_back(&sequence);
  const std::vector<int> limits = {0, 1, 20, 3};
  for (const int most : {0, 1, 5, 100}) {
    std::vector<std::span<const int32_t>> drafts(4);
    speculator.Draft(decoders, limits, most, drafts);
    size_t sum = 0;
    for (size_t i = 0; i < 4; ++i) {
      CHECK(drafts[i].size() <= static_cast<size_t>(limits[i]));
      CHECK(drafts[i].size() <= static_cast<size_t>(Speculator::kMostDraft));
      sum += drafts[i].size();
    }
    CHECK(sum <= static_cast<size_t>(most));
    if (most > 0) CHECK(sum > 0);
  }
}

// One sequence that generates what `next` says, on a machine whose steps take base + rows * row
// seconds.
struct Machine {
  double base = 0, row = 0;
  double seconds = 0;
  int generated = 0;
  int drafted = 0, accepted = 0;

  template <class Next>
  void Run(Speculator* speculator, int tokens, Next next) {
    Sequence sequence = MakeSequence(1, {1, 2});
    while (sequence.size() < tokens) {
      const Sequence* decoder = &sequence;
      const int limit = tokens;
      std::span<const int32_t> draft;
      if (speculator != nullptr) speculator->Draft({&decoder, 1}, {&limit, 1}, 32, {&draft, 1});
      const std::vector<int32_t> guess(draft.begin(), draft.end());
      size_t right = 0;
      for (;;) {
        sequence.tokens.push_back(next(sequence.tokens));
        if (right == guess.size() || guess[right] != sequence.tokens.back()) break;
        ++right;
      }
      const int rows = 1 + static_cast<int>(guess.size());
      const double step = base + rows * row;
      seconds += step;
      generated += static_cast<int>(right) + 1;
      drafted += static_cast<int>(guess.size());
      accepted += static_cast<int>(right);
      if (speculator != nullptr) {
        speculator->OnStep(rows, 0, static_cast<int>(right) + 1, step);
      }
    }
  }
  double Rate() const { return generated / seconds; }
};

int32_t Repeating(const std::vector<int32_t>& tokens) {
  return static_cast<int32_t>(tokens.size() % 7);
}

TEST_CASE("What a row costs is learned from steps", "[runtime][speculation]") {
  Speculator speculator({.mode = Speculation::kAuto, .row_share = 0.5});
  Machine machine{.base = 8, .row = 2};
  machine.Run(&speculator, 3000, Repeating);
  // A pair of rows, and many, as this machine has them.
  CHECK(speculator.StepSeconds(16) > 0.8 * (8 + 2 * 16));
  CHECK(speculator.StepSeconds(16) < 1.2 * (8 + 2 * 16));
}

TEST_CASE("auto is as fast as drafts can make it where rows are cheap", "[runtime][speculation]") {
  Machine plain{.base = 9, .row = 1}, drafted{.base = 9, .row = 1};
  plain.Run(nullptr, 20000, Repeating);
  Speculator speculator({.mode = Speculation::kAuto});
  drafted.Run(&speculator, 20000, Repeating);
  CHECK(drafted.Rate() > 4 * plain.Rate());
}

TEST_CASE("auto costs next to nothing where guesses are wrong or rows dear",
          "[runtime][speculation]") {
  // Digits whose pairs come again and again but go on at random.
  const auto noise = [](const std::vector<int32_t>& tokens) {
    std::mt19937 random(static_cast<unsigned>(tokens.size()) * 7919u);
    random.discard(3);
    return static_cast<int32_t>(random() % 5);
  };
  // The same half of the time.
  const auto half = [&](const std::vector<int32_t>& tokens) {
    return tokens.size() / 64 % 2 == 0 ? noise(tokens)
                                       : static_cast<int32_t>(10 + tokens.size() % 6);
  };
  for (const double base : {0.0, 1.0, 9.0}) {
    Machine plain{.base = base, .row = 1};
    plain.Run(nullptr, 30000, noise);
    Machine noisy{.base = base, .row = 1};
    Speculator with_noise({.mode = Speculation::kAuto});
    noisy.Run(&with_noise, 30000, noise);
    CHECK(noisy.Rate() > 0.99 * plain.Rate());
    Machine mixed{.base = base, .row = 1};
    Speculator with_both({.mode = Speculation::kAuto});
    mixed.Run(&with_both, 30000, half);
    CHECK(mixed.Rate() > 0.99 * plain.Rate());
    if (base == 9) CHECK(mixed.Rate() > 1.3 * plain.Rate());
  }
}

TEST_CASE("The guard ends drafts that its estimates wrongly call worthwhile",
          "[runtime][speculation]") {
  Speculator speculator({.mode = Speculation::kAuto});
  REQUIRE(speculator.guard() != nullptr);
  // Steps beside a draft are slow whether or not it is long, which no line over rows can tell: a
  // draft is charged late, to the step after it.
  Sequence sequence = MakeSequence(1, {1, 2});
  int behind = 0;
  int drafted_late = 0;
  for (int step = 0; step < 60000; ++step) {
    const Sequence* decoder = &sequence;
    const int limit = 1000;
    std::span<const int32_t> draft;
    speculator.Draft({&decoder, 1}, {&limit, 1}, 32, {&draft, 1});
    const int size = static_cast<int>(draft.size());
    int generated = 1;
    for (int i = 0; i < size; ++i) {
      if (draft[static_cast<size_t>(i)] != (sequence.size() + i) % 7) break;
      ++generated;
    }
    for (int i = 0; i < generated; ++i) sequence.tokens.push_back(sequence.size() % 7);
    if (sequence.size() > 5000) sequence = MakeSequence(static_cast<SequenceId>(step + 10), {1, 2});
    // Ten seconds without drafts; with one, 40 for every token that it wins.
    const double seconds = size > 0 ? 10.0 + 40.0 * (generated - 1) : 10.0;
    speculator.OnStep(1 + (step % 2), 0, generated, seconds);
    behind += size > 0;
    if (step > 30000) drafted_late += size > 0;
  }
  CHECK(behind > 0);
  CHECK_FALSE(speculator.guard()->decided());
  CHECK(drafted_late < 30000 / 10);
}

}  // namespace
}  // namespace sluice
