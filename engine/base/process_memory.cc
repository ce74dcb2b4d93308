#include "engine/base/process_memory.h"

#include <malloc.h>
#include <unistd.h>

#include <fstream>
#include <limits>
#include <string>

namespace sluice {

uint64_t ResidentBytes() {
  uint64_t total = 0, resident = 0;
  std::ifstream file("/proc/self/statm");
  if (!(file >> total >> resident)) return 0;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

uint64_t PeakResidentBytes() {
  std::ifstream file("/proc/self/status");
  std::string name;
  while (file >> name) {
    uint64_t kib = 0;
    if (name == "VmHWM:" && file >> kib) return kib * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

bool ResetPeakResidentBytes() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return static_cast<bool>(file);
}

void ReturnFreeMemory() { malloc_trim(0); }

}  // namespace sluice
