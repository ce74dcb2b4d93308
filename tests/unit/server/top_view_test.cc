// `sluice top` on what /metrics really exposes.
#include "server/commands/top_view.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "server/metrics/metrics.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

// Layer 0 is dense.
EngineStats Tiered(int round) {
  auto tiers = std::make_shared<ExpertTierStats>();
  const auto times = static_cast<uint64_t>(round);
  tiers->layers.resize(3);
  for (size_t l = 1; l < 3; ++l) {
    ExpertTierStats::Layer& layer = tiers->layers[l];
    layer.hits = 90 * l * times;
    layer.misses = 10 * times;
    layer.stall_seconds = 0.05 * round;
    layer.bytes_read = 1000 * times;
    layer.prefetch_issued = 20 * times;
    layer.prefetch_used = 12 * times;
    layer.prefetch_late = 4 * times;
    layer.prefetch_wasted = 4 * times;
    layer.prediction_wanted = 100 * times;
    layer.prediction_hits = 70 * times;
    layer.resident = 3;
  }
  ExpertTierStats::Link disk;
  disk.name = "disk";
  disk.reads = 7 * times;
  disk.demand_bytes = 3'000'000 * times;
  disk.prefetch_bytes = 1'000'000 * times;
  disk.busy_seconds = 0.5 * round;
  disk.failures = 1;
  tiers->links = {disk};
  tiers->tiers = {{"host", 2'000'000'000, 1'500'000'000}};
  tiers->guards = {{"prefetch", true, 1.25, 1, 36, {}}};
  tiers->experts_per_layer = 4;
  tiers->heat = {0, 0, 0, 0, 8, 2, 0.5f, 0, 1, 1, 1, 1};
  tiers->resident_planes = {0, 0, 0, 0, 4, 4, 0, 0, 4, 0, 0, 0};
  EngineStats stats;
  stats.steps = 10 * times;
  stats.generated_tokens = 40 * times;
  stats.unique_experts = 170 * times;
  stats.expert_tiers = tiers;
  return stats;
}

Scrape ScrapeOf(const EngineStats& stats) {
  const Metrics metrics({"tiny", true, true});
  auto scrape = Scrape::Parse(metrics.Render(stats, /*per_expert=*/true));
  REQUIRE(scrape);
  return *scrape;
}

bool Near(double value, double expected) { return std::abs(value - expected) < 1e-9; }

}  // namespace

TEST_CASE("The view is of the time between two scrapes", "[top]") {
  const TopView view = CompareScrapes(ScrapeOf(Tiered(1)), ScrapeOf(Tiered(3)), 2.0);
  CHECK(view.ready);
  CHECK(view.tiered);
  CHECK(Near(view.generated_per_second, 40));
  CHECK(Near(view.experts_per_step, 17));
  CHECK(Near(view.hit_rate, 270.0 / 290));
  CHECK(Near(view.misses_per_second, 20));
  CHECK(Near(view.stall_share, 0.1));
  CHECK(Near(view.recall, 0.7));
  CHECK(Near(view.prefetch_per_second, 40));
  REQUIRE(view.prefetch_outcomes.size() == 4);
  CHECK(view.prefetch_outcomes[0].first == "used");
  CHECK(Near(view.prefetch_outcomes[0].second, 0.6));
  CHECK(std::isnan(view.belady_hit_rate));
  REQUIRE(view.links.size() == 1);
  CHECK(Near(view.links[0].demand_bytes_per_second, 3e6));
  CHECK(Near(view.links[0].prefetch_bytes_per_second, 1e6));
  CHECK(Near(view.links[0].busy_share, 0.5));
  CHECK(Near(view.links[0].failures, 1));
  REQUIRE(view.tiers.size() == 1);
  CHECK(Near(view.tiers[0].used_bytes, 1.5e9));
  REQUIRE(view.guards.size() == 1);
  CHECK(Near(view.guards[0].gain, 1.25));
  REQUIRE(view.layers.size() == 2);  // the dense layer has none
  CHECK(view.layers[0].layer == 1);
  CHECK(Near(view.layers[0].hit_rate, 0.9));
  CHECK(view.layers[0].heat == std::vector<double>{8, 2, 0.5, 0});
  CHECK(view.layers[1].planes == std::vector<double>{4, 0, 0, 0});
}

TEST_CASE("Nothing that happened is shown as unknown, not as zero", "[top]") {
  const TopView view = CompareScrapes(ScrapeOf(Tiered(1)), ScrapeOf(Tiered(1)), 1.0);
  CHECK(std::isnan(view.hit_rate));
  const auto json = TopJson(view, "here");
  CHECK(json["hit_rate"].is_null());
  CHECK(json["generated_tokens_per_second"] == 0.0);
  CHECK(RenderTop(view, "here", {}).find("hits -") != std::string::npos);
}

TEST_CASE("A restarted server's counters do not run backwards", "[top]") {
  const TopView view = CompareScrapes(ScrapeOf(Tiered(3)), ScrapeOf(Tiered(1)), 1.0);
  CHECK(view.generated_per_second == 0);
  CHECK(view.misses_per_second == 0);
}

TEST_CASE("The heat map has a row per layer and a mark per expert", "[top]") {
  const TopView view = CompareScrapes(ScrapeOf(Tiered(1)), ScrapeOf(Tiered(2)), 1.0);
  const std::string page = RenderTop(view, "here", {});
  CHECK(page.find("    1   90.0%") != std::string::npos);
  CHECK(page.find("@+: \n") != std::string::npos);  // 8, 2, 0.5, 0
  CHECK(page.find("\x1b") == std::string::npos);
  CHECK(RenderTop(view, "here", {.color = true}).find("\x1b[97;48;5;226m\u2022") !=
        std::string::npos);
}

TEST_CASE("A page fits its window", "[top]") {
  const TopView view = CompareScrapes(ScrapeOf(Tiered(1)), ScrapeOf(Tiered(2)), 1.0);
  const TopPage size = {.columns = 45, .rows = 10};  // two cells for four experts
  const std::string page = RenderTop(view, "http://a-rather-long-name.example:8080", size);
  CHECK(std::count(page.begin(), page.end(), '\n') <= size.rows);
  for (size_t begin = 0; begin < page.size();) {
    const size_t end = page.find('\n', begin);
    CHECK(end - begin <= static_cast<size_t>(size.columns));
    begin = end + 1;
  }
}

TEST_CASE("A server whose experts are all in memory has a short page", "[top]") {
  const Metrics metrics({"tiny", false, false});
  const auto scrape = Scrape::Parse(metrics.Render(EngineStats{}));
  REQUIRE(scrape);
  const TopView view = CompareScrapes(*scrape, *scrape, 1.0);
  CHECK(!view.tiered);
  CHECK(RenderTop(view, "here", {}).find("all in memory") != std::string::npos);
  CHECK(!TopJson(view, "here").contains("layers"));
}

TEST_CASE("Metrics have series per expert only when asked", "[top][metrics]") {
  const Metrics metrics({"tiny", false, false});
  CHECK(metrics.Render(Tiered(1)).find("sluice_expert_heat") == std::string::npos);
  const std::string text = metrics.Render(Tiered(1), true);
  CHECK(text.find("sluice_expert_heat{layer=\"1\",expert=\"2\"} 0.5") != std::string::npos);
  CHECK(text.find("sluice_expert_hits_total{layer=\"2\"} 180") != std::string::npos);
  CHECK(text.find("sluice_expert_hits_total{layer=\"0\"}") == std::string::npos);
}

TEST_CASE("Text that is not metrics is refused by its line", "[top]") {
  const auto scrape = Scrape::Parse("# HELP a b\na 1\n<html>\n");
  REQUIRE(!scrape);
  CHECK(scrape.error().message.find("line 3") != std::string::npos);
  CHECK(!Scrape::Parse("a{b=\"c} 1\n"));
  CHECK(!Scrape::Parse("a{b=\"c\"} x\n"));
  const auto escaped = Scrape::Parse("a{b=\"c\\\"d\\\\\"} +Inf 1234\n");
  REQUIRE(escaped);
  CHECK(escaped->samples("a")[0].labels.at("b") == "c\"d\\");
}

}  // namespace sluice
