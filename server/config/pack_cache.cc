#include "server/config/pack_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

namespace sluice {
namespace {

namespace fs = std::filesystem;

bool IsCachedPack(const fs::path& path) {
  constexpr size_t kDigits = 16;
  if (path.extension() != ".sluice") return false;
  const std::string stem = path.stem().string();
  if (stem.size() < kDigits + 2 || stem[stem.size() - kDigits - 1] != '-') return false;
  return stem.find_first_not_of("0123456789abcdef", stem.size() - kDigits) == std::string::npos;
}

// Whether the name still leads to the open file.
bool IsNamed(int descriptor, const fs::path& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(descriptor, &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

// False: somebody uses it, or it cannot be removed.
bool RemoveUnused(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (descriptor < 0) return false;
  const bool removed = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 && IsNamed(descriptor, path) &&
                       ::unlink(path.c_str()) == 0;
  ::close(descriptor);
  return removed;
}

}  // namespace

PackLease::PackLease(PackLease&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

PackLease& PackLease::operator=(PackLease&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

PackLease::~PackLease() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::optional<PackLease> PackLease::Take(const fs::path& pack) {
  PackLease lease(::open(pack.c_str(), O_RDONLY | O_CLOEXEC));
  if (lease.descriptor_ < 0) return std::nullopt;
  if (::flock(lease.descriptor_, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return std::nullopt;
  }
  if (!IsNamed(lease.descriptor_, pack)) return std::nullopt;
  ::futimens(lease.descriptor_, nullptr);  // another user's pack keeps its time
  return lease;
}

uint64_t DefaultPackCacheBytes(const fs::path& directory) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  return error ? std::numeric_limits<uint64_t>::max() : space.capacity / 2;
}

std::vector<fs::path> MakeRoomForPack(const fs::path& directory, uint64_t needed_bytes,
                                      uint64_t limit_bytes) {
  struct CachedPack {
    fs::file_time_type used;
    uint64_t bytes = 0;
    fs::path path;
  };
  std::vector<CachedPack> packs;
  uint64_t total = 0;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::error_code gone;
    if (!IsCachedPack(it->path()) || !it->is_regular_file(gone) || it->is_symlink(gone)) continue;
    CachedPack pack = {it->last_write_time(gone), it->file_size(gone), it->path()};
    if (gone) continue;  // by another process
    total += pack.bytes;
    packs.push_back(std::move(pack));
  }
  std::sort(packs.begin(), packs.end(),
            [](const CachedPack& a, const CachedPack& b) { return a.used < b.used; });
  const uint64_t room = limit_bytes - std::min(limit_bytes, needed_bytes);
  std::vector<fs::path> removed;
  for (const CachedPack& pack : packs) {
    if (total <= room) break;
    if (!RemoveUnused(pack.path)) continue;
    total -= pack.bytes;
    removed.push_back(pack.path);
  }
  return removed;
}

}  // namespace sluice
