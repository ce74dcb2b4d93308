// A token's logits do not depend on its company: the other sequences of the step, how the prompt
// was chunked, the number of threads, the blocks that hold its context.
#include <cmath>
#include <cstring>
#include <optional>

#include "tests/support/catch.h"
#include "tests/unit/model/golden.h"

namespace sluice::testing {
namespace {

constexpr int kSteps = 6;  // decode steps after the prompt

std::vector<int32_t> Tokens(const Golden& golden) {
  std::vector<int32_t> tokens = golden.prompt;
  tokens.insert(tokens.end(), golden.continuation.begin(), golden.continuation.begin() + kSteps);
  return tokens;
}

// The logits of every token of prompt + kSteps, whole prompt first, then token by token.
std::vector<float> Alone(Model& model, const Golden& golden) {
  const std::vector<int32_t> tokens = Tokens(golden);
  TestSequence sequence(0, 8);
  std::vector<float> logits;
  size_t done = 0;
  while (done < tokens.size()) {
    const size_t count = done == 0 ? golden.prompt.size() : 1;
    const SequenceChunk chunk =
        sequence.Chunk(std::span(tokens).subspan(done, count), LogitRows::kAll);
    const auto rows = model.Forward({&chunk, 1});
    logits.insert(logits.end(), rows.begin(), rows.end());
    done += count;
  }
  return logits;
}

bool SameBytes(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

std::unique_ptr<Model> LoadOn(const Golden& golden, cpu::Isa isa, int threads,
                              std::optional<KvDType> kv_dtype = {}) {
  ModelOptions options = SmallOptions();
  options.isa = isa;
  options.threads = threads;
  options.max_batch_tokens = 1024;
  options.kv_dtype = kv_dtype;
  return LoadOrFail(golden.directory, options);
}

void ChunksAgree(Model& model, const Golden& golden, std::span<const float> expected) {
  const std::vector<int32_t> tokens = Tokens(golden);
  for (const size_t size : {size_t{1}, size_t{3}, size_t{7}, tokens.size()}) {
    INFO("chunks of " << size);
    TestSequence sequence(20, 8);
    std::vector<float> logits;
    for (size_t done = 0; done < tokens.size(); done += size) {
      const size_t count = std::min(size, tokens.size() - done);
      const SequenceChunk chunk =
          sequence.Chunk(std::span(tokens).subspan(done, count), LogitRows::kAll);
      const auto rows = model.Forward({&chunk, 1});
      logits.insert(logits.end(), rows.begin(), rows.end());
    }
    CHECK(SameBytes(logits, expected));
  }
}

// `others` sequences with other tokens run before and after ours in each step: some prefill while
// we decode, some decode while we prefill.
void CompanyAgrees(Model& model, const Golden& golden, int others,
                   std::span<const float> expected) {
  INFO("among " << others << " others");
  const std::vector<int32_t> tokens = Tokens(golden);
  const size_t vocab = static_cast<size_t>(golden.vocab);
  std::vector<std::vector<int32_t>> their_tokens;
  std::vector<TestSequence> theirs;
  for (int i = 0; i < others; ++i) {
    std::vector<int32_t>& list = their_tokens.emplace_back();
    for (int t = 0; t < 100; ++t) list.push_back((t * 7 + i * 13 + 5) % golden.vocab);
    theirs.emplace_back(8 + i * 8, 8);
  }
  TestSequence ours(0, 8);
  std::vector<float> logits;
  size_t done = 0;
  for (int step = 0; done < tokens.size(); ++step) {
    std::vector<SequenceChunk> chunks;
    size_t our_row = 0;
    size_t our_count = 0;
    for (int i = 0; i <= others; ++i) {
      if (i == others / 2) {
        our_count = done == 0 ? golden.prompt.size() : 1;
        chunks.push_back(ours.Chunk(std::span(tokens).subspan(done, our_count), LogitRows::kAll));
      }
      if (i == others) break;
      const int position = theirs[i].position;
      const int count = (step + i) % 3 == 0 ? 9 : 1;
      if (position + count > 100) continue;
      const LogitRows rows = i % 3 == 0   ? LogitRows::kNone
                             : i % 3 == 1 ? LogitRows::kLast
                                          : LogitRows::kAll;
      if (our_count == 0) {
        our_row += rows == LogitRows::kNone ? 0 : rows == LogitRows::kLast ? 1 : count;
      }
      chunks.push_back(theirs[i].Chunk(std::span(their_tokens[i]).subspan(position, count), rows));
    }
    const auto rows = model.Forward(chunks).subspan(our_row * vocab, our_count * vocab);
    logits.insert(logits.end(), rows.begin(), rows.end());
    done += our_count;
  }
  CHECK(SameBytes(logits, expected));
}

}  // namespace

TEST_CASE("A token's logits are the same bytes in any company", "[model]") {
  for (const char* name : {"qwen3_moe", "qwen2_moe_sliding", "olmoe", "mixtral_tied", "olmoe_bf16",
                           "qwen2_moe_bf16", "mixtral_f16"}) {
    const Golden golden = LoadGolden(name);
    for (const cpu::Isa isa : UsableIsas()) {
      const std::vector<float> expected = Alone(*LoadOn(golden, isa, 1), golden);
      for (const int threads : {1, 2, 3}) {
        const auto model = LoadOn(golden, isa, threads);
        INFO(name << " on " << model->isa() << " with " << threads << " threads");
        CHECK(SameBytes(Alone(*model, golden), expected));
        ChunksAgree(*model, golden, expected);
        for (const int others : {1, 2, 7, 16}) CompanyAgrees(*model, golden, others, expected);
      }
    }
  }
}

TEST_CASE("With 8-bit keys and values, logits are near and the same bytes in any company",
          "[model]") {
  for (const char* name : {"qwen3_moe", "qwen2_moe_sliding", "olmoe_bf16"}) {
    const Golden golden = LoadGolden(name);
    for (const cpu::Isa isa : UsableIsas()) {
      const std::vector<float> exact = Alone(*LoadOn(golden, isa, 1), golden);
      const std::vector<float> expected = Alone(*LoadOn(golden, isa, 1, KvDType::kQ8), golden);
      const auto model = LoadOn(golden, isa, 3, KvDType::kQ8);
      INFO(name << " on " << model->isa());
      CHECK(!SameBytes(expected, exact));
      double errors = 0, squares = 0;
      for (size_t i = 0; i < exact.size(); ++i) {
        errors += std::pow(static_cast<double>(expected[i]) - exact[i], 2);
        squares += std::pow(static_cast<double>(exact[i]), 2);
      }
      // Loose: one close choice of expert that falls otherwise is worth percents here.
      CHECK(std::sqrt(errors / squares) < 0.1);
      CHECK(SameBytes(Alone(*model, golden), expected));
      ChunksAgree(*model, golden, expected);
      for (const int others : {1, 7}) CompanyAgrees(*model, golden, others, expected);
    }
  }
}

TEST_CASE("A reused KV block's old contents never reach a result", "[model]") {
  const Golden golden = LoadGolden("qwen3_moe");
  for (const KvDType kv_dtype : {KvDType::kF32, KvDType::kQ8}) {
    const auto model = LoadOn(golden, cpu::Isa::kAuto, 2, kv_dtype);
    const std::vector<float> expected = Alone(*model, golden);
    // Another sequence leaves its keys in the same blocks, past the end of ours.
    TestSequence other(0, 8);
    std::vector<int32_t> tokens(100, 3);
    const SequenceChunk chunk = other.Chunk(tokens, LogitRows::kNone);
    CHECK(model->Forward({&chunk, 1}).empty());
    CHECK(SameBytes(Alone(*model, golden), expected));
  }
}

}  // namespace sluice::testing
