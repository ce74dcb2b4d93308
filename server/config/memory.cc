#include "server/config/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

namespace sluice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// The first number of a file; "max" and absent files are kUnlimited.
uint64_t ReadNumber(const fs::path& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kUnlimited;
}

uint64_t MemAvailable(const fs::path& root) {
  std::ifstream file(root / "proc/meminfo");
  std::string name, unit;
  uint64_t kib = 0;
  while (file >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return kUnlimited;
}

// What the group at `directory` leaves, by the names of its limit and usage files.
uint64_t Headroom(const fs::path& directory, const char* limit_file, const char* usage_file) {
  const uint64_t limit = ReadNumber(directory / limit_file);
  if (limit >= kUnlimited / 2) return kUnlimited;  // v1 writes "no limit" as a huge number
  const uint64_t usage = ReadNumber(directory / usage_file);
  return usage == kUnlimited ? limit : limit - std::min(limit, usage);
}

// The least headroom from the group `path` up to the mount at `mount`.
uint64_t HeadroomUpwards(const fs::path& mount, std::string path, const char* limit_file,
                         const char* usage_file) {
  uint64_t least = kUnlimited;
  while (true) {
    least =
        std::min(least, Headroom(mount / fs::path(path).relative_path(), limit_file, usage_file));
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos || path == "/") return least;
    path.resize(slash == 0 ? 1 : slash);
  }
}

}  // namespace

uint64_t AvailableMemoryBytes(const fs::path& root) {
  uint64_t available = MemAvailable(root);
  std::ifstream groups(root / "proc/self/cgroup");
  // Lines are "hierarchy:controllers:path"; v2 has hierarchy 0 and no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      available = std::min(
          available, HeadroomUpwards(root / "sys/fs/cgroup", path, "memory.max", "memory.current"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      available =
          std::min(available, HeadroomUpwards(root / "sys/fs/cgroup/memory", path,
                                              "memory.limit_in_bytes", "memory.usage_in_bytes"));
    }
  }
  return available;
}

KvPlan PlanKv(uint64_t asked_bytes, uint64_t available_bytes, uint64_t weight_bytes,
              size_t bytes_per_block, int block_tokens, int context) {
  constexpr uint64_t kDefaultContexts = 8;
  const auto context_blocks =
      (static_cast<uint64_t>(context) + static_cast<uint64_t>(block_tokens) - 1) /
      static_cast<uint64_t>(block_tokens);
  uint64_t blocks = asked_bytes / bytes_per_block;
  if (asked_bytes == 0) {
    const uint64_t free = available_bytes - std::min(available_bytes, weight_bytes);
    blocks = std::min(kDefaultContexts * context_blocks, free / 4 / bytes_per_block);
  }
  blocks = std::min<uint64_t>(blocks, std::numeric_limits<int>::max() / block_tokens);
  return {static_cast<int>(blocks),
          static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(context),
                                              blocks * static_cast<uint64_t>(block_tokens)))};
}

}  // namespace sluice
