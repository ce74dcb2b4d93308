#include "server/commands/top_view.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

namespace sluice {
namespace {

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

double Share(double part, double whole) { return whole > 0 ? part / whole : kNothing; }

// Reads `name="value",...}` behind the brace; false where it is malformed.
bool ReadLabels(std::string_view* text, Scrape::Labels* labels) {
  while (!text->empty() && text->front() != '}') {
    const size_t equals = text->find("=\"");
    if (equals == std::string_view::npos) return false;
    std::string name(text->substr(0, equals));
    text->remove_prefix(equals + 2);
    std::string value;
    while (!text->empty() && text->front() != '"') {
      if (text->front() == '\\' && text->size() > 1) {
        text->remove_prefix(1);
        value += text->front() == 'n' ? '\n' : text->front();
      } else {
        value += text->front();
      }
      text->remove_prefix(1);
    }
    if (text->empty()) return false;
    text->remove_prefix(1);
    if (!text->empty() && text->front() == ',') text->remove_prefix(1);
    labels->emplace(std::move(name), std::move(value));
  }
  if (text->empty()) return false;
  text->remove_prefix(1);
  return true;
}

// The value, perhaps before a timestamp.
bool ReadValue(std::string_view text, double* value) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  const std::string word(text.substr(0, text.find(' ')));
  char* end = nullptr;
  *value = std::strtod(word.c_str(), &end);  // knows NaN and Inf
  return !word.empty() && *end == '\0';
}

std::string Format(const char* format, double value) {
  if (std::isnan(value)) return "-";
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string Percent(double share) {
  return std::isnan(share) ? "-" : Format("%.1f%%", 100 * share);
}

std::string Bytes(double bytes) {
  if (bytes >= 1e9) return Format("%.2f GB", bytes / 1e9);
  if (bytes >= 1e6) return Format("%.1f MB", bytes / 1e6);
  return Format("%.0f kB", bytes / 1e3);
}

int IntegerLabel(const Scrape::Sample& sample, std::string_view label) {
  const auto found = sample.labels.find(label);
  int value = -1;
  if (found != sample.labels.end()) {
    const std::string& text = found->second;
    std::from_chars(text.data(), text.data() + text.size(), value);
  }
  return value;
}

// Cells of a heat row: its experts, several to a cell where there is no room for all.
std::string HeatCells(const TopView::Layer& layer, double hottest, size_t width, bool color) {
  constexpr std::string_view kRamp = " .:-=+*#%@";
  constexpr int kColors[] = {236, 238, 94, 130, 166, 202, 208, 214, 220, 226};
  const size_t experts = layer.heat.size();
  if (experts == 0 || width == 0) return {};
  const size_t per_cell = (experts + width - 1) / width;
  std::string cells;
  for (size_t begin = 0; begin < experts; begin += per_cell) {
    const size_t end = std::min(begin + per_cell, experts);
    double heat = 0;
    size_t resident = 0;
    for (size_t e = begin; e < end; ++e) {
      heat = std::max(heat, layer.heat[e]);
      resident += e < layer.planes.size() && layer.planes[e] > 0;
    }
    const double level = hottest > 0 ? std::sqrt(std::clamp(heat / hottest, 0.0, 1.0)) : 0;
    const auto step = static_cast<size_t>(level * static_cast<double>(kRamp.size() - 1) + 0.5);
    if (!color) {
      cells += kRamp[step];
      continue;
    }
    // Colour is heat; the mark says how much of the cell is in memory.
    const char* mark = resident == 0 ? " " : resident == end - begin ? "\u2022" : "\u00b7";
    cells += "\x1b[97;48;5;" + std::to_string(kColors[step]) + "m" + mark;
  }
  return color ? cells + "\x1b[0m" : cells;
}

// Appends text to the page, at most `columns` of it (plain text only: bytes are columns).
void AddLine(std::string* page, std::string line, const TopPage& size) {
  if (line.size() > static_cast<size_t>(size.columns))
    line.resize(static_cast<size_t>(size.columns));
  *page += line + "\n";
}

// JSON has no NaN.
nlohmann::ordered_json Number(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

}  // namespace

Result<Scrape> Scrape::Parse(std::string_view text) {
  Scrape scrape;
  int number = 0;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    ++number;
    if (line.empty() || line.front() == '#') continue;
    const size_t name_end = line.find_first_of("{ ");
    Sample sample;
    const std::string name(line.substr(0, name_end));
    bool good = name_end != std::string_view::npos && name_end > 0;
    if (good) {
      line.remove_prefix(name_end);
      if (line.front() == '{') {
        line.remove_prefix(1);
        good = ReadLabels(&line, &sample.labels);
      }
    }
    if (!good || !ReadValue(line, &sample.value)) {
      return Corrupt("the metrics are not Prometheus text: line " + std::to_string(number) +
                     " is no sample; is this a sluice server?");
    }
    scrape.samples_[name].push_back(std::move(sample));
  }
  return scrape;
}

const std::vector<Scrape::Sample>& Scrape::samples(std::string_view name) const {
  static const std::vector<Sample> kNone;
  const auto found = samples_.find(name);
  return found == samples_.end() ? kNone : found->second;
}

double Scrape::Sum(std::string_view name) const {
  double sum = 0;
  for (const Sample& sample : samples(name)) sum += sample.value;
  return sum;
}

double Scrape::Sum(std::string_view name, std::string_view label, std::string_view value) const {
  double sum = 0;
  for (const Sample& sample : samples(name)) {
    const auto found = sample.labels.find(label);
    if (found != sample.labels.end() && found->second == value) sum += sample.value;
  }
  return sum;
}

TopView CompareScrapes(const Scrape& before, const Scrape& now, double seconds) {
  // A counter that fell was restarted with its server.
  const auto grown = [&](std::string_view name) {
    return std::max(0.0, now.Sum(name) - before.Sum(name));
  };
  const auto grown_at = [&](std::string_view name, std::string_view label, std::string_view value) {
    return std::max(0.0, now.Sum(name, label, value) - before.Sum(name, label, value));
  };
  TopView view;
  view.ready = now.Sum("sluice_ready") > 0;
  view.seconds = seconds;
  view.generated_per_second = grown("sluice_generated_tokens_total") / seconds;
  view.prompt_per_second = grown("sluice_prompt_tokens_total") / seconds;
  view.steps_per_second = grown("sluice_steps_total") / seconds;
  view.running = now.Sum("sluice_sequences_running");
  view.waiting = now.Sum("sluice_sequences_waiting");
  view.kv_blocks = now.Sum("sluice_kv_blocks");
  view.kv_blocks_used = now.Sum("sluice_kv_blocks_used");
  view.resident_bytes = now.Sum("process_resident_memory_bytes");
  view.experts_per_step = Share(grown("sluice_unique_experts_total"), grown("sluice_steps_total"));

  view.tiered = !now.samples("sluice_tier_bytes").empty();
  const double hits = grown("sluice_expert_hits_total");
  const double misses = grown("sluice_expert_misses_total");
  view.hit_rate = Share(hits, hits + misses);
  view.misses_per_second = misses / seconds;
  view.recall = Share(grown("sluice_expert_prediction_hits_total"),
                      grown("sluice_expert_prediction_wanted_total"));
  view.stall_share = grown("sluice_expert_stall_seconds_total") / seconds;
  view.degraded_per_second = grown("sluice_expert_degraded_assignments_total") / seconds;
  const auto& belady = now.samples("sluice_expert_belady_hit_rate");
  view.belady_hit_rate = belady.empty() ? kNothing : belady.front().value;
  view.prefetch_per_second = grown("sluice_expert_prefetch_issued_total") / seconds;
  const double ended = grown("sluice_expert_prefetch_ended_total");
  for (const char* outcome : {"used", "late", "wasted", "cancelled"}) {
    view.prefetch_outcomes.emplace_back(
        outcome, Share(grown_at("sluice_expert_prefetch_ended_total", "outcome", outcome), ended));
  }

  for (const Scrape::Sample& sample : now.samples("sluice_link_reads_total")) {
    const auto name = sample.labels.find("link");
    if (name == sample.labels.end()) continue;
    TopView::Link link = {.name = name->second};
    const auto bytes = [&](const Scrape& scrape, std::string_view reason) {
      double sum = 0;
      for (const Scrape::Sample& s : scrape.samples("sluice_link_bytes_total")) {
        const auto of = s.labels.find("link"), why = s.labels.find("reason");
        if (of == s.labels.end() || why == s.labels.end()) continue;
        if (of->second == link.name && why->second == reason) sum += s.value;
      }
      return sum;
    };
    link.demand_bytes_per_second =
        std::max(0.0, bytes(now, "demand") - bytes(before, "demand")) / seconds;
    link.prefetch_bytes_per_second =
        std::max(0.0, bytes(now, "prefetch") - bytes(before, "prefetch")) / seconds;
    link.busy_share = grown_at("sluice_link_busy_seconds_total", "link", link.name) / seconds;
    link.failures = now.Sum("sluice_link_failures_total", "link", link.name);
    view.links.push_back(std::move(link));
  }
  for (const Scrape::Sample& sample : now.samples("sluice_tier_bytes")) {
    const auto name = sample.labels.find("tier");
    if (name == sample.labels.end()) continue;
    view.tiers.push_back(
        {name->second, sample.value, now.Sum("sluice_tier_used_bytes", "tier", name->second)});
  }
  for (const Scrape::Sample& sample : now.samples("sluice_guard_on")) {
    const auto name = sample.labels.find("mechanism");
    if (name == sample.labels.end()) continue;
    view.guards.push_back(
        {name->second, sample.value > 0, now.Sum("sluice_guard_gain", "mechanism", name->second)});
  }

  std::map<int, TopView::Layer> layers;
  for (const Scrape::Sample& sample : now.samples("sluice_expert_hits_total")) {
    const int index = IntegerLabel(sample, "layer");
    if (index < 0) continue;
    const std::string label = std::to_string(index);
    TopView::Layer& layer = layers[index];
    const double layer_hits = grown_at("sluice_expert_hits_total", "layer", label);
    const double layer_misses = grown_at("sluice_expert_misses_total", "layer", label);
    layer.hit_rate = Share(layer_hits, layer_hits + layer_misses);
    layer.recall = Share(grown_at("sluice_expert_prediction_hits_total", "layer", label),
                         grown_at("sluice_expert_prediction_wanted_total", "layer", label));
    layer.stall_share = grown_at("sluice_expert_stall_seconds_total", "layer", label) / seconds;
    layer.resident = now.Sum("sluice_expert_resident", "layer", label);
  }
  const auto place = [&](std::string_view name, std::vector<double> TopView::Layer::*values) {
    for (const Scrape::Sample& sample : now.samples(name)) {
      const auto layer = layers.find(IntegerLabel(sample, "layer"));
      const int expert = IntegerLabel(sample, "expert");
      if (layer == layers.end() || expert < 0 || expert >= 1 << 16) continue;
      std::vector<double>& row = layer->second.*values;
      if (row.size() <= static_cast<size_t>(expert)) row.resize(static_cast<size_t>(expert) + 1);
      row[static_cast<size_t>(expert)] = sample.value;
    }
  };
  place("sluice_expert_heat", &TopView::Layer::heat);
  place("sluice_expert_resident_planes", &TopView::Layer::planes);
  for (auto& [index, layer] : layers) {
    layer.layer = index;
    view.layers.push_back(std::move(layer));
  }
  return view;
}

std::string RenderTop(const TopView& view, std::string_view server, const TopPage& page) {
  std::string text;
  AddLine(&text,
          "sluice top   " + std::string(server) + "   " + (view.ready ? "ready" : "loading") +
              "   memory " + Bytes(view.resident_bytes) + "   KV blocks " +
              Format("%.0f", view.kv_blocks_used) + " of " + Format("%.0f", view.kv_blocks),
          page);
  AddLine(&text,
          "tokens/s     generated " + Format("%.1f", view.generated_per_second) + "   prompt " +
              Format("%.1f", view.prompt_per_second) + "   steps/s " +
              Format("%.1f", view.steps_per_second) + "   running " + Format("%.0f", view.running) +
              "   waiting " + Format("%.0f", view.waiting),
          page);
  if (!view.tiered) {
    AddLine(
        &text,
        "experts      all in memory   touched per step " + Format("%.1f", view.experts_per_step),
        page);
    return text;
  }
  AddLine(&text,
          "experts      hits " + Percent(view.hit_rate) + "   best possible " +
              Percent(view.belady_hit_rate) + "   misses/s " +
              Format("%.1f", view.misses_per_second) + "   stalled " + Percent(view.stall_share) +
              "   recall " + Percent(view.recall) + "   per step " +
              Format("%.1f", view.experts_per_step) + "   degraded/s " +
              Format("%.1f", view.degraded_per_second),
          page);
  std::string prefetch = "prefetch     issued/s " + Format("%.1f", view.prefetch_per_second);
  for (const auto& [outcome, share] : view.prefetch_outcomes) {
    prefetch += "   " + outcome + " " + Percent(share);
  }
  for (const TopView::Guard& guard : view.guards) {
    prefetch += "   [" + guard.name + (guard.on ? " on" : " off");
    if (guard.gain > 0) prefetch += ", " + Format("%.2fx", guard.gain);
    prefetch += "]";
  }
  AddLine(&text, prefetch, page);
  for (const TopView::Link& link : view.links) {
    std::string line = "link         " + link.name + "   on demand " +
                       Bytes(link.demand_bytes_per_second) + "/s   ahead " +
                       Bytes(link.prefetch_bytes_per_second) + "/s   busy " +
                       Percent(link.busy_share);
    if (link.failures > 0) line += "   failed " + Format("%.0f", link.failures);
    AddLine(&text, line, page);
  }
  for (const TopView::Tier& tier : view.tiers) {
    AddLine(
        &text,
        "tier         " + tier.name + "   " + Bytes(tier.used_bytes) + " of " + Bytes(tier.bytes),
        page);
  }
  double hottest = 0;
  for (const TopView::Layer& layer : view.layers) {
    for (const double heat : layer.heat) hottest = std::max(hottest, heat);
  }
  text += "\n";
  AddLine(&text, "layer    hits   stall  recall  in memory  experts by heat", page);
  constexpr int kLabelColumns = 43;
  const auto lines = std::count(text.begin(), text.end(), '\n');
  size_t shown = view.layers.size();
  if (page.rows > 0) {
    shown = std::min(shown, static_cast<size_t>(std::max<ptrdiff_t>(0, page.rows - lines - 1)));
  }
  for (size_t i = 0; i < shown; ++i) {
    const TopView::Layer& layer = view.layers[i];
    char label[96];
    std::snprintf(label, sizeof label, "%5d %7s %7s %7s %10.0f  ", layer.layer,
                  Percent(layer.hit_rate).c_str(), Percent(layer.stall_share).c_str(),
                  Percent(layer.recall).c_str(), layer.resident);
    const size_t width = static_cast<size_t>(std::max(0, page.columns - kLabelColumns));
    text += std::string(label).substr(0, static_cast<size_t>(page.columns)) +
            HeatCells(layer, hottest, width, page.color) + "\n";
  }
  if (shown < view.layers.size()) {
    AddLine(&text, "  ... " + std::to_string(view.layers.size() - shown) + " more layers", page);
  }
  return text;
}

nlohmann::ordered_json TopJson(const TopView& view, std::string_view server) {
  using Json = nlohmann::ordered_json;
  Json json = {{"server", server},
               {"ready", view.ready},
               {"seconds", view.seconds},
               {"generated_tokens_per_second", view.generated_per_second},
               {"prompt_tokens_per_second", view.prompt_per_second},
               {"steps_per_second", view.steps_per_second},
               {"sequences_running", view.running},
               {"sequences_waiting", view.waiting},
               {"kv_blocks", view.kv_blocks},
               {"kv_blocks_used", view.kv_blocks_used},
               {"resident_memory_bytes", view.resident_bytes},
               {"experts_per_step", Number(view.experts_per_step)},
               {"tiered", view.tiered}};
  if (!view.tiered) return json;
  json["hit_rate"] = Number(view.hit_rate);
  json["belady_hit_rate"] = Number(view.belady_hit_rate);
  json["misses_per_second"] = view.misses_per_second;
  json["stall_fraction"] = view.stall_share;
  json["recall"] = Number(view.recall);
  json["degraded_assignments_per_second"] = view.degraded_per_second;
  json["prefetch"] = {{"issued_per_second", view.prefetch_per_second}};
  for (const auto& [outcome, share] : view.prefetch_outcomes) {
    json["prefetch"][outcome] = Number(share);
  }
  json["links"] = Json::array();
  for (const TopView::Link& link : view.links) {
    json["links"].push_back({{"name", link.name},
                             {"demand_bytes_per_second", link.demand_bytes_per_second},
                             {"prefetch_bytes_per_second", link.prefetch_bytes_per_second},
                             {"busy_fraction", link.busy_share},
                             {"failures", link.failures}});
  }
  json["tiers"] = Json::array();
  for (const TopView::Tier& tier : view.tiers) {
    json["tiers"].push_back(
        {{"name", tier.name}, {"bytes", tier.bytes}, {"used_bytes", tier.used_bytes}});
  }
  json["guards"] = Json::array();
  for (const TopView::Guard& guard : view.guards) {
    json["guards"].push_back({{"mechanism", guard.name}, {"on", guard.on}, {"gain", guard.gain}});
  }
  json["layers"] = Json::array();
  for (const TopView::Layer& layer : view.layers) {
    json["layers"].push_back({{"layer", layer.layer},
                              {"hit_rate", Number(layer.hit_rate)},
                              {"stall_fraction", layer.stall_share},
                              {"recall", Number(layer.recall)},
                              {"resident", layer.resident},
                              {"heat", layer.heat},
                              {"planes", layer.planes}});
  }
  return json;
}

}  // namespace sluice
