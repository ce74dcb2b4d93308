#include "engine/experts/router.h"

#include <vector>

#include "tests/support/catch.h"

namespace sluice {

TEST_CASE("A routing plan lists each touched expert once with its tokens in order", "[experts]") {
  RoutingPlan plan(8, 2, 5);
  const std::vector<int32_t> ids = {3, 1,  //
                                    1, 4,  //
                                    3, 4};
  std::vector<int32_t> index(3 * 3, -1);
  plan.Build(ids.data(), 2, 3, index.data(), 3);
  REQUIRE(plan.groups().size() == 3);
  const int experts[] = {1, 3, 4};
  for (int g = 0; g < 3; ++g) {
    CHECK(plan.groups()[g].expert == experts[g]);
    CHECK(plan.groups()[g].begin == 2 * g);
    CHECK(plan.groups()[g].count == 2);
  }
  CHECK(std::vector<int32_t>(plan.rows(), plan.rows() + 6) ==
        std::vector<int32_t>{0, 1, 0, 2, 1, 2});
  // Where each (token, slot) went; the third column is the caller's.
  CHECK(index == std::vector<int32_t>{2, 0, -1, 1, 4, -1, 3, 5, -1});
}

TEST_CASE("A routing plan forgets the step before", "[experts]") {
  RoutingPlan plan(8, 1, 4);
  std::vector<int32_t> index(8);
  const std::vector<int32_t> first = {0, 1, 2, 3, 0, 1, 2, 3};
  plan.Build(first.data(), 1, 8, index.data(), 1);
  CHECK(plan.groups().size() == 4);
  const std::vector<int32_t> second = {2};
  plan.Build(second.data(), 1, 1, index.data(), 1);
  REQUIRE(plan.groups().size() == 1);
  CHECK(plan.groups()[0].expert == 2);
  CHECK(plan.groups()[0].begin == 0);
  CHECK(plan.groups()[0].count == 1);
  CHECK(plan.rows()[0] == 0);
  CHECK(index[0] == 0);
}

}  // namespace sluice
