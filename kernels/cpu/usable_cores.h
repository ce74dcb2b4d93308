// How many cores a process may use: its affinity mask, cut down by a cgroup CPU quota. The parts of
// UsableCores() (thread_pool.h) that can be tested without the machine's own /proc and /sys.
#pragma once

#include <string>

namespace sluice::cpu {

// The whole cores that `quota_us` of CPU time per `period_us` keeps busy, at least 1; 0 when the
// numbers set no limit.
int CoresFromQuota(long long quota_us, long long period_us);

// The tightest quota on the path from a process's cgroup to the root, in cores; 0 when none.
// proc_cgroup: the text of /proc/self/cgroup. mount: where cgroups are mounted, usually
// /sys/fs/cgroup. Understands version 2 (cpu.max) and version 1 (cpu.cfs_quota_us). What cannot be
// read sets no limit.
int CoresFromCgroup(const std::string& proc_cgroup, const std::string& mount);

}  // namespace sluice::cpu
