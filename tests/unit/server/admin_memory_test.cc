// /admin/memory: who may use it, what it takes, what it answers.
#include "server/api/admin_memory.h"

#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/unit/server/fakes.h"

namespace sluice::test {
namespace {

ExpertTierStats SomeTiers(uint64_t budget) {
  ExpertTierStats tiers;
  tiers.budget_bytes = budget;
  tiers.least_budget_bytes = 1000;
  tiers.full_budget_bytes = 9000;
  tiers.tiers = {{"host", 4000, 3000}};
  return tiers;
}

// An engine that takes budgets of at least 1000 bytes.
void GiveTiers(FakeEngine& engine) {
  engine.SetTiers(SomeTiers(5000));
  engine.on_budget = [&engine](uint64_t bytes, std::function<void(Result<>)> done) {
    if (bytes < 1000) return done(InvalidArgument("give it at least 1000"));
    engine.SetTiers(SomeTiers(bytes));
    done({});
  };
}

constexpr const char* kPath = "/admin/memory";

TEST_CASE("The memory budget is shown, changed and shown again", "[server][admin]") {
  TestServer server;
  GiveTiers(server.engine());
  Client client(server.port());
  const Response before = client.Ask("GET", kPath);
  REQUIRE(before.status == 200);
  CHECK(before.Json()["memory_budget"] == 5000);
  CHECK(before.Json()["least_memory_budget"] == 1000);
  CHECK(before.Json()["full_memory_budget"] == 9000);
  CHECK(before.Json()["tiers"][0]["name"] == "host");
  CHECK(before.Json()["tiers"][0]["capacity_bytes"] == 4000);
  CHECK(before.Json()["tiers"][0]["used_bytes"] == 3000);
  CHECK(before.Json()["resident_bytes"] > 1000);
  const Response after = client.Ask("POST", kPath, R"({"memory_budget": "2KiB"})");
  REQUIRE(after.status == 200);
  CHECK(after.Json()["memory_budget"] == 2048);
  CHECK(client.Ask("POST", kPath, R"({"memory_budget": 3000})").Json()["memory_budget"] == 3000);
  CHECK(client.Ask("GET", kPath).Json()["memory_budget"] == 3000);
  CHECK(client.Ask("GET", "/props").Json()["memory"]["memory_budget"] == 3000);
}

TEST_CASE("Budgets that are none are refused by name, and change nothing", "[server][admin]") {
  TestServer server;
  GiveTiers(server.engine());
  Client client(server.port());
  for (const char* body : {R"({})", R"({"memory_budget": null})", R"({"memory_budget": 0})",
                           R"({"memory_budget": -5})", R"({"memory_budget": 2000.5})",
                           R"({"memory_budget": "much"})", R"({"memory_budget": "0"})",
                           R"({"memory_budget": true})", R"({"memory_budget": [2000]})"}) {
    INFO(body);
    const Response refused = client.Ask("POST", kPath, body);
    CHECK(refused.status == 400);
    CHECK(refused.Json()["error"]["param"] == "memory_budget");
    CHECK(refused.Json()["error"]["type"] == "invalid_request_error");
  }
  CHECK(client.Ask("POST", kPath, "[]").status == 400);
  const Response small = client.Ask("POST", kPath, R"({"memory_budget": 999})");
  CHECK(small.status == 400);
  CHECK(small.Json()["error"]["param"] == "memory_budget");
  CHECK(small.Json()["error"]["message"] == "give it at least 1000");
  CHECK(client.Ask("GET", kPath).Json()["memory_budget"] == 5000);
  CHECK(client.Ask("PUT", kPath, "{}").status == 405);
}

TEST_CASE("A model without tiers has no budget to change", "[server][admin]") {
  TestServer server;
  Client client(server.port());
  const Response shown = client.Ask("GET", kPath);
  REQUIRE(shown.status == 200);
  CHECK(shown.Json()["memory_budget"].is_null());
  CHECK(shown.Json()["tiers"].empty());
  const Response refused = client.Ask("POST", kPath, R"({"memory_budget": "2GiB"})");
  CHECK(refused.status == 501);
  CHECK(refused.Json()["error"]["param"] == "memory_budget");
}

TEST_CASE("With API keys the budget needs one", "[server][admin]") {
  TestServer::Setup setup = TestServer::DefaultSetup();
  setup.keys = "key-one-two-three\n";
  TestServer server(setup);
  GiveTiers(server.engine());
  Client client(server.port());
  CHECK(client.Ask("GET", kPath).status == 401);
  CHECK(client.Ask("POST", kPath, R"({"memory_budget": 3000})").status == 401);
  CHECK(client.Ask("POST", kPath, R"({"memory_budget": 3000})", "Authorization: Bearer wrong\r\n")
            .status == 401);
  const Response set = client.Ask("POST", kPath, R"({"memory_budget": 3000})",
                                  "Authorization: Bearer key-one-two-three\r\n");
  CHECK(set.status == 200);
  CHECK(set.Json()["memory_budget"] == 3000);
}

TEST_CASE("Without keys only this machine's programs reach the budget", "[server][admin]") {
  TestServer server;
  const auto admits = [&](const char* peer, HttpHeaders headers = {}) {
    HttpRequest head;
    head.method = "POST";
    head.path = kPath;
    head.peer = peer;
    head.headers = std::move(headers);
    HttpResponse refusal;
    if (server.service().Admit(head, &refusal)) return true;
    CHECK(refusal.status == 403);
    return false;
  };
  CHECK(admits("127.0.0.1"));
  CHECK(admits("127.8.0.9"));
  CHECK(admits("::1"));
  CHECK(admits("::ffff:127.0.0.1"));
  CHECK_FALSE(admits("192.168.0.7"));
  CHECK_FALSE(admits("::ffff:10.0.0.1"));
  CHECK_FALSE(admits("2001:db8::1"));
  CHECK_FALSE(admits(""));
  // A proxy's clients, and pages in a browser.
  CHECK_FALSE(admits("127.0.0.1", {{"x-forwarded-for", "10.0.0.1"}}));
  CHECK_FALSE(admits("127.0.0.1", {{"forwarded", "for=10.0.0.1"}}));
  CHECK_FALSE(admits("127.0.0.1", {{"origin", "https://elsewhere.example"}}));
}

TEST_CASE("A change that takes the engine long holds up no other request", "[server][admin]") {
  TestServer server;
  GiveTiers(server.engine());
  std::mutex mutex;
  std::condition_variable changed;
  std::function<void(Result<>)> finish;
  server.engine().on_budget = [&](uint64_t, std::function<void(Result<>)> done) {
    std::lock_guard lock(mutex);
    finish = std::move(done);
    changed.notify_all();
  };
  Client slow(server.port());
  slow.Request("POST", kPath, R"({"memory_budget": 3000})");
  {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return finish != nullptr; }));
  }
  for (int i = 0; i < 4; ++i) CHECK(Client(server.port()).Ask("GET", kPath).status == 200);
  finish({});
  CHECK(slow.Read().status == 200);
  // A client that does not wait for the answer leaves nothing behind.
  finish = nullptr;
  {
    Client gone(server.port());
    gone.Request("POST", kPath, R"({"memory_budget": 3000})");
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return finish != nullptr; }));
    lock.unlock();
    gone.CloseWithReset();
  }
  finish(InvalidArgument("too late"));
  CHECK(Client(server.port()).Ask("GET", kPath).status == 200);
}

}  // namespace
}  // namespace sluice::test
