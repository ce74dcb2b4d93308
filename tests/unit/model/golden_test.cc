// The models of tests/data/models against what the reference implementation says of them.
#include "tests/unit/model/golden.h"

#include <cmath>
#include <cstring>

#include "tests/support/catch.h"

namespace sluice::testing {
namespace {

struct Difference {
  double overall = 0;    // max |a - b| / max |b|
  double worst_row = 0;  // the same within each row
};

Difference Compare(std::span<const float> actual, std::span<const float> expected, int vocab) {
  REQUIRE(actual.size() == expected.size());
  Difference result;
  double worst = 0;
  double largest = 0;
  for (size_t row = 0; row < actual.size(); row += static_cast<size_t>(vocab)) {
    double row_worst = 0;
    double row_largest = 0;
    for (size_t i = row; i < row + static_cast<size_t>(vocab); ++i) {
      REQUIRE(std::isfinite(actual[i]));
      row_worst = std::max(row_worst, std::abs(double{actual[i]} - expected[i]));
      row_largest = std::max(row_largest, std::abs(double{expected[i]}));
    }
    result.worst_row = std::max(result.worst_row, row_worst / row_largest);
    worst = std::max(worst, row_worst);
    largest = std::max(largest, row_largest);
  }
  result.overall = worst / largest;
  return result;
}

std::vector<int32_t> Greedy(Model& model, std::span<const int32_t> prompt, size_t count) {
  TestSequence sequence(3, 32);
  std::vector<int32_t> tokens;
  std::span<const int32_t> next = prompt;
  while (tokens.size() < count) {
    const SequenceChunk chunk = sequence.Chunk(next, LogitRows::kLast);
    tokens.push_back(Argmax(model.Forward({&chunk, 1})));
    next = {&tokens.back(), 1};
  }
  return tokens;
}

}  // namespace

TEST_CASE("Every golden model gives the reference's logits on every instruction set", "[model]") {
  for (const Golden& golden : LoadGoldens()) {
    for (const cpu::Isa isa : UsableIsas()) {
      ModelOptions options = SmallOptions();
      options.isa = isa;
      const auto model = LoadOrFail(golden.directory, options);
      INFO(golden.name << " on " << model->isa());
      CHECK(std::string(DTypeName(model->weight_dtype())) == golden.dtype);
      TestSequence sequence(0, 8);
      const SequenceChunk chunk = sequence.Chunk(golden.prompt, LogitRows::kAll);
      const auto logits = model->Forward({&chunk, 1});
      if (golden.dtype == "F32") {
        const Difference difference = Compare(logits, golden.logits, golden.vocab);
        CHECK(difference.overall < 1e-4);
        CHECK(difference.worst_row < 1e-4);
        continue;
      }
      // In half precision the reference rounds every intermediate result, which alone moves its
      // logits by up to 2% of their range (3% within a row). The same weights run in F32 are the
      // truth; we must be within 2% of it in every row, and nearer to it than the reference.
      REQUIRE(!golden.upcast.empty());
      const Difference ours = Compare(logits, golden.upcast, golden.vocab);
      CHECK(ours.worst_row < 2e-2);
      CHECK(ours.overall < Compare(golden.logits, golden.upcast, golden.vocab).overall);
    }
  }
}

TEST_CASE("Every F32 golden model continues greedily with the reference's tokens", "[model]") {
  for (const Golden& golden : LoadGoldens()) {
    if (golden.dtype != "F32") continue;
    for (const cpu::Isa isa : UsableIsas()) {
      ModelOptions options = SmallOptions();
      options.isa = isa;
      // Dynamic rope runs past the trained length.
      options.max_context = static_cast<int>(golden.prompt.size() + golden.continuation.size());
      const auto model = LoadOrFail(golden.directory, options);
      INFO(golden.name << " on " << model->isa());
      CHECK(Greedy(*model, golden.prompt, golden.continuation.size()) == golden.continuation);
    }
  }
}

}  // namespace sluice::testing
