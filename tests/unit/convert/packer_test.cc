// Packs of the golden checkpoints, from the source to the logits.
#include "engine/convert/packer.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/convert/checkpoint.h"
#include "engine/convert/layer_calibrator.h"
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
  if (options.threads == 0) options.threads = 2;
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

// A golden checkpoint with a tokenizer of one token per letter: calibration needs text.
fs::path WithTokenizer(const Golden& golden, const fs::path& directory) {
  fs::create_directory(directory);
  for (const char* file : {"config.json", "model.safetensors"}) {
    fs::copy_file(golden.directory / file, directory / file);
  }
  nlohmann::json vocabulary;
  for (int i = 0; i < 26; ++i) vocabulary[std::string(1, static_cast<char>('a' + i))] = i;
  const nlohmann::json tokenizer = {
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}}};
  std::ofstream(directory / "tokenizer.json") << tokenizer;
  return directory;
}

// Letters of no pattern.
std::string Letters(int count) {
  std::string text;
  uint32_t state = 1;
  for (int i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    text += static_cast<char>('a' + (state >> 24) % 26);
  }
  return text;
}

std::unique_ptr<LayerCalibrator> CalibrateOrFail(const fs::path& model,
                                                 const LayerCalibratorOptions& options) {
  auto calibration = LayerCalibrator::Run(model, Letters(1500), options);
  if (!calibration) FAIL(calibration.error().message);
  return std::move(*calibration);
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

TEST_CASE("A pack has the same bytes whatever the number of threads that made it", "[convert]") {
  const ScratchDirectory scratch;
  for (const char* name : {"olmoe", "qwen2_moe"}) {
    INFO(name);
    const fs::path model = WithTokenizer(LoadGolden(name), scratch / name);
    for (const bool calibrated : {false, true}) {
      std::string expected;
      for (const int threads : {1, 2, 3}) {
        INFO(threads << " threads, calibrated: " << calibrated);
        PackOptions options;
        options.threads = threads;
        options.expert_bits = calibrated ? 3.5 : 4;
        options.dense_bits = 6;
        std::unique_ptr<LayerCalibrator> calibration;
        if (calibrated) {
          LayerCalibratorOptions calibrator;
          calibrator.threads = threads;
          calibration = CalibrateOrFail(model, calibrator);
          options.calibration = calibration.get();
        }
        PackOrFail(model, scratch / "pack.sluice", options);
        std::ifstream file(scratch / "pack.sluice", std::ios::binary);
        const std::string bytes(std::istreambuf_iterator<char>(file), {});
        REQUIRE(!bytes.empty());
        if (expected.empty()) expected = bytes;
        CHECK((bytes == expected));
      }
    }
  }
}

TEST_CASE("A small model's calibration text is run once, and gives what two runs would",
          "[convert]") {
  const ScratchDirectory scratch;
  const fs::path model = WithTokenizer(LoadGolden("qwen2_moe"), scratch / "model");
  const auto run = [&](size_t moment_bytes, std::set<std::string>* phases) {
    LayerCalibratorOptions options;
    options.threads = 2;
    options.moment_bytes = moment_bytes;
    options.progress = [phases](const std::string& what, double) { phases->insert(what); };
    auto calibration = CalibrateOrFail(model, options);
    std::vector<std::vector<float>> factors;
    const size_t layers = calibration->survey().layers.size();
    for (size_t l = 0; l < layers; ++l) {
      const LayerStatistics& layer = calibration->Layer(static_cast<int>(l));
      factors.push_back(layer.attention_inputs.Compensation(0.01));
      factors.push_back(layer.attention_outputs.Compensation(0.01));
      factors.push_back(layer.MergedInputs().Compensation(0.01));
      for (const ExpertStatistics& expert : layer.experts) {
        factors.push_back(expert.down_inputs.Compensation(0.01));
      }
    }
    // Going back is allowed, too.
    const LayerStatistics& first = calibration->Layer(0);
    CHECK(first.attention_inputs.Compensation(0.01) == factors[0]);
    CHECK(calibration->survey().layers[0].experts[0].samples.size() > 0);
    return factors;
  };
  // Measured of one layer: enough for one with its experts' moments, not for two.
  constexpr size_t kOneLayer = 100000;
  std::set<std::string> once, windows;
  const auto all = run(size_t{1} << 30, &once);
  CHECK(once == std::set<std::string>{"calibrating"});
  CHECK(run(kOneLayer, &windows) == all);
  CHECK(windows.size() > 1);
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
