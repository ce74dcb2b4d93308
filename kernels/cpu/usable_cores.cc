#include "kernels/cpu/usable_cores.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

#include "kernels/cpu/thread_pool.h"

namespace sluice::cpu {
namespace {

int Tighter(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

bool ReadNumber(const std::string& path, long long* value) {
  std::ifstream file(path);
  return static_cast<bool>(file >> *value);
}

int QuotaV2(const std::string& directory) {
  // "max 100000" means no limit: the first word is then not a number.
  std::ifstream file(directory + "/cpu.max");
  long long quota_us = 0, period_us = 0;
  return file >> quota_us >> period_us ? CoresFromQuota(quota_us, period_us) : 0;
}

int QuotaV1(const std::string& directory) {
  long long quota_us = 0, period_us = 0;
  if (!ReadNumber(directory + "/cpu.cfs_quota_us", &quota_us)) return 0;
  if (!ReadNumber(directory + "/cpu.cfs_period_us", &period_us)) return 0;
  return CoresFromQuota(quota_us, period_us);
}

// A limit on any ancestor binds too. Inside a container the path may name directories of the host
// that are not mounted here; the walk then still ends at the root of the mount, which is ours.
template <class Quota>
int TightestUpwards(const std::string& root, std::string path, Quota quota) {
  int cores = 0;
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    cores = Tighter(cores, quota(root + path));
    if (path.empty()) return cores;
    const size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
}

bool ListHasCpu(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

int CoresFromQuota(long long quota_us, long long period_us) {
  if (quota_us <= 0 || period_us <= 0) return 0;
  return static_cast<int>(std::clamp(quota_us / period_us, 1LL, 1LL << 20));
}

int CoresFromCgroup(const std::string& proc_cgroup, const std::string& mount) {
  int cores = 0;
  std::istringstream lines(proc_cgroup);
  for (std::string line; std::getline(lines, line);) {
    // hierarchy-id:controllers:path, with neither id nor controllers in version 2.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      cores = Tighter(cores, TightestUpwards(mount, path, QuotaV2));
    } else if (ListHasCpu(controllers)) {
      cores = Tighter(cores, TightestUpwards(mount + "/" + controllers, path, QuotaV1));
      cores = Tighter(cores, TightestUpwards(mount + "/cpu", path, QuotaV1));
    }
  }
  return cores;
}

int UsableCores() {
  int cores = 0;
  // The kernel refuses a mask smaller than its own: grow until it fits.
  for (int capacity = 1024; capacity <= 1 << 16 && cores == 0; capacity *= 4) {
    cpu_set_t* set = CPU_ALLOC(capacity);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    if (sched_getaffinity(0, bytes, set) == 0) cores = CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
  }
  if (cores == 0) cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  std::ifstream file("/proc/self/cgroup");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return std::max(1, Tighter(cores, CoresFromCgroup(text, "/sys/fs/cgroup")));
}

}  // namespace sluice::cpu
