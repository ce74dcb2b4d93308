#include "server/config/memory.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

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

// A field of /proc/meminfo or of a cgroup's memory.stat, in the file's unit.
uint64_t ReadField(const fs::path& path, std::string_view wanted) {
  std::ifstream file(path);
  std::string name, rest;
  uint64_t value = 0;
  while (file >> name >> value) {
    if (name == wanted) return value;
    std::getline(file, rest);
  }
  return kUnlimited;
}

uint64_t MemInfoBytes(const fs::path& root, std::string_view field) {
  const uint64_t kib = ReadField(root / "proc/meminfo", field);
  return kib == kUnlimited ? kUnlimited : kib * 1024;
}

// The `total` of the "some" line of a pressure file, which is in microseconds.
double StallSeconds(const fs::path& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word) || word != "some") return 0;
  while (file >> word && word != "full") {
    if (word.starts_with("total=")) return 1e-6 * std::strtod(word.c_str() + 6, nullptr);
  }
  return 0;
}

// This process's memory cgroup in one of the hierarchies.
struct Group {
  fs::path mount;
  std::string path;  // below the mount, "/a/b"
  bool v2 = false;

  fs::path directory(const std::string& p) const { return mount / fs::path(p).relative_path(); }
};

std::vector<Group> MemoryGroups(const fs::path& root) {
  std::vector<Group> groups;
  std::ifstream file(root / "proc/self/cgroup");
  // Lines are "hierarchy:controllers:path"; v2 has hierarchy 0 and no controllers.
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      groups.push_back({root / "sys/fs/cgroup", path, true});
    } else if (controllers.find(",memory,") != std::string::npos) {
      groups.push_back({root / "sys/fs/cgroup/memory", path, false});
    }
  }
  return groups;
}

struct Limit {
  uint64_t bytes = kUnlimited;  // the least
  uint64_t left = kUnlimited;   // the least that a limit leaves
};

// Of the group at `directory` alone.
Limit GroupLimit(const fs::path& directory, bool v2) {
  Limit limit;
  limit.bytes = v2 ? std::min(ReadNumber(directory / "memory.max"),
                              // Above it the kernel slows the group down.
                              ReadNumber(directory / "memory.high"))
                   : ReadNumber(directory / "memory.limit_in_bytes");
  if (limit.bytes >= kUnlimited / 2) return {};  // v1 writes "no limit" as a huge number
  uint64_t usage = ReadNumber(directory / (v2 ? "memory.current" : "memory.usage_in_bytes"));
  if (usage == kUnlimited) usage = 0;
  const uint64_t cold =
      ReadField(directory / "memory.stat", v2 ? "inactive_file" : "total_inactive_file");
  if (cold != kUnlimited) usage -= std::min(usage, cold);
  limit.left = limit.bytes - std::min(limit.bytes, usage);
  return limit;
}

// From each group up to its mount.
Limit AllLimits(const std::vector<Group>& groups) {
  Limit least;
  for (const Group& group : groups) {
    std::string path = group.path;
    while (true) {
      const Limit limit = GroupLimit(group.directory(path), group.v2);
      least.bytes = std::min(least.bytes, limit.bytes);
      least.left = std::min(least.left, limit.left);
      const size_t slash = path.rfind('/');
      if (slash == std::string::npos || path == "/") break;
      path.resize(slash == 0 ? 1 : slash);
    }
  }
  return least;
}

}  // namespace

uint64_t AvailableMemoryBytes(const fs::path& root) {
  return std::min(MemInfoBytes(root, "MemAvailable:"), AllLimits(MemoryGroups(root)).left);
}

MemorySignals ReadMemorySignals(const fs::path& root) {
  const std::vector<Group> groups = MemoryGroups(root);
  const Limit limit = AllLimits(groups);
  MemorySignals signals;
  signals.machine_available_bytes = MemInfoBytes(root, "MemAvailable:");
  signals.machine_bytes = MemInfoBytes(root, "MemTotal:");
  signals.available_bytes = std::min(signals.machine_available_bytes, limit.left);
  signals.limit_bytes = limit.bytes;
  signals.machine_stall_seconds = StallSeconds(root / "proc/pressure/memory");
  for (const Group& group : groups) {
    if (!group.v2) continue;
    signals.group_stall_seconds = StallSeconds(group.directory(group.path) / "memory.pressure");
  }
  return signals;
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
