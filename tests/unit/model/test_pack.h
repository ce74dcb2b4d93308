// Packs of the goldens' models, and runs over them, for tests of where weights are.
#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/convert/checkpoint.h"
#include "engine/convert/packer.h"
#include "tests/support/catch.h"
#include "tests/support/scratch_directory.h"
#include "tests/unit/model/golden.h"

namespace sluice::testing {

// A golden's pack with nested experts.
class TestPack {
 public:
  explicit TestPack(const char* name, double expert_bits = 4) : TestPack(name, Bits(expert_bits)) {}
  TestPack(const char* name, PackOptions options) : golden(LoadGolden(name)) {
    auto source = OpenCheckpoint(golden.directory);
    if (!source) FAIL(source.error().message);
    options.threads = 1;
    const auto report = PackModel(**source, path(), options);
    if (!report) FAIL(report.error().message);
    tokens = golden.prompt;
    tokens.insert(tokens.end(), golden.continuation.begin(), golden.continuation.begin() + 8);
  }
  std::filesystem::path path() const { return directory_.path() / "test.sluice"; }
  std::unique_ptr<Model> Load(const TierOptions& tiers = {}, int threads = 1) const {
    ModelOptions options;
    options.threads = threads;
    options.max_batch_tokens = 128;
    options.max_sequences = 8;
    options.kv_blocks = 64;
    options.tiers = tiers;
    return LoadOrFail(path(), options);
  }

  Golden golden;
  std::vector<int32_t> tokens;  // the prompt and what follows it

 private:
  static PackOptions Bits(double expert_bits) {
    PackOptions options;
    options.expert_bits = expert_bits;
    return options;
  }

  ScratchDirectory directory_;
};

// The budgets that matter, in bytes: `least` for one layer's experts, `all` for every expert.
struct Budgets {
  explicit Budgets(Model* model) {
    uint64_t refused = 0, accepted = uint64_t{1} << 40;
    REQUIRE(model->SetMemoryBudget(accepted).has_value());
    all = Capacity(*model);
    while (accepted - refused > 1) {
      const uint64_t middle = refused + (accepted - refused) / 2;
      (model->SetMemoryBudget(middle) ? accepted : refused) = middle;
    }
    least_budget = accepted;
    REQUIRE(model->SetMemoryBudget(accepted).has_value());
    least = Capacity(*model);
    REQUIRE(least < all);
  }
  static uint64_t Capacity(const Model& model) {
    return model.expert_stats()->tiers.at(0).capacity_bytes;
  }
  // A budget that leaves the experts least + share * (all - least).
  uint64_t At(double share) const {
    const double more = share * static_cast<double>(all - least);
    return least_budget + static_cast<uint64_t>(more * 512 / 511) + (share > 0 ? 8192 : 0);
  }

  uint64_t least_budget = 0;
  uint64_t least = 0, all = 0;  // bytes of experts
};

using BetweenSteps = std::function<void(int step)>;

// The logits of all tokens: the prompt in chunks of 5, the rest one by one.
inline std::vector<float> Run(Model& model, const TestPack& pack,
                              const BetweenSteps& between = {}) {
  TestSequence sequence(0, 16);
  std::vector<float> logits;
  int step = 0;
  for (size_t done = 0; done < pack.tokens.size();) {
    if (between) between(step++);
    const size_t prompt = pack.golden.prompt.size();
    const size_t count = done < prompt ? std::min<size_t>(5, prompt - done) : 1;
    SequenceChunk chunk =
        sequence.Chunk(std::span(pack.tokens).subspan(done, count), LogitRows::kAll);
    chunk.stream = 1;
    const auto rows = model.Forward({&chunk, 1});
    CHECK(model.failures().empty());
    logits.insert(logits.end(), rows.begin(), rows.end());
    done += count;
  }
  return logits;
}

inline bool SameBytes(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace sluice::testing
