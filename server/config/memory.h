// How much memory this process may still use, and how much of it the KV cache gets by default.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace sluice {

// Bytes that can still be allocated without swapping: MemAvailable, lowered to what the limits of
// this process's cgroup (v2: memory.high and memory.max, or v1) and of its ancestors leave; the
// page cache that nothing used lately counts as free. `root` is / except in tests.
uint64_t AvailableMemoryBytes(const std::filesystem::path& root = "/");

// What tells of memory pressure. Reads a few small files of the kernel.
struct MemorySignals {
  uint64_t available_bytes = 0;          // AvailableMemoryBytes
  uint64_t machine_available_bytes = 0;  // MemAvailable
  uint64_t machine_bytes = 0;            // MemTotal
  // The least limit of this process's cgroup and its ancestors; the largest number without one.
  uint64_t limit_bytes = 0;
  // Seconds, since whenever, in which some task waited for memory (PSI, `some total`): of this
  // process's cgroup (v2) and of the machine. 0 where the kernel does not count them.
  // https://docs.kernel.org/accounting/psi.html
  double group_stall_seconds = 0;
  double machine_stall_seconds = 0;
};
MemorySignals ReadMemorySignals(const std::filesystem::path& root = "/");

struct KvPlan {
  int blocks = 0;   // of the cache
  int context = 0;  // tokens that one request may use
};

// Chooses the number of KV blocks. `asked_bytes` > 0 is taken as it is. Otherwise: eight full
// contexts, at most a quarter of `available_bytes` - `weight_bytes`. The context shrinks to what
// the cache holds. blocks is 0 when not even one block fits.
KvPlan PlanKv(uint64_t asked_bytes, uint64_t available_bytes, uint64_t weight_bytes,
              size_t bytes_per_block, int block_tokens, int context);

}  // namespace sluice
