// What `sluice top` shows: the figures of a running server between two scrapes of its /metrics, as
// a terminal page or as JSON. No sockets here.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/result.h"

namespace sluice {

// The samples of an exposition text (Prometheus text format 0.0.4).
class Scrape {
 public:
  // Errors: kCorrupt, with the number of the line that is no sample.
  static Result<Scrape> Parse(std::string_view text);

  using Labels = std::map<std::string, std::string, std::less<>>;
  struct Sample {
    Labels labels;
    double value = 0;
  };

  // Samples of one name, in the order of the text.
  const std::vector<Sample>& samples(std::string_view name) const;
  // Their sum over all labels, or over those with `label` at `value`; 0 when there are none.
  double Sum(std::string_view name) const;
  double Sum(std::string_view name, std::string_view label, std::string_view value) const;

 private:
  std::map<std::string, std::vector<Sample>, std::less<>> samples_;
};

// Shares and rates are of the time between the scrapes; a share of nothing is NaN (null in JSON).
struct TopView {
  bool ready = false;
  double seconds = 0;  // between the scrapes
  double generated_per_second = 0, prompt_per_second = 0, steps_per_second = 0;  // tokens; steps
  double running = 0, waiting = 0;
  double kv_blocks = 0, kv_blocks_used = 0;
  double resident_bytes = 0;    // of the process
  double experts_per_step = 0;  // distinct, over all layers

  bool tiered =
      false;  // experts are served from less memory than they need; else the rest is empty
  double hit_rate = 0, recall = 0;
  double misses_per_second = 0;
  double stall_share = 0;  // of the time
  double degraded_per_second = 0;
  double belady_hit_rate = 0;
  double prefetch_per_second = 0;
  std::vector<std::pair<std::string, double>> prefetch_outcomes;  // name, share of those that ended

  struct Link {
    std::string name;
    double demand_bytes_per_second = 0, prefetch_bytes_per_second = 0;
    double busy_share = 0;
    double failures = 0;  // since the start
  };
  std::vector<Link> links;
  struct Tier {
    std::string name;
    double bytes = 0, used_bytes = 0;
  };
  std::vector<Tier> tiers;
  struct Guard {
    std::string name;
    bool on = false;
    double gain = 0;
  };
  std::vector<Guard> guards;
  struct Layer {
    int layer = 0;
    double hit_rate = 0, recall = 0;
    double stall_share = 0;
    double resident = 0;               // experts
    std::vector<double> heat, planes;  // by expert; empty where the server did not say
  };
  std::vector<Layer> layers;
};

TopView CompareScrapes(const Scrape& before, const Scrape& now, double seconds);

struct TopPage {
  int columns = 100;
  int rows = 0;  // lines at most; 0: all
  bool color = false;
};

// Lines ending in '\n', none longer than page.columns.
std::string RenderTop(const TopView& view, std::string_view server, const TopPage& page);

nlohmann::ordered_json TopJson(const TopView& view, std::string_view server);

}  // namespace sluice
