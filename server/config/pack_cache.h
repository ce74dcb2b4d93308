// The packs that were made on first use: how much room they take, and which of them go.
//
// A cached pack is a file NAME-<16 hexadecimal digits>.sluice (model_path.cc); nothing else in the
// directory is counted or touched, such as packs that a person put there under other names. What is
// removed is made again when it is wanted: a cached pack is only used while its source is there.
//
// Processes share the cache without a server of their own: whoever uses a pack holds a shared lock
// (flock) on it, and a pack is removed under the exclusive one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace sluice {

// Keeps a pack from being removed from the cache while it lives. Movable; empty by default. Where
// the file system has no locks it keeps nothing.
class PackLease {
 public:
  PackLease() = default;
  PackLease(PackLease&& other) noexcept;
  PackLease& operator=(PackLease&& other) noexcept;
  PackLease(const PackLease&) = delete;
  PackLease& operator=(const PackLease&) = delete;
  ~PackLease();

  // Also makes the pack the most recently used. Nothing when it is not there, or is just being
  // removed.
  static std::optional<PackLease> Take(const std::filesystem::path& pack);

 private:
  explicit PackLease(int descriptor) : descriptor_(descriptor) {}

  int descriptor_ = -1;
};

// Half of the file system that holds the directory: the bound where none is set. No bound (the
// largest number) when that cannot be told.
uint64_t DefaultPackCacheBytes(const std::filesystem::path& directory);

// Removes cached packs that nobody uses, the least recently used first, until `needed_bytes` more
// make no more than `limit_bytes` together, or none is left. Those that were removed.
std::vector<std::filesystem::path> MakeRoomForPack(const std::filesystem::path& directory,
                                                   uint64_t needed_bytes, uint64_t limit_bytes);

}  // namespace sluice
