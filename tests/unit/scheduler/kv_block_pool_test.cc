#include "engine/scheduler/kv_block_pool.h"

#include <set>

#include "tests/support/catch.h"

namespace sluice {
namespace {

TEST_CASE("Every block is handed out once, then none", "[scheduler]") {
  KvBlockPool pool(5);
  CHECK(pool.total() == 5);
  std::set<int32_t> blocks;
  for (int i = 0; i < 5; ++i) blocks.insert(pool.Allocate());
  CHECK(blocks == std::set<int32_t>{0, 1, 2, 3, 4});
  CHECK(pool.free() == 0);
  CHECK(pool.used() == 5);
  CHECK(pool.Allocate() == -1);
  CHECK(pool.CheckInvariants() == "");
  pool.Release(3);
  CHECK(pool.free() == 1);
  CHECK(pool.Allocate() == 3);
}

TEST_CASE("A shared block is free when its last holder lets go", "[scheduler]") {
  KvBlockPool pool(2);
  const int32_t block = pool.Allocate();
  pool.AddReference(block);
  CHECK(pool.references(block) == 2);
  pool.Release(block);
  CHECK(pool.used() == 1);
  CHECK(pool.CheckInvariants() == "");
  pool.Release(block);
  CHECK(pool.used() == 0);
  CHECK(pool.references(block) == 0);
  CHECK(pool.CheckInvariants() == "");
}

TEST_CASE("Kept blocks go last, the one let go first before the others", "[scheduler]") {
  KvBlockPool pool(4);
  for (int i = 0; i < 4; ++i) REQUIRE(pool.Allocate() == i);
  for (int32_t block : {0, 1, 2}) pool.Keep(block);
  for (int32_t block : {2, 0, 3, 1}) pool.Release(block);
  CHECK(pool.CheckInvariants() == "");
  CHECK(pool.free() == 4);
  CHECK(pool.used() == 0);
  CHECK(pool.idle_kept() == 3);
  pool.AddReference(0);  // found again
  CHECK(pool.references(0) == 1);
  CHECK(pool.free() == 3);
  CHECK(pool.CheckInvariants() == "");
  pool.Release(0);  // now the most recent
  CHECK(pool.Allocate() == 3);
  CHECK(pool.Allocate() == 2);
  CHECK_FALSE(pool.kept(2));
  CHECK(pool.Allocate() == 1);
  CHECK(pool.Allocate() == 0);
  CHECK(pool.Allocate() == -1);
  CHECK(pool.idle_kept() == 0);
  pool.Release(2);  // not kept any more
  CHECK(pool.idle_kept() == 0);
  CHECK(pool.free() == 1);
  CHECK(pool.CheckInvariants() == "");
}

}  // namespace
}  // namespace sluice
