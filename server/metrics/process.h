// What the kernel says about this process (/proc/self).
#pragma once

#include <cstdint>

namespace sluice {

struct ProcessUsage {
  uint64_t resident_bytes = 0;
  uint64_t virtual_bytes = 0;
  double cpu_seconds = 0;
  int open_files = 0;
  double start_time_seconds = 0;  // Unix time
};

// Fields that cannot be read stay 0.
ProcessUsage ReadProcessUsage();

}  // namespace sluice
