#include "server/commands/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace sluice {

std::function<void(double)> ProgressBar(const char* what) {
  return [bars = PhaseBars(), what](double fraction) { bars(what, fraction); };
}

std::function<void(const std::string&, double)> PhaseBars() {
  if (!isatty(STDERR_FILENO)) return [](const std::string&, double) {};
  return [phase = std::string(), shown = -1](const std::string& what, double fraction) mutable {
    const int permille = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * 1000);
    if (what == phase && permille == shown) return;
    if (what != phase && shown >= 0 && shown < 1000) std::fputc('\n', stderr);
    phase = what;
    shown = permille;
    constexpr int kWidth = 40;
    const int filled = permille * kWidth / 1000;
    std::fprintf(stderr, "\r%s [%.*s%*s] %3d%%%s", what.c_str(), filled,
                 "########################################", kWidth - filled, "", permille / 10,
                 permille == 1000 ? "\n" : "");
  };
}

}  // namespace sluice
