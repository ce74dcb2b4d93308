#include "server/commands/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace sluice {

std::function<void(double)> ProgressBar(const char* what) {
  if (!isatty(STDERR_FILENO)) return [](double) {};
  return [what, shown = -1](double fraction) mutable {
    const int permille = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * 1000);
    if (permille == shown) return;
    shown = permille;
    constexpr int kWidth = 40;
    const int filled = permille * kWidth / 1000;
    std::fprintf(stderr, "\r%s [%.*s%*s] %3d%%%s", what, filled,
                 "########################################", kWidth - filled, "", permille / 10,
                 fraction >= 1 ? "\n" : "");
  };
}

}  // namespace sluice
