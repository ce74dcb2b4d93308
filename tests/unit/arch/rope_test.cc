#include "engine/arch/rope.h"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/base/file.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

nlohmann::json Goldens() {
  const Result<std::string> text =
      ReadTextFile(SLUICE_TEST_DATA "/models/rope.json", uint64_t{16} << 20);
  REQUIRE(text);
  return nlohmann::json::parse(*text);
}

ModelConfig ConfigOf(const nlohmann::json& golden) {
  const Result<ModelConfig> config = ParseHfConfig(golden["config"].dump(), "");
  REQUIRE(config);
  return *config;
}

}  // namespace

TEST_CASE("Rope frequencies, cosines and sines are those of transformers for every kind",
          "[arch]") {
  const nlohmann::json goldens = Goldens();
  REQUIRE(goldens.size() >= 14);
  for (const nlohmann::json& golden : goldens) {
    INFO(golden["name"].get<std::string>());
    const RopeTable table(ConfigOf(golden));
    const auto frequencies = golden["inverse_frequencies"].get<std::vector<float>>();
    REQUIRE(table.half_dim() == static_cast<int>(frequencies.size()));
    for (size_t i = 0; i < frequencies.size(); ++i) {
      // float32 powers of another library: a few units in the last place.
      CHECK(std::abs(table.inverse_frequencies()[i] - frequencies[i]) <= 5e-7f * frequencies[i]);
    }
    CHECK(table.attention_factor() ==
          Approx(golden["attention_factor"].get<float>()).epsilon(1e-7));

    const auto positions = golden["positions"].get<std::vector<int>>();
    std::vector<float> cos(frequencies.size());
    std::vector<float> sin(frequencies.size());
    for (size_t p = 0; p < positions.size(); ++p) {
      table.CosSin(positions[p], cos.data(), sin.data());
      for (size_t i = 0; i < cos.size(); ++i) {
        // An error of the frequency grows with the position; the angle's own rounding is the same.
        const float tolerance = 2e-7f * table.attention_factor() *
                                (1.0f + 4.0f * static_cast<float>(positions[p]) * frequencies[i]);
        INFO("position " << positions[p] << ", value " << i);
        CHECK(std::abs(cos[i] - golden["cos"][p][i].get<float>()) <= tolerance);
        CHECK(std::abs(sin[i] - golden["sin"][p][i].get<float>()) <= tolerance);
      }
    }
  }
}

TEST_CASE("Dynamic rope rotates a token by its own position, whatever came before", "[arch]") {
  for (const nlohmann::json& golden : Goldens()) {
    if (golden["name"] != "dynamic") continue;
    const ModelConfig config = ConfigOf(golden);
    REQUIRE(config.rope_scaling.original_max_position == 256);
    REQUIRE(config.max_positions == 1024);
    const RopeTable table(config);
    const auto half = static_cast<size_t>(table.half_dim());
    std::vector<float> late(2 * half), early(2 * half), again(2 * half);
    table.CosSin(100, early.data(), early.data() + half);
    table.CosSin(700, late.data(), late.data() + half);
    table.CosSin(100, again.data(), again.data() + half);
    CHECK(early == again);
    // Past the trained length the frequencies differ from the plain ones.
    bool differs = false;
    for (size_t i = 1; i < half; ++i) {
      const float plain = std::cos(700.0f * table.inverse_frequencies()[i]);
      differs = differs || std::abs(late[i] - plain) > 1e-2f;
    }
    CHECK(differs);
    return;
  }
  FAIL("no dynamic golden");
}

TEST_CASE("The rope cache holds what the table computes", "[arch]") {
  for (const nlohmann::json& golden : Goldens()) {
    const RopeTable table(ConfigOf(golden));
    const RopeCache cache(table, 300);
    REQUIRE(cache.max_positions() == 300);
    const auto half = static_cast<size_t>(table.half_dim());
    std::vector<float> cos(half), sin(half);
    for (const int position : {0, 1, 150, 256, 299}) {
      table.CosSin(position, cos.data(), sin.data());
      CHECK(std::memcmp(cos.data(), cache.cos(position), half * sizeof(float)) == 0);
      CHECK(std::memcmp(sin.data(), cache.sin(position), half * sizeof(float)) == 0);
    }
  }
}

}  // namespace sluice
