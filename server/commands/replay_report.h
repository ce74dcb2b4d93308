// What `sluice trace replay` prints: replays of one trace by policy and budget, as a table, JSON
// and an SVG plot.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/experts/replay.h"

namespace sluice {

struct ReplayRow {
  ReplayOptions options;
  ReplayResult result;
};

// {"trace": {...}, "disk": {...}, "replays": [{"policy", "budget", "horizon", "hit_rate", ...}]}
nlohmann::ordered_json ReplayJson(const Trace& trace, const std::vector<ReplayRow>& rows);
// One line per policy and budget, hit rates beside the optimum's.
std::string ReplayTable(const std::vector<ReplayRow>& rows);
// Hit rate over budget, one line per policy.
std::string ReplayPlot(const std::string& title, const std::vector<ReplayRow>& rows);

}  // namespace sluice
