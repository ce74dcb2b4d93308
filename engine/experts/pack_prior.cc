#include "engine/experts/pack_prior.h"

#include <algorithm>
#include <numeric>

namespace sluice {
namespace {

// Null when absent.
const nlohmann::ordered_json* Field(const nlohmann::ordered_json& json, const char* name) {
  if (!json.is_object()) return nullptr;
  const auto it = json.find(name);
  return it == json.end() ? nullptr : &*it;
}

}  // namespace

ExpertPrior ReadPackPrior(const PackMetadata& metadata, ExpertSpace space) {
  const nlohmann::ordered_json* calibration = Field(metadata.provenance, "calibration");
  const nlohmann::ordered_json* rows =
      calibration == nullptr ? nullptr : Field(*calibration, "expert_frequency");
  if (rows == nullptr || !rows->is_array() || rows->size() != static_cast<size_t>(space.layers)) {
    return {};
  }
  ExpertPrior prior;
  prior.frequency.resize(static_cast<size_t>(space.size()));
  bool any = false;
  for (int layer = 0; layer < space.layers; ++layer) {
    const nlohmann::ordered_json& row = (*rows)[static_cast<size_t>(layer)];
    if (!row.is_array()) return {};
    if (row.empty()) continue;
    if (row.size() != static_cast<size_t>(space.experts_per_layer)) return {};
    for (int e = 0; e < space.experts_per_layer; ++e) {
      const nlohmann::ordered_json& share = row[static_cast<size_t>(e)];
      if (!share.is_number()) return {};
      const double value = share.get<double>();
      if (!(value >= 0 && value <= 1)) return {};
      any |= value > 0;
      prior.frequency[static_cast<size_t>(space.place({layer, e}))] = static_cast<float>(value);
    }
  }
  return any ? prior : ExpertPrior{};
}

std::vector<int> PlacesByFrequency(ExpertSpace space, const ExpertPrior& prior) {
  std::vector<int> places(static_cast<size_t>(space.size()));
  std::iota(places.begin(), places.end(), 0);
  if (prior.frequency.empty()) return places;
  std::stable_sort(places.begin(), places.end(),
                   [&](int a, int b) { return prior.frequency[a] > prior.frequency[b]; });
  return places;
}

}  // namespace sluice
