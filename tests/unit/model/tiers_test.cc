// A pack's logits are the same bytes wherever its experts are: all in memory, or read from the file
// at any budget, with any policy and any predictor, in any company.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_predictor.h"
#include "engine/model/transformer.h"
#include "engine/tensor/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/forwarding_backend.h"
#include "tests/unit/model/test_pack.h"

namespace sluice::testing {
namespace {

constexpr const char* kPredictors[] = {"", "cross-layer", "previous-token", "prior",
                                       "activation-path"};

// With every expert read before the first step.
std::vector<float> Resident(const TestPack& pack) {
  const auto model = pack.Load();
  while (model->Background()) {
  }
  const auto before = model->expert_stats();
  const std::vector<float> logits = Run(*model, pack);
  const auto after = model->expert_stats();
  uint64_t misses = 0;
  for (const auto& layer : after->layers) misses += layer.misses;
  CHECK(misses == 0);
  CHECK(after->links.at(0).reads == before->links.at(0).reads);
  return logits;
}

uint64_t Misses(const Model& model) {
  uint64_t misses = 0;
  const auto stats = model.expert_stats();
  for (const auto& layer : stats->layers) misses += layer.misses;
  return misses;
}

TEST_CASE("Logits are the same bytes at every budget with every policy and predictor",
          "[model][tiers]") {
  for (const char* name : {"olmoe", "qwen2_moe_sparse_step", "qwen3_moe_dense_layers", "mixtral"}) {
    const TestPack pack(name);
    const std::vector<float> expected = Resident(pack);
    uint64_t misses = 0;
    for (const std::string_view policy : CachePolicyNames()) {
      for (const char* predictor : kPredictors) {
        TierOptions tiers;
        tiers.policy = policy;
        tiers.predictor = predictor;
        tiers.guard_prefetch = false;
        const auto model = pack.Load(tiers);
        const Budgets budgets(model.get());
        for (const double share : {0.0, 0.3, 0.7, 1.0}) {
          INFO(name << ", " << policy << ", \"" << predictor << "\", " << share);
          REQUIRE(model->SetMemoryBudget(budgets.At(share)).has_value());
          CHECK(SameBytes(Run(*model, pack), expected));
        }
        misses += Misses(*model);
      }
    }
    CHECK(misses > 1000);
  }
}

TEST_CASE("Logits are the same bytes when experts are read on demand", "[model][tiers]") {
  for (const char* name : {"olmoe", "qwen2_moe", "qwen3_moe_bf16"}) {
    INFO(name);
    const TestPack pack(name, std::string(name) == "qwen2_moe" ? kKeepBits : 3);
    const std::vector<float> expected = Resident(pack);
    TierOptions tiers;
    tiers.cache = false;
    const auto model = pack.Load(tiers);
    CHECK(SameBytes(Run(*model, pack), expected));
    CHECK(model->expert_stats()->tiers.at(0).used_bytes == 0);
    const Budgets budgets(model.get());
    REQUIRE(model->SetMemoryBudget(budgets.least_budget).has_value());
    CHECK(SameBytes(Run(*model, pack), expected));
    const auto stats = model->expert_stats();
    for (const auto& layer : stats->layers) CHECK(layer.hits == 0);
  }
}

TEST_CASE("Logits are the same bytes while the budget shrinks and grows between steps",
          "[model][tiers]") {
  for (const char* name : {"olmoe", "qwen3_moe"}) {
    const TestPack pack(name);
    const std::vector<float> expected = Resident(pack);
    const auto model = pack.Load();
    const Budgets budgets(model.get());
    std::mt19937 random(3);
    for (int round = 0; round < 8; ++round) {
      INFO(name << ", round " << round);
      CHECK(SameBytes(Run(*model, pack,
                          [&](int step) {
                            const double share = static_cast<double>(random() % 101) / 100;
                            if (step % 3 != 2) {
                              REQUIRE(model->SetMemoryBudget(budgets.At(share)).has_value());
                            }
                            if (random() % 4 == 0) model->Background();
                            const auto stats = model->expert_stats();
                            CHECK(stats->tiers.at(0).used_bytes <=
                                  stats->tiers.at(0).capacity_bytes);
                          }),
                      expected));
    }
  }
}

TEST_CASE("A budget below the least is refused, names the least, and changes nothing",
          "[model][tiers]") {
  const TestPack pack("olmoe");
  const std::vector<float> expected = Resident(pack);
  const auto model = pack.Load();
  const Budgets budgets(model.get());
  const uint64_t before = Budgets::Capacity(*model);
  const auto refused = model->SetMemoryBudget(budgets.least_budget - 1);
  REQUIRE(refused.has_error());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  const std::string marker = "give it at least ";
  const size_t at = refused.error().message.find(marker);
  REQUIRE(at != std::string::npos);
  const uint64_t named = std::stoull(refused.error().message.substr(at + marker.size())) << 20;
  CHECK(named >= budgets.least_budget);
  CHECK(named - budgets.least_budget < (2 << 20));
  CHECK(Budgets::Capacity(*model) == before);
  REQUIRE(model->SetMemoryBudget(named).has_value());
  CHECK(SameBytes(Run(*model, pack), expected));
}

// Not under ThreadSanitizer: what the process holds is mostly its shadow of memory, and grows by
// many times these experts from one model to the next.
#ifndef __SANITIZE_THREAD__
TEST_CASE("Steps are smaller where their buffers would leave experts little", "[model][tiers]") {
  const TestPack pack("olmoe");
  const auto load = [&](uint64_t budget) {
    ModelOptions options;
    options.threads = 1;
    options.max_batch_tokens = 2048;
    options.max_sequences = 8;
    options.kv_blocks = 64;
    options.tiers.memory_budget = budget;
    return LoadOrFail(pack.path(), options);
  };
  const auto large = load(0);
  const uint64_t least = large->memory()->least_budget, all = large->memory()->expert_bytes;
  const uint64_t arena = large->footprint().arena_bytes;
  REQUIRE(arena > all);
  // All stay until the end: what an allocator keeps of models that went counts as the process's.
  const auto small = load(least + all / 4);
  // Memory for all experts, though the buffers take more than their part of it: nothing is made
  // smaller for the experts' sake. The process may have grown by three buffers since.
  const auto ample = load(least + 4 * arena);
  CHECK(ample->options().max_batch_tokens == 2048);
  CHECK(small->options().max_batch_tokens < 2048);
  CHECK(small->memory()->expert_capacity > all / 2);
  CHECK(SameBytes(Run(*small, pack), Resident(pack)));
}
#endif

TEST_CASE("With experts on disk, logits do not depend on threads or company", "[model][tiers]") {
  for (const char* name : {"olmoe", "qwen3_moe"}) {
    const TestPack pack(name);
    const std::vector<float> expected = Resident(pack);
    for (const int threads : {1, 2, 3}) {
      const auto model = pack.Load({}, threads);
      const Budgets budgets(model.get());
      for (const double share : {0.0, 0.5}) {
        REQUIRE(model->SetMemoryBudget(budgets.At(share)).has_value());
        for (const int others : {0, 1, 5}) {
          INFO(name << ", " << threads << " threads, " << others << " others");
          TestSequence ours(0, 16);
          std::vector<TestSequence> theirs;
          for (int i = 0; i < others; ++i) theirs.emplace_back(16 + 8 * i, 8);
          std::vector<int32_t> their_tokens;
          for (int t = 0; t < 128; ++t) their_tokens.push_back((t * 7 + 5) % pack.golden.vocab);
          std::vector<float> logits;
          size_t row_before = 0;
          for (size_t done = 0, step = 0; done < pack.tokens.size(); ++step) {
            const size_t count = done == 0
                                     ? pack.golden.prompt.size()
                                     : std::min<size_t>(1 + step % 2, pack.tokens.size() - done);
            std::vector<SequenceChunk> chunks;
            row_before = 0;
            for (int i = 0; i <= others; ++i) {
              if (i == others / 2) {
                chunks.push_back(
                    ours.Chunk(std::span(pack.tokens).subspan(done, count), LogitRows::kAll));
                chunks.back().stream = 100;
                if (i == others) break;
              }
              if (i == others) break;
              const int theirs_count = (static_cast<int>(step) + i) % 3 == 0 ? 9 : 1;
              if (theirs[i].position + theirs_count > 128) continue;
              if (i < others / 2) ++row_before;
              const int from = theirs[i].position;
              chunks.push_back(theirs[i].Chunk(std::span(their_tokens).subspan(from, theirs_count),
                                               LogitRows::kLast));
              chunks.back().stream = i;
            }
            const auto vocab = static_cast<size_t>(pack.golden.vocab);
            const auto rows = model->Forward(chunks).subspan(row_before * vocab, count * vocab);
            logits.insert(logits.end(), rows.begin(), rows.end());
            done += count;
          }
          CHECK(SameBytes(logits, expected));
        }
      }
    }
  }
}

// The logits of all tokens at a quality, as Run.
std::vector<float> RunAt(Model& model, const TestPack& pack, const QualitySettings& quality,
                         ExpertCounts* counts) {
  TestSequence sequence(0, 16);
  std::vector<float> logits;
  for (size_t done = 0; done < pack.tokens.size();) {
    const size_t prompt = pack.golden.prompt.size();
    const size_t count = done < prompt ? std::min<size_t>(5, prompt - done) : 1;
    SequenceChunk chunk =
        sequence.Chunk(std::span(pack.tokens).subspan(done, count), LogitRows::kAll);
    chunk.stream = 1;
    chunk.quality = quality;
    const auto rows = model.Forward({&chunk, 1});
    REQUIRE(model.chunk_experts().size() == 1);
    *counts += model.chunk_experts()[0];
    logits.insert(logits.end(), rows.begin(), rows.end());
    done += count;
  }
  return logits;
}

TEST_CASE("With every expert in memory, all qualities give the bytes of exact",
          "[model][tiers][quality]") {
  for (const char* name : {"olmoe", "qwen3_moe"}) {
    const TestPack pack(name);
    const std::vector<float> expected = Resident(pack);
    const auto model = pack.Load();
    while (model->Background()) {
    }
    for (const Quality quality : {Quality::kExact, Quality::kBalanced, Quality::kFast}) {
      ExpertCounts counts;
      CHECK(SameBytes(RunAt(*model, pack, {.quality = quality}, &counts), expected));
      CHECK(counts.assignments > 0);
      CHECK(counts.degraded == 0);
      CHECK(counts.skipped == 0);
    }
    // A routing option is felt wherever experts are; off, it is not.
    ExpertCounts counts;
    CHECK_FALSE(SameBytes(RunAt(*model, pack, {.experts_per_token = 1}, &counts), expected));
    CHECK(counts.skipped > 0);
    CHECK(counts.degraded == 0);
    CHECK(SameBytes(RunAt(*model, pack, {.expert_mass = 1, .prune_ratio = 0}, &counts), expected));
  }
}

TEST_CASE("With little memory, balanced degrades and fast also skips", "[model][tiers][quality]") {
  const TestPack pack("olmoe");
  const std::vector<float> expected = Resident(pack);
  TierOptions tiers;
  tiers.cache = false;
  const auto model = pack.Load(tiers);
  ExpertCounts balanced, fast, again;
  const auto at_balanced = RunAt(*model, pack, {.quality = Quality::kBalanced}, &balanced);
  const auto at_fast = RunAt(*model, pack, {.quality = Quality::kFast}, &fast);
  CHECK(balanced.degraded > 0);
  CHECK(balanced.skipped == 0);
  CHECK(fast.degraded > balanced.degraded);
  CHECK(fast.skipped > 0);
  CHECK_FALSE(SameBytes(at_balanced, expected));
  CHECK_FALSE(SameBytes(at_fast, expected));
  for (const float value : at_fast) REQUIRE(std::isfinite(value));
  // Without a cache nothing depends on what was there before.
  CHECK(SameBytes(RunAt(*model, pack, {.quality = Quality::kFast}, &again), at_fast));
  CHECK(again == fast);
}

TEST_CASE("An exact sequence keeps its bytes beside fast ones at every budget",
          "[model][tiers][quality]") {
  for (const char* name : {"olmoe", "qwen3_moe", "qwen2_moe"}) {
    const TestPack pack(name);
    const std::vector<float> expected = Resident(pack);
    for (const bool cache : {true, false}) {
      TierOptions tiers;
      tiers.cache = cache;
      tiers.quality = Quality::kFast;
      const auto model = pack.Load(tiers);
      const Budgets budgets(model.get());
      ExpertCounts theirs_counts;
      for (const double share : {0.0, 0.3, 0.7}) {
        INFO(name << ", " << share << ", cache " << cache);
        REQUIRE(model->SetMemoryBudget(budgets.At(share)).has_value());
        TestSequence ours(0, 16);
        std::vector<TestSequence> theirs;
        for (int i = 0; i < 3; ++i) theirs.emplace_back(16 + 8 * i, 8);
        std::vector<int32_t> their_tokens;
        for (int t = 0; t < 128; ++t) their_tokens.push_back((t * 7 + 5) % pack.golden.vocab);
        std::vector<float> logits;
        for (size_t done = 0; done < pack.tokens.size();) {
          const size_t count = done == 0 ? pack.golden.prompt.size() : 1;
          std::vector<SequenceChunk> chunks;
          chunks.push_back(
              ours.Chunk(std::span(pack.tokens).subspan(done, count), LogitRows::kAll));
          for (int i = 0; i < 3; ++i) {
            const int from = theirs[i].position;
            if (from >= 128) continue;
            chunks.push_back(
                theirs[i].Chunk(std::span(their_tokens).subspan(from, 1), LogitRows::kLast));
            chunks.back().stream = i;
            chunks.back().quality = {.quality = i == 2 ? Quality::kBalanced : Quality::kFast,
                                     .prune_ratio = i == 1 ? 0.5f : 0.0f};
          }
          const auto rows = model->Forward(chunks);
          const auto counts = model->chunk_experts();
          REQUIRE(counts.size() == chunks.size());
          CHECK(counts[0].degraded + counts[0].skipped == 0);
          for (size_t i = 1; i < counts.size(); ++i) theirs_counts += counts[i];
          const auto vocab = static_cast<size_t>(pack.golden.vocab);
          logits.insert(logits.end(), rows.begin(),
                        rows.begin() + static_cast<ptrdiff_t>(count * vocab));
          done += count;
        }
        CHECK(SameBytes(logits, expected));
      }
      CHECK(theirs_counts.degraded > 0);
      CHECK(theirs_counts.skipped > 0);
    }
  }
}

// Shows a predictor what each layer's own gate says, as if it were known before the layer asks.
class OwnGateBackend final : public ForwardingBackend {
 public:
  OwnGateBackend(std::unique_ptr<Backend> backend, ExpertPredictor* predictor,
                 std::vector<int> sparse_layers)
      : ForwardingBackend(std::move(backend)),
        predictor_(predictor),
        layers_(std::move(sparse_layers)) {}

  void Embed(const EmbeddingTable& table, std::span<const int32_t> ids, float* out) override {
    next_ = 0;
    backend_->Embed(table, ids, out);
  }
  void TopK(const TopKArgs& args) override {
    backend_->TopK(args);
    REQUIRE(args.stride == args.n);
    REQUIRE(args.ids_stride == args.k);
    const int layer = layers_.at(next_++);
    const std::vector<int64_t> streams(static_cast<size_t>(args.tokens), 1);
    predictor_->OnScores(layer, 0, {args.tokens, args.n, args.logits, streams.data()});
    predictor_->OnRouted(layer, {args.tokens, args.k, args.ids, streams.data()});
  }

 private:
  ExpertPredictor* predictor_;
  std::vector<int> layers_;
  size_t next_ = 0;
};

TEST_CASE("The control: a layer's own gate predicts exactly what the layer chooses",
          "[model][tiers]") {
  for (const char* name : {"olmoe", "qwen2_moe_sparse_step", "qwen3_moe_dense_layers", "mixtral"}) {
    INFO(name);
    const TestPack pack(name);
    const ModelConfig config = pack.Load()->config();
    const ExpertSpace space = {config.num_layers(), config.router.num_experts};
    std::vector<int> sparse;
    for (int layer = 0; layer < space.layers; ++layer) {
      if (config.layers[layer].sparse) sparse.push_back(layer);
    }
    auto predictor = MakeExpertPredictor("cross-layer", space, config.router.experts_per_token, {});
    REQUIRE(predictor.has_value());
    auto cpu = std::make_unique<CpuBackend>(cpu::SelectOps(cpu::Isa::kAuto), 1,
                                            /*pin_threads=*/false);
    ModelOptions options;
    options.max_batch_tokens = 128;
    options.max_sequences = 8;
    options.kv_blocks = 64;
    options.tiers.predictor = "";  // the gates of layers ahead are not asked for
    auto model =
        LoadTransformer(pack.path(), options,
                        std::make_unique<OwnGateBackend>(std::move(cpu), predictor->get(), sparse));
    if (!model) FAIL(model.error().message);
    Run(**model, pack);
    const PredictorStats stats = (*predictor)->stats();
    for (const int layer : sparse) {
      CHECK(stats.control.at(layer).wanted ==
            pack.tokens.size() * static_cast<size_t>(config.router.experts_per_token));
      CHECK(stats.control.at(layer).predicted == stats.control.at(layer).wanted);
    }
  }
}

}  // namespace
}  // namespace sluice::testing
