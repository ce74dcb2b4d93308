// Metric families made from a snapshot of counters when they are scraped.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <utility>
#include <vector>

namespace sluice {

class MetricSnapshot {
 public:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  // All values of one name are added one after another.
  void Gauge(std::string name, std::string help, double value, Labels labels = {}) {
    Add(prometheus::MetricType::Gauge, std::move(name), std::move(help)).gauge.value = value;
    families_.back().metric.back().label = std::move(labels);
  }
  void Counter(std::string name, std::string help, double value, Labels labels = {}) {
    Add(prometheus::MetricType::Counter, std::move(name), std::move(help)).counter.value = value;
    families_.back().metric.back().label = std::move(labels);
  }
  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& Add(prometheus::MetricType type, std::string name, std::string help) {
    if (families_.empty() || families_.back().name != name) {
      prometheus::MetricFamily family;
      family.name = std::move(name);
      family.help = std::move(help);
      family.type = type;
      families_.push_back(std::move(family));
    }
    return families_.back().metric.emplace_back();
  }

  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace sluice
