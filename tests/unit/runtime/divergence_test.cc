#include "engine/runtime/divergence.h"

#include <cmath>
#include <vector>

#include "tests/support/catch.h"
#include "tests/unit/model/golden.h"

namespace sluice::testing {
namespace {

std::unique_ptr<Model> Open(const char* name, int batch_tokens) {
  ModelOptions options = SmallOptions();
  options.threads = 1;
  options.max_batch_tokens = batch_tokens;
  return LoadOrFail(LoadGolden(name).directory, options);
}

std::vector<int32_t> Text(int vocab, int length) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((i * 37 + i * i * 11 + 5) % vocab);
  return tokens;
}

// KL(p || q) of two rows of logits, from the definition.
double Kl(std::span<const float> p, std::span<const float> q) {
  double p_sum = 0, q_sum = 0, kl = 0;
  for (const float x : p) p_sum += std::exp(double{x});
  for (const float x : q) q_sum += std::exp(double{x});
  for (size_t i = 0; i < p.size(); ++i) {
    const double a = std::exp(double{p[i]}) / p_sum, b = std::exp(double{q[i]}) / q_sum;
    kl += a * std::log(a / b);
  }
  return kl;
}

}  // namespace

TEST_CASE("A model does not diverge from itself, however its windows are cut into steps",
          "[runtime]") {
  const auto reference = Open("olmoe", 64), model = Open("olmoe", 7);
  const auto tokens = Text(reference->config().vocab, 90);
  for (const int context : {16, 33, 64}) {
    const auto result = EvaluateDivergence(*reference, *model, tokens,
                                           {.context = context, .stride = 0, .progress = {}});
    REQUIRE(result.has_value());
    CHECK(result->tokens == 89);
    CHECK(result->kl_per_token == 0);
    CHECK(result->kl_max == 0);
    CHECK(result->top1_agreement == 1);
    CHECK(result->logit_error == 0);
  }
}

TEST_CASE("Divergence is the mean Kullback-Leibler divergence over positions", "[runtime]") {
  const auto reference = Open("olmoe", 64), model = Open("olmoe_clip_qkv", 64);
  REQUIRE(reference->config().vocab == model->config().vocab);
  const auto vocab = static_cast<size_t>(reference->config().vocab);
  const auto tokens = Text(static_cast<int>(vocab), 40);
  const auto result =
      EvaluateDivergence(*reference, *model, tokens, {.context = 64, .stride = 0, .progress = {}});
  REQUIRE(result.has_value());

  TestSequence a(0, 4), b(0, 4);
  const SequenceChunk first = a.Chunk(tokens, LogitRows::kAll);
  const SequenceChunk second = b.Chunk(tokens, LogitRows::kAll);
  const auto wanted = reference->Forward({&first, 1});
  const auto got = model->Forward({&second, 1});
  double kl = 0, worst = 0;
  int agreed = 0;
  for (size_t row = 0; row + 1 < tokens.size(); ++row) {
    const auto p = wanted.subspan(row * vocab, vocab), q = got.subspan(row * vocab, vocab);
    const double one = Kl(p, q);
    kl += one;
    worst = std::max(worst, one);
    agreed += Argmax(p) == Argmax(q) ? 1 : 0;
  }
  CHECK(kl > 0);
  CHECK(result->tokens == 39);
  CHECK(result->kl_per_token == Approx(kl / 39).epsilon(1e-6));
  CHECK(result->kl_max == Approx(worst).epsilon(1e-6));
  CHECK(result->top1_agreement == Approx(agreed / 39.0));
  CHECK(result->logit_error > 0);
}

TEST_CASE("Divergence refuses what cannot be compared", "[runtime]") {
  const auto model = Open("olmoe", 64);
  const auto tokens = Text(model->config().vocab, 20);
  const auto fails = [&](std::span<const int32_t> ids, const DivergenceOptions& options) {
    const auto result = EvaluateDivergence(*model, *model, ids, options);
    return !result && result.error().code == ErrorCode::kInvalidArgument;
  };
  CHECK(fails(std::span(tokens).first(1), {}));
  CHECK(fails(tokens, {.context = 1, .stride = 0, .progress = {}}));
  CHECK(fails(tokens, {.context = 1 << 20, .stride = 0, .progress = {}}));
  CHECK(fails(tokens, {.context = 16, .stride = 16, .progress = {}}));
}

}  // namespace sluice::testing
