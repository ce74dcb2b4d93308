#include "server/config/pack_cache.h"

#include <chrono>
#include <fstream>
#include <limits>
#include <string>

#include "tests/support/catch.h"
#include "tests/support/scratch_directory.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

// A file of so many bytes that was used so many hours ago.
fs::path Put(const ScratchDirectory& cache, const std::string& name, size_t bytes, int hours) {
  const fs::path path = cache.path() / name;
  std::ofstream(path) << std::string(bytes, 'x');
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(hours));
  return path;
}

std::string Name(const std::string& model, char digit) {
  return model + "-" + std::string(16, digit) + ".sluice";
}

using Paths = std::vector<fs::path>;

TEST_CASE("The packs that were used longest ago make room for a new one", "[cache]") {
  const ScratchDirectory cache;
  const fs::path old = Put(cache, Name("a", '1'), 100, 3),
                 oldest = Put(cache, Name("b", '2'), 100, 9);
  const fs::path lately = Put(cache, Name("c", 'f'), 100, 1);
  CHECK(MakeRoomForPack(cache.path(), 100, 400).empty());
  CHECK(MakeRoomForPack(cache.path(), 101, 400) == Paths{oldest});
  CHECK(fs::exists(old));
  CHECK_FALSE(fs::exists(oldest));
  // One that is larger than the bound by itself leaves nothing.
  CHECK(MakeRoomForPack(cache.path(), 500, 400) == Paths{old, lately});
  CHECK(MakeRoomForPack(cache.path(), 500, 400).empty());
}

TEST_CASE("A pack that is in use stays, and is the last to go afterwards", "[cache]") {
  const ScratchDirectory cache;
  const fs::path used = Put(cache, Name("a", '1'), 100, 9),
                 other = Put(cache, Name("b", '2'), 100, 3);
  {
    const auto lease = PackLease::Take(used);
    REQUIRE(lease);
    CHECK(PackLease::Take(used));  // any number of users
    CHECK(MakeRoomForPack(cache.path(), 400, 400) == Paths{other});
  }
  const fs::path third = Put(cache, Name("c", '3'), 100, 1);
  CHECK(MakeRoomForPack(cache.path(), 300, 400) == Paths{third});
  CHECK(MakeRoomForPack(cache.path(), 400, 400) == Paths{used});
}

TEST_CASE("A lease that was moved lasts as long as its new owner", "[cache]") {
  const ScratchDirectory cache;
  const fs::path used = Put(cache, Name("a", '1'), 100, 9);
  {
    PackLease owner;
    {
      auto lease = PackLease::Take(used);
      REQUIRE(lease);
      owner = std::move(*lease);
    }
    CHECK(MakeRoomForPack(cache.path(), 1, 1).empty());
  }
  CHECK(MakeRoomForPack(cache.path(), 1, 1) == Paths{used});
}

TEST_CASE("What is no cached pack is neither counted nor removed", "[cache]") {
  const ScratchDirectory cache;
  Put(cache, "mine.sluice", 100, 9);
  Put(cache, "a-0123456789abcde.sluice", 100, 9);   // a digit short
  Put(cache, "a-0123456789abcdeg.sluice", 100, 9);  // not hexadecimal
  Put(cache, Name("a", '1') + ".txt", 100, 9);
  fs::create_directory(cache.path() / Name("directory", '1'));
  fs::create_symlink(cache.path() / "mine.sluice", cache.path() / Name("link", '1'));
  const fs::path pack = Put(cache, Name("a", '1'), 100, 1);
  CHECK(MakeRoomForPack(cache.path(), 100, 200).empty());
  CHECK(MakeRoomForPack(cache.path(), 200, 200) == Paths{pack});
  CHECK(fs::exists(cache.path() / "mine.sluice"));
}

TEST_CASE("There is no lease on a pack that is not there", "[cache]") {
  const ScratchDirectory cache;
  CHECK_FALSE(PackLease::Take(cache.path() / Name("a", '1')));
}

TEST_CASE("Without a setting the cache may take half of its file system", "[cache]") {
  const ScratchDirectory cache;
  CHECK(DefaultPackCacheBytes(cache.path()) == fs::space(cache.path()).capacity / 2);
  CHECK(DefaultPackCacheBytes(cache.path() / "absent") == std::numeric_limits<uint64_t>::max());
}

}  // namespace
}  // namespace sluice
