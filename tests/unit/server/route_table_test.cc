#include "server/http/route_table.h"

#include "tests/support/catch.h"

using namespace sluice;

namespace {

RouteTable Table() {
  RouteTable table;
  const auto handler = [](const HttpRequest&, std::string_view, Waker) { return HttpReply(); };
  table.Add("GET", "/v1/models", handler);
  table.Add("GET", "/v1/models/*", handler);
  table.Add("POST", "/v1/completions", handler);
  table.Add("POST", "/v1/models/special", handler);
  return table;
}

}  // namespace

TEST_CASE("Routes are found by method and path", "[http]") {
  const RouteTable table = Table();
  CHECK(table.Find("GET", "/v1/models").handler != nullptr);
  CHECK(table.Find("HEAD", "/v1/models").handler != nullptr);
  CHECK(table.Find("POST", "/v1/completions").handler != nullptr);
  const auto model = table.Find("GET", "/v1/models/org/name");
  CHECK(model.handler != nullptr);
  CHECK(model.rest == "org/name");
  CHECK(model.pattern == "/v1/models/*");
}

TEST_CASE("An unknown path allows nothing, a wrong method names the right ones", "[http]") {
  const RouteTable table = Table();
  for (const char* path : {"/", "/v1", "/v1/models/", "/v1/completions/", "/V1/models", ""}) {
    CAPTURE(path);
    CHECK(table.Find("GET", path).allow.empty());
    CHECK(table.Find("GET", path).handler == nullptr);
  }
  const auto wrong = table.Find("DELETE", "/v1/completions");
  CHECK(wrong.handler == nullptr);
  CHECK(wrong.allow == "POST, OPTIONS");
  CHECK(table.Find("POST", "/v1/models").allow == "GET, HEAD, OPTIONS");
}

TEST_CASE("An exact pattern goes before a prefix", "[http]") {
  const RouteTable table = Table();
  const auto special = table.Find("POST", "/v1/models/special");
  CHECK(special.pattern == "/v1/models/special");
  CHECK(special.handler != nullptr);
}

TEST_CASE("Percent escapes are decoded, malformed ones refused", "[http]") {
  std::string out;
  CHECK(PercentDecode("/a%2Fb%20c", &out));
  CHECK(out == "/a/b c");
  for (const char* bad : {"%", "%2", "%zz", "a%0", "%00", "%-1"}) {
    CAPTURE(bad);
    CHECK(!PercentDecode(bad, &out));
  }
}
