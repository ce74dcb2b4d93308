// The engine with real (tiny) models: what a request gives does not depend on its company, on the
// chunking of its prompt, or on preemption. Byte for byte, log-probabilities included.
#include "engine/model/model.h"

#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

constexpr int kRequests = 16;

std::unique_ptr<Model> LoadTiny(const std::string& name, int kv_blocks) {
  ModelOptions options;
  options.threads = 1;
  options.kv_blocks = kv_blocks;
  options.max_batch_tokens = 128;
  options.max_sequences = 16;
  auto model = Model::Load(std::string(SLUICE_TEST_DATA) + "/models/" + name, options);
  if (!model) FAIL(model.error().message);
  return std::move(*model);
}

// Greedy and sampled in turn, with prompts and lengths of all sorts.
GenerationRequest RequestNumber(int i, int vocab) {
  GenerationRequest r;
  for (int t = 0; t < 3 + 5 * (i % 9); ++t) r.prompt.push_back((7 * i + 11 * t + t * t) % vocab);
  r.max_tokens = 40 + 3 * (i % 7);
  r.ignore_eos = i % 3 != 0;
  r.logprobs = i % 4 == 0 ? 2 : -1;
  r.prompt_logprobs = i % 5 == 0 ? 1 : -1;
  r.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
  r.sampling.seed = static_cast<uint64_t>(1000 + i);
  if (i % 4 == 1) r.sampling.top_p = 0.9f;
  if (i % 4 == 3) {
    r.sampling.top_k = 20;
    r.sampling.repetition_penalty = 1.2f;
  }
  return r;
}

struct RunResult {
  std::vector<std::string> bytes;
  uint64_t preemptions = 0;
};

// All requests, `company` of them at a time.
RunResult RunInCompany(Model* model, int company, int prefill_chunk) {
  EngineOptions options;
  options.max_running = company;
  options.prefill_chunk = prefill_chunk;
  const ManualClock clock;
  EngineCore core(model, options, &clock);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < kRequests; ++i) {
    const GenerationRequest request = RequestNumber(i, model->config().vocab);
    REQUIRE(core.Validate(request).has_value());
    REQUIRE(core.Reserve(static_cast<int64_t>(request.prompt.size())));
    sinks.push_back(std::make_shared<RecordingSink>());
    core.Add(static_cast<RequestId>(i + 1), request, sinks.back(), clock.Now());
  }
  while (core.Step()) REQUIRE(core.CheckInvariants() == "");
  RunResult result;
  for (const auto& sink : sinks) {
    REQUIRE(sink->finished());
    result.bytes.push_back(Bytes(*sink));
  }
  result.preemptions = core.Stats().preemptions;
  CHECK(core.Stats().kv_blocks_used == 0);
  return result;
}

TEST_CASE("A model's answers are the same bytes at 1, 2, 7 and 16 requests at once", "[runtime]") {
  for (const char* name : {"qwen3_moe", "mixtral", "qwen3_moe_bf16"}) {
    INFO(name);
    const auto roomy = LoadTiny(name, 128);
    const RunResult alone = RunInCompany(roomy.get(), 1, 64);
    CHECK(alone.preemptions == 0);
    CHECK(alone.bytes[0] != alone.bytes[9]);
    for (int company : {2, 7, 16}) {
      for (int chunk : {64, 5}) {
        INFO("company " << company << ", chunk " << chunk);
        CHECK(RunInCompany(roomy.get(), company, chunk).bytes == alone.bytes);
      }
    }
    const auto tight = LoadTiny(name, 8);
    for (int company : {7, 16}) {
      INFO("preempted, company " << company);
      const RunResult result = RunInCompany(tight.get(), company, 5);
      CHECK(result.preemptions > 0);
      CHECK(result.bytes == alone.bytes);
    }
  }
}

}  // namespace
}  // namespace sluice
