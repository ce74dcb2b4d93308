// What calibration left in a pack, which anybody may have written.
#include "engine/experts/pack_prior.h"

#include "tests/support/catch.h"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

constexpr ExpertSpace kSpace = {2, 3};

PackMetadata Calibrated(Json frequency) {
  PackMetadata metadata;
  metadata.provenance["calibration"]["expert_frequency"] = std::move(frequency);
  return metadata;
}

TEST_CASE("Frequencies of a calibrated pack are read by place, dense layers having none",
          "[experts]") {
  const PackMetadata metadata = Calibrated(Json::parse("[[], [0.25, 1, 0.5]]"));
  CHECK(ReadPackPrior(metadata, kSpace).frequency == std::vector<float>{0, 0, 0, 0.25F, 1, 0.5F});
}

TEST_CASE("Frequencies that do not fit the model are as good as none", "[experts]") {
  for (const char* text :
       {"null", "7", "[]", "[[0.5, 0.5, 0.5]]", "[[0.5, 0.5], [0.5, 0.5]]", "[[], []]",
        "[[0, 0, 0], [0, 0, 0]]", "[[], [0.5, 0.5, 1.5]]", "[[], [0.5, 0.5, -0.5]]",
        "[[], [0.5, 0.5, \"x\"]]", "[1, 2]", "{\"a\": 1, \"b\": 2}"}) {
    INFO(text);
    CHECK(ReadPackPrior(Calibrated(Json::parse(text)), kSpace).frequency.empty());
  }
  PackMetadata metadata;
  CHECK(ReadPackPrior(metadata, kSpace).frequency.empty());
  metadata.provenance = Json::parse("[1]");
  CHECK(ReadPackPrior(metadata, kSpace).frequency.empty());
  metadata.provenance = Json::parse("{\"calibration\": 3}");
  CHECK(ReadPackPrior(metadata, kSpace).frequency.empty());
}

TEST_CASE("Places are ordered by frequency, equal ones by place", "[experts]") {
  CHECK(PlacesByFrequency(kSpace, {{0.1F, 0.5F, 0.1F, 0.9F, 0.5F, 0}}) ==
        std::vector<int>{3, 1, 4, 0, 2, 5});
  CHECK(PlacesByFrequency(kSpace, {}) == std::vector<int>{0, 1, 2, 3, 4, 5});
}

}  // namespace
}  // namespace sluice
