#include "server/commands/replay_report.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace sluice {
namespace {

template <class... Values>
std::string Format(const char* format, Values... values) {
  std::array<char, 512> text;
  std::snprintf(text.data(), text.size(), format, values...);
  return text.data();
}

// The optimum at the row's budget, null when it was not replayed.
const ReplayResult* OptimumOf(const ReplayRow& row, const std::vector<ReplayRow>& rows) {
  for (const ReplayRow& other : rows) {
    if (other.options.policy == "optimal" && other.options.budget == row.options.budget) {
      return &other.result;
    }
  }
  return nullptr;
}

double TokensPerSecond(const ReplayResult& result) {
  return result.seconds == 0 ? 0 : static_cast<double>(result.tokens) / result.seconds;
}

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

nlohmann::ordered_json ReplayJson(const Trace& trace, const std::vector<ReplayRow>& rows) {
  nlohmann::ordered_json report;
  report["trace"] = {{"model", trace.model.name},
                     {"layers", trace.model.space.layers},
                     {"experts_per_layer", trace.model.space.experts_per_layer},
                     {"experts_per_token", trace.model.experts_per_token},
                     {"steps", trace.steps},
                     {"lost_steps", trace.lost_steps},
                     {"truncated", trace.truncated}};
  if (!rows.empty()) {
    const ReplayOptions& o = rows.front().options;
    report["disk"] = {{"bytes_per_second", o.disk_bytes_per_second},
                      {"latency_seconds", o.disk_latency_seconds}};
    report["compute"] = {{"dense_seconds", o.dense_seconds}, {"expert_seconds", o.expert_seconds}};
  }
  report["replays"] = nlohmann::ordered_json::array();
  for (const ReplayRow& row : rows) {
    const ReplayResult& r = row.result;
    nlohmann::ordered_json entry = {
        {"policy", row.options.policy},       {"budget", row.options.budget},
        {"horizon", row.options.horizon},     {"predictor", row.options.predictor},
        {"capacity_bytes", r.capacity_bytes}, {"hit_rate", r.hit_rate()}};
    if (const ReplayResult* optimum = OptimumOf(row, rows)) {
      entry["optimal_hit_rate"] = optimum->hit_rate();
    }
    entry["bytes_read_per_token"] = r.bytes_per_token();
    entry["stall_seconds"] = r.stall_seconds;
    entry["stall_fraction"] = r.stall_fraction();
    entry["seconds"] = r.seconds;
    entry["tokens_per_second"] = TokensPerSecond(r);
    entry["reads_ahead"] = r.reads_ahead;
    entry["useful_reads_ahead"] = r.useful_reads_ahead;
    report["replays"].push_back(std::move(entry));
  }
  return report;
}

std::string ReplayTable(const std::vector<ReplayRow>& rows) {
  std::string out =
      Format("%-12s %7s %8s %8s %8s %12s %8s %10s %12s\n", "policy", "budget", "horizon", "hits",
             "optimal", "MB/token", "stall", "tokens/s", "ahead, used");
  for (const ReplayRow& row : rows) {
    const ReplayResult& r = row.result;
    const ReplayResult* optimum = OptimumOf(row, rows);
    const std::string best = optimum == nullptr ? "-" : Format("%.2f%%", 100 * optimum->hit_rate());
    const std::string ahead = r.reads_ahead == 0
                                  ? "-"
                                  : Format("%lld, %.0f%%", static_cast<long long>(r.reads_ahead),
                                           100.0 * static_cast<double>(r.useful_reads_ahead) /
                                               static_cast<double>(r.reads_ahead));
    out += Format("%-12s %6.4g%% %8d %7.2f%% %8s %12.4f %7.1f%% %10.2f %12s\n",
                  row.options.policy.c_str(), 100 * row.options.budget, row.options.horizon,
                  100 * r.hit_rate(), best.c_str(), r.bytes_per_token() / 1e6,
                  100 * r.stall_fraction(), TokensPerSecond(r), ahead.c_str());
  }
  return out;
}

std::string ReplayPlot(const std::string& title, const std::vector<ReplayRow>& rows) {
  constexpr std::array<const char*, 10> kColours = {"#000000", "#d62728", "#1f77b4", "#2ca02c",
                                                    "#ff7f0e", "#9467bd", "#8c564b", "#e377c2",
                                                    "#17becf", "#7f7f7f"};
  constexpr double kLeft = 60, kTop = 40, kWidth = 420, kHeight = 300;
  const auto x = [](double budget) { return kLeft + budget * kWidth; };
  const auto y = [](double rate) { return kTop + (1 - rate) * kHeight; };

  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"400\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"640\" height=\"400\" fill=\"white\"/>\n";
  out += Format("<text x=\"%g\" y=\"22\" font-size=\"14\">", kLeft) + Escaped(title) + "</text>\n";
  for (int tick = 0; tick <= 4; ++tick) {
    const double share = tick / 4.0;
    out += Format(
        "<path d=\"M%g %gH%g\" stroke=\"#ddd\"/><text x=\"%g\" y=\"%g\" "
        "text-anchor=\"end\">%g%%</text>\n",
        kLeft, y(share), kLeft + kWidth, kLeft - 6, y(share) + 4, 100 * share);
    out += Format(
        "<path d=\"M%g %gV%g\" stroke=\"#ddd\"/><text x=\"%g\" y=\"%g\" "
        "text-anchor=\"middle\">%g%%</text>\n",
        x(share), kTop, kTop + kHeight, x(share), kTop + kHeight + 18, 100 * share);
  }
  out += Format(
      "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">experts that fit</text>\n"
      "<text transform=\"translate(16 %g) rotate(-90)\" text-anchor=\"middle\">hit rate</text>\n",
      kLeft + kWidth / 2, kTop + kHeight + 38, kTop + kHeight / 2);

  std::vector<std::string> policies;
  for (const ReplayRow& row : rows) {
    if (std::find(policies.begin(), policies.end(), row.options.policy) == policies.end()) {
      policies.push_back(row.options.policy);
    }
  }
  for (size_t p = 0; p < policies.size(); ++p) {
    std::vector<std::pair<double, double>> points;
    for (const ReplayRow& row : rows) {
      if (row.options.policy == policies[p]) {
        points.emplace_back(row.options.budget, row.result.hit_rate());
      }
    }
    std::sort(points.begin(), points.end());
    const char* colour = kColours[p % kColours.size()];
    std::string path, dots;
    for (const auto& [budget, rate] : points) {
      path += Format("%c%.1f %.1f", path.empty() ? 'M' : 'L', x(budget), y(rate));
      dots += Format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"/>", x(budget), y(rate),
                     colour);
    }
    const bool optimum = policies[p] == "optimal";
    out += "<path d=\"" + path + "\" fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"1.5\"" +
           (optimum ? " stroke-dasharray=\"5 3\"" : "") + "/>" + dots + "\n";
    const double row_y = kTop + 10 + 18 * static_cast<double>(p);
    out +=
        Format("<path d=\"M%g %gh20\" stroke=\"%s\" stroke-width=\"2\"/><text x=\"%g\" y=\"%g\">",
               kLeft + kWidth + 14, row_y, colour, kLeft + kWidth + 40, row_y + 4);
    out += Escaped(policies[p]) + "</text>\n";
  }
  return out + "</svg>\n";
}

}  // namespace sluice
