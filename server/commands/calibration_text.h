// The calibration text that the binary carries: config/calibration.txt.
#pragma once

#include <string_view>

namespace sluice {

std::string_view CalibrationText();

}  // namespace sluice
