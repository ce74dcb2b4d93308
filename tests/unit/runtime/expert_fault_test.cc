// Real files with a fault, a real model over them, and the engine: who is told, and who goes on.
#include <fstream>
#include <map>

#include "engine/convert/checkpoint.h"
#include "engine/convert/packer.h"
#include "engine/formats/pack.h"
#include "tests/support/catch.h"
#include "tests/support/scratch_directory.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

constexpr int kRequests = 12;

class TestPack {
 public:
  TestPack() {
    auto source = OpenCheckpoint(std::string(SLUICE_TEST_DATA) + "/models/olmoe");
    if (!source) FAIL(source.error().message);
    PackOptions options;
    options.expert_bits = 4;
    options.threads = 1;
    const auto report = PackModel(**source, path(), options);
    if (!report) FAIL(report.error().message);
  }
  fs::path path() const { return directory_.path() / "faulty.sluice"; }
  // `on_demand`: every expert is read whenever it is needed.
  std::unique_ptr<Model> Load(bool on_demand) const {
    ModelOptions options;
    options.threads = 1;
    options.kv_blocks = 128;
    options.max_batch_tokens = 64;
    options.max_sequences = 16;
    options.tiers.cache = !on_demand;
    auto model = Model::Load(path(), options);
    if (!model) FAIL(model.error().message);
    return std::move(*model);
  }
  // Changes one bit in the middle of an expert's last plane set.
  void Damage(int layer, int index) const {
    const auto pack = PackReader::Open(path());
    REQUIRE(pack.has_value());
    const PackExpert& expert = *pack->FindExpert(layer, index);
    const auto at =
        static_cast<std::streamoff>(expert.offset + expert.bytes(expert.sets.size() - 1) +
                                    expert.gate.plane_bytes(expert.gate.planes() - 1) / 2);
    std::fstream file(path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    char byte = 0;
    file.read(&byte, 1);
    byte = static_cast<char>(byte ^ 1);
    file.seekp(at);
    file.write(&byte, 1);
    REQUIRE(file.good());
  }

 private:
  ScratchDirectory directory_;
};

GenerationRequest RequestNumber(int i, int vocab) {
  GenerationRequest request = SimpleRequest({}, 6);
  for (int t = 0; t < 1 + i % 3; ++t) request.prompt.push_back((29 * i + 11 * t + 3) % vocab);
  request.logprobs = 1;
  return request;
}

// A sequence that repeats itself whatever the model says, and goes another way in the middle.
GenerationRequest RepetitiveRequest(int i, int vocab) {
  GenerationRequest request = SimpleRequest({}, 40);
  for (int t = 0; t < 16; ++t) request.prompt.push_back((29 * i + 13 * (t % 4) + 3) % vocab);
  request.logprobs = 1;
  for (int t = 0; t < 4; ++t) {
    request.sampling.logit_bias.push_back({(29 * i + 13 * t + 3) % vocab, 8.0f});
  }
  request.sampling.temperature = 1;
  request.sampling.seed = static_cast<uint64_t>(i);
  return request;
}

std::vector<std::shared_ptr<RecordingSink>> RunAll(
    Model* model, int company, Speculation speculation = Speculation::kOff,
    GenerationRequest (*request_number)(int, int) = RequestNumber,
    SpeculationStats* stats = nullptr) {
  EngineOptions options;
  options.speculation = speculation;
  options.max_running = company;
  options.prefill_chunk = 4;
  const ManualClock clock;
  EngineCore core(model, options, &clock);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < kRequests; ++i) {
    const GenerationRequest request = request_number(i, model->config().vocab);
    REQUIRE(core.Validate(request).has_value());
    REQUIRE(core.Reserve(static_cast<int64_t>(request.prompt.size())));
    sinks.push_back(std::make_shared<RecordingSink>());
    core.Add(static_cast<RequestId>(i + 1), request, sinks.back(), clock.Now());
  }
  while (core.Step()) REQUIRE(core.CheckInvariants() == "");
  for (const auto& sink : sinks) REQUIRE(sink->finished());
  CHECK(core.Stats().kv_blocks_used == 0);
  if (stats != nullptr) *stats = core.Stats().speculation;
  return sinks;
}

TEST_CASE("A damaged expert ends the sequences that need it, by name; the others are unchanged",
          "[runtime][tiers]") {
  const TestPack pack;
  const auto expected = RunAll(pack.Load(true).get(), 1);
  for (const auto& sink : expected) REQUIRE(sink->finish.reason == FinishReason::kLength);
  const int layer = 1, index = 2;
  pack.Damage(layer, index);
  for (const bool on_demand : {true, false}) {
    std::vector<bool> ended;
    for (const int company : {1, 3, 12}) {
      INFO("company " << company << (on_demand ? ", on demand" : ""));
      const auto model = pack.Load(on_demand);
      const auto sinks = RunAll(model.get(), company);
      std::vector<bool> failed;
      for (int i = 0; i < kRequests; ++i) {
        const Finish& finish = sinks[i]->finish;
        failed.push_back(finish.reason == FinishReason::kError);
        if (!failed.back()) {
          CHECK(Bytes(*sinks[i]) == Bytes(*expected[i]));
          continue;
        }
        CHECK(finish.error.code == ErrorCode::kCorrupt);
        CHECK(finish.error.message.find("faulty.sluice") != std::string::npos);
        CHECK(finish.error.message.find("expert " + std::to_string(index)) != std::string::npos);
        CHECK(finish.error.message.find("layer " + std::to_string(layer)) != std::string::npos);
        // What was given before it ended is right.
        const std::vector<int32_t> given = sinks[i]->ids();
        const std::vector<int32_t> wanted = expected[i]->ids();
        REQUIRE(given.size() < wanted.size());
        CHECK(std::equal(given.begin(), given.end(), wanted.begin()));
      }
      // Some need it and some do not, and who does has nothing to do with company.
      CHECK(std::count(failed.begin(), failed.end(), true) > 0);
      CHECK(std::count(failed.begin(), failed.end(), false) > 0);
      if (!ended.empty()) CHECK(failed == ended);
      ended = failed;
    }
  }
}

TEST_CASE("Sequences that need no lost expert of a truncated file go on", "[runtime][tiers]") {
  const TestPack pack;
  const auto expected = RunAll(pack.Load(true).get(), 1);
  const auto model = pack.Load(true);
  uint64_t last = 0;
  {
    const auto reader = PackReader::Open(pack.path());
    REQUIRE(reader.has_value());
    for (int layer = 0; layer < 2; ++layer) {
      for (int index = 0; index < model->config().router.num_experts; ++index) {
        last = std::max(last, reader->FindExpert(layer, index)->offset);
      }
    }
  }
  fs::resize_file(pack.path(), last + 64);  // one expert is lost
  const auto sinks = RunAll(model.get(), 4);
  int failed = 0;
  for (int i = 0; i < kRequests; ++i) {
    if (sinks[i]->finish.reason == FinishReason::kError) {
      ++failed;
      CHECK(sinks[i]->finish.error.message.find("faulty.sluice") != std::string::npos);
    } else {
      CHECK(Bytes(*sinks[i]) == Bytes(*expected[i]));
    }
  }
  CHECK(failed > 0);
  CHECK(failed < kRequests);
}

TEST_CASE("An expert that only a wrong guess needs ends nobody", "[runtime][tiers][speculation]") {
  const TestPack pack;
  for (const bool damaged : {false, true}) {
    if (damaged) pack.Damage(1, 2);
    std::vector<std::string> expected;
    int failed = 0;
    for (const Speculation setting : {Speculation::kOff, Speculation::kNgram}) {
      for (const int company : {1, 3, 8}) {
        INFO("company " << company << (damaged ? ", damaged" : ""));
        const auto model = pack.Load(/*on_demand=*/damaged);
        SpeculationStats stats;
        const auto sinks = RunAll(model.get(), company, setting, RepetitiveRequest, &stats);
        std::vector<std::string> bytes;
        for (const auto& sink : sinks) {
          bytes.push_back(Bytes(*sink));
          // What its tokens used, and no guess.
          const ExpertCounts& used = sink->finish.usage.experts;
          bytes.back() += " " + std::to_string(used.assignments);
          if (!sink->tokens.empty()) {
            bytes.back() += " " + std::to_string(sink->tokens.back().experts.assignments);
          }
          if (expected.empty()) failed += sink->finish.reason == FinishReason::kError;
        }
        if (expected.empty()) expected = bytes;
        CHECK(bytes == expected);
        CHECK((stats.drafted_tokens > 0) == (setting == Speculation::kNgram));
        if (setting == Speculation::kNgram && !damaged) CHECK(stats.accepted_tokens > 50);
      }
    }
    if (damaged) CHECK(failed > 0);
    if (!damaged) CHECK(failed == 0);
  }
}

}  // namespace
}  // namespace sluice
