// Progress on standard error, for a person at a terminal.
#pragma once

#include <functional>
#include <string>

namespace sluice {

// A bar that is redrawn in place as fractions in [0, 1] come in, and ends its line at 1. Draws
// nothing when standard error is not a terminal. Threads: one caller at a time.
std::function<void(double)> ProgressBar(const char* what);
// The same for work of several phases, each with a bar of its own.
std::function<void(const std::string& what, double fraction)> PhaseBars();

}  // namespace sluice
