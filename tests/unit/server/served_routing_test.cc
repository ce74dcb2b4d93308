#include "server/api/served_routing.h"

#include <fstream>

#include "tests/support/catch.h"
#include "tests/support/result.h"
#include "tests/support/scratch_directory.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

TraceModel OneLayer() {
  TraceModel model;
  model.space = {1, 2};
  model.experts_per_token = 1;
  model.expert_bytes = {1};
  return model;
}

std::string Content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_CASE("A trace of the run before is kept under another name, or nothing is recorded",
          "[server][trace]") {
  const ScratchDirectory directory;
  const fs::path trace = directory.path() / "trace", before = directory.path() / "trace.1";
  std::ofstream(trace) << "yesterday";
  REQUIRE(ServedRouting::Create(OneLayer(), trace, 0));
  CHECK(Content(before) == "yesterday");
  CHECK(ReadTrace(trace));

  fs::remove(before);
  fs::create_directories(before / "in the way");
  std::ofstream(trace) << "today";
  const auto refused = ServedRouting::Create(OneLayer(), trace, 0);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("move it away") != std::string::npos);
  CHECK(Content(trace) == "today");
}

}  // namespace
}  // namespace sluice
