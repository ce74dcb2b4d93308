// Packs of the golden checkpoints, from the source to the logits.
#include "engine/convert/packer.h"

#include <cmath>
#include <cstring>
#include <filesystem>

#include "engine/convert/checkpoint.h"
#include "engine/formats/pack.h"
#include "tests/support/catch.h"
#include "tests/unit/model/golden.h"

namespace sluice::testing {
namespace {

namespace fs = std::filesystem;

// A directory that is gone with the test.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (fs::temp_directory_path() / "sluice-packer-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~ScratchDirectory() { fs::remove_all(path_); }
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

std::unique_ptr<Checkpoint> OpenOrFail(const fs::path& path) {
  auto source = OpenCheckpoint(path);
  if (!source) FAIL(source.error().message);
  return std::move(*source);
}

PackReport PackOrFail(const fs::path& source, const fs::path& pack, PackOptions options) {
  options.threads = 2;
  const auto report = PackModel(*OpenOrFail(source), pack, options);
  if (!report) FAIL(report.error().message);
  return *report;
}

// Logits of the golden's prompt and a few tokens more, in chunks of `size`.
std::vector<float> Logits(Model& model, const Golden& golden, size_t size) {
  std::vector<int32_t> tokens = golden.prompt;
  tokens.insert(tokens.end(), golden.continuation.begin(), golden.continuation.begin() + 6);
  TestSequence sequence(0, 8);
  std::vector<float> logits;
  for (size_t done = 0; done < tokens.size(); done += size) {
    const size_t count = std::min(size, tokens.size() - done);
    const SequenceChunk chunk =
        sequence.Chunk(std::span(tokens).subspan(done, count), LogitRows::kAll);
    const auto rows = model.Forward({&chunk, 1});
    logits.insert(logits.end(), rows.begin(), rows.end());
  }
  return logits;
}

ModelOptions Options(int threads = 1, int expert_bits = 0) {
  ModelOptions options = SmallOptions();
  options.threads = threads;
  options.expert_bits = expert_bits;
  options.max_batch_tokens = 1024;
  return options;
}

bool SameBytes(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

double RelativeError(std::span<const float> got, std::span<const float> wanted) {
  double error = 0, square = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += (got[i] - wanted[i]) * static_cast<double>(got[i] - wanted[i]);
    square += wanted[i] * static_cast<double>(wanted[i]);
  }
  return std::sqrt(error / square);
}

}  // namespace

TEST_CASE("A pack that keeps what its source has gives the source's logits byte for byte",
          "[convert]") {
  const ScratchDirectory scratch;
  for (const Golden& golden : LoadGoldens()) {
    INFO(golden.name);
    PackOrFail(golden.directory, scratch / "kept.sluice", {});
    const auto source = LoadOrFail(golden.directory, Options());
    const auto packed = LoadOrFail(scratch / "kept.sluice", Options());
    CHECK(SameBytes(Logits(*packed, golden, 5), Logits(*source, golden, 5)));
    CHECK(packed->config().eos_ids == source->config().eos_ids);
  }
}

TEST_CASE("The more bits a pack has, the nearer its logits are to the source's", "[convert]") {
  const ScratchDirectory scratch;
  for (const char* name : {"olmoe", "qwen2_moe", "qwen3_moe_tied", "mixtral"}) {
    const Golden golden = LoadGolden(name);
    INFO(golden.name);
    const auto source = LoadOrFail(golden.directory, Options());
    const std::vector<float> wanted = Logits(*source, golden, 64);
    PackOptions options;
    options.expert_bits = 8;
    options.dense_bits = 8;
    PackOrFail(golden.directory, scratch / "eight.sluice", options);
    double before = 1e9;
    for (const int bits : {2, 3, 4, 6, 8}) {
      const auto packed = LoadOrFail(scratch / "eight.sluice", Options(1, bits));
      const double error = RelativeError(Logits(*packed, golden, 64), wanted);
      INFO(bits << " bits: " << error << " after " << before);
      // Routing may flip at low precision, so the order is checked with some room.
      CHECK(error < 1.25 * before);
      before = error;
    }
    // Expert choices of random weights are close to ties, and each that falls the other way costs
    // much; that is why these bounds are not those of rounding.
    CHECK(before < 0.1);
  }
}

TEST_CASE("A bit-nested model's logits do not depend on chunks or threads", "[convert]") {
  const ScratchDirectory scratch;
  PackOptions options;
  options.expert_bits = 4;
  options.dense_bits = 6;
  for (const char* name : {"olmoe", "qwen2_moe", "qwen3_moe"}) {
    const Golden golden = LoadGolden(name);
    INFO(golden.name);
    PackOrFail(golden.directory, scratch / "four.sluice", options);
    const auto one = LoadOrFail(scratch / "four.sluice", Options(1));
    const std::vector<float> expected = Logits(*one, golden, 64);
    for (const int threads : {1, 2, 3}) {
      const auto model = LoadOrFail(scratch / "four.sluice", Options(threads));
      for (const size_t size : {1, 3, 7, 16}) {
        INFO(threads << " threads, chunks of " << size);
        CHECK(SameBytes(Logits(*model, golden, size), expected));
      }
    }
  }
}

TEST_CASE("Packing says what a wrong option should have been", "[convert]") {
  const ScratchDirectory scratch;
  const auto source = OpenOrFail(LoadGolden("olmoe").directory);
  const auto message = [&](const PackOptions& options) {
    const auto report = PackModel(*source, scratch / "wrong.sluice", options);
    REQUIRE(!report);
    CHECK(report.error().code == ErrorCode::kInvalidArgument);
    CHECK(!fs::exists(scratch / "wrong.sluice"));
    return report.error().message;
  };
  PackOptions options;
  options.dense_bits = 5;
  CHECK(message(options).find("2, 3, 4, 6 or 8, not 5") != std::string::npos);
  options = {};
  options.expert_bits = 9;
  CHECK(message(options).find("between 2 and 8") != std::string::npos);
  options.expert_bits = 3.5;
  CHECK(message(options).find("calibration") != std::string::npos);
}

TEST_CASE("A pack that cannot be written names the place", "[convert]") {
  const auto source = OpenOrFail(LoadGolden("olmoe").directory);
  const auto report = PackModel(*source, "/nonexistent/folder/x.sluice", {});
  REQUIRE(!report);
  CHECK(report.error().message.find("/nonexistent/folder") != std::string::npos);
}

}  // namespace sluice::testing
