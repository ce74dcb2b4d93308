#include "engine/runtime/saved_state.h"

#include <cstring>
#include <fstream>
#include <limits>

#include "engine/formats/pack_wire.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"
#include "tests/support/scratch_directory.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

std::string Content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Write(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

struct Run {
  explicit Run(const fs::path& file, const std::string& identity = "pack", int kv_blocks = 64)
      : h(
            [&] {
              FakeModelOptions fake;
              fake.kv_blocks = kv_blocks;
              return fake;
            }(),
            [&] {
              EngineOptions options;
              options.state_file = file;
              options.state_identity = identity;
              options.state_log = [this](const std::string& sentence) { said = sentence; };
              return options;
            }()) {
    h.core.RestoreState();
    REQUIRE(h.core.CheckInvariants() == "");
  }
  // Tokens that the request found.
  int Ask(int size, int first = 3) {
    const GenerationRequest request = SimpleRequest(CountingPrompt(size, first), 8);
    const auto sink = h.Submit(request);
    REQUIRE(sink != nullptr);
    REQUIRE(h.RunAll());
    CHECK(h.wrong == "");
    CHECK(Bytes(*sink) == BytesAlone(request, {}));
    return sink->finish.usage.cached_tokens;
  }

  std::string said;
  CoreHarness h;
};

TEST_CASE("The prefix cache survives a restart with every token", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "kv";
  {
    Run run(file);
    CHECK(run.said.find("begins cold") != std::string::npos);
    CHECK(run.Ask(70) == 0);
    CHECK(run.Ask(40, 50) == 0);
    run.h.core.SaveState();
    CHECK(run.said.find("kept 6 KV blocks") != std::string::npos);
  }
  Run again(file);
  CHECK(again.said.find("took 6 KV blocks") != std::string::npos);
  CHECK(again.h.core.Stats().kv_blocks_cached == 6);
  CHECK(again.h.core.Stats().kv_blocks_used == 0);
  CHECK(again.Ask(70) == 64);
  CHECK(again.Ask(40, 50) == 32);
  CHECK(again.Ask(40, 20) == 0);
  CHECK_FALSE(fs::exists(file.string() + ".new"));
}

TEST_CASE("A smaller pool takes what was used last", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "kv";
  {
    Run run(file);
    run.Ask(70);
    run.Ask(100, 50);
    run.h.core.SaveState();
  }
  Run small(file, "pack", 7);
  CHECK(small.h.core.Stats().kv_blocks_cached == 7);
  CHECK(small.Ask(96, 50) == 80);
}

TEST_CASE("A file of another identity is ignored", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "kv";
  {
    Run run(file);
    run.Ask(70);
    run.h.core.SaveState();
  }
  for (const char* identity : {"pock", "pack2", "", "p"}) {
    Run other(file, identity);
    CHECK(other.said.find("another pack") != std::string::npos);
    CHECK(other.h.core.Stats().kv_blocks_cached == 0);
    CHECK(other.Ask(70) == 0);
  }
}

TEST_CASE("Any damaged byte and any truncation is as good as no file", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "kv", damaged = directory.path() / "damaged";
  {
    Run run(file);
    run.Ask(40);
    run.h.core.SaveState();
  }
  const std::string whole = Content(file);
  REQUIRE(whole.size() > 1000);
  for (size_t at = 0; at < whole.size(); at += at < 120 ? 1 : 37) {
    INFO("byte " << at);
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
    Write(damaged, bytes);
    Run run(damaged);
    REQUIRE(run.h.core.Stats().kv_blocks_cached == 0);
    Write(damaged, whole.substr(0, at));
    Run cut(damaged);
    REQUIRE(cut.h.core.Stats().kv_blocks_cached == 0);
  }
  Write(damaged, whole + "x");
  Run longer(damaged);
  CHECK(longer.h.core.Stats().kv_blocks_cached == 0);
  CHECK(longer.Ask(40) == 0);
}

TEST_CASE("Whoever watches sees every block being kept and restored", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "kv";
  int calls = 0;
  const auto count = [&] { ++calls; };
  {
    Run run(file);
    run.Ask(70);
    run.h.core.SaveState(count);
    CHECK(calls == 4);
  }
  calls = 0;
  FakeModel model(FakeModelOptions{});
  EngineOptions options;
  options.state_file = file;
  options.state_identity = "pack";
  ManualClock clock;
  EngineCore core(&model, options, &clock);
  core.RestoreState(count);
  CHECK(core.Stats().kv_blocks_cached == 4);
  CHECK(calls >= 4);
}

TEST_CASE("Heat that is no number is refused, with all of the file", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "kv";
  for (const float heat : {0.0f, 3.5f, -1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    CAPTURE(heat);
    {
      Run run(file);
      run.Ask(40);
      run.h.core.SaveState();
    }
    // The fake model has no experts: its section is the count 0 and a checksum.
    std::string bytes = Content(file);
    const size_t at = 8 + 4 + 4 + 8 + 8 + 4 + 4 + 8;  // behind the head with the identity "pack"
    std::string section(8 + 4, '\0');
    section[0] = 1;
    std::memcpy(section.data() + 8, &heat, sizeof(heat));
    const uint64_t sum = pack_wire::Checksum(std::as_bytes(std::span(section)));
    section.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
    bytes.replace(at, 16, section);
    Write(file, bytes);
    Run again(file);
    CHECK(again.h.core.Stats().kv_blocks_cached == (heat >= 0 ? 2 : 0));
    CHECK((again.said.find("heat is no number") != std::string::npos) == !(heat >= 0));
  }
}

TEST_CASE("A directory that cannot be written leaves the old file", "[runtime][prefix][state]") {
  const ScratchDirectory directory;
  Run run(directory.path() / "absent" / "kv");
  run.Ask(40);
  run.h.core.SaveState();
  CHECK(run.said.find("could not keep") != std::string::npos);
}

TEST_CASE("A place that no state can be written to is found out before", "[runtime][state]") {
  const ScratchDirectory directory;
  const fs::path file = directory.path() / "engine.state";
  CHECK(CheckSavedStateFile(file));
  CHECK(fs::is_empty(directory.path()));
  Write(file, "an older state");
  CHECK(CheckSavedStateFile(file));
  CHECK(Content(file) == "an older state");

  const auto absent = CheckSavedStateFile(directory.path() / "absent" / "engine.state");
  REQUIRE_FALSE(absent);
  CHECK(absent.error().code == ErrorCode::kInvalidArgument);
  CHECK(absent.error().message.find((directory.path() / "absent").string()) != std::string::npos);
  // A rename cannot replace a directory.
  fs::create_directory(directory.path() / "directory");
  const auto taken = CheckSavedStateFile(directory.path() / "directory");
  REQUIRE_FALSE(taken);
  CHECK(taken.error().message.find("not a regular file") != std::string::npos);
}

}  // namespace
}  // namespace sluice
