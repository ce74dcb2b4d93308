#include "server/api/key_gate.h"

#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/unit/server/fakes.h"

using namespace sluice;
using namespace sluice::test;

namespace {

using Gate = KeyGate;

Gate::TimePoint At(double seconds) {
  // Tokens are charged at the time of day, so it is the present that these are after.
  static const auto start = std::chrono::steady_clock::now();
  return start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                     std::chrono::duration<double>(seconds));
}

KeyLimits Limits(int concurrent, int requests, int tokens) {
  KeyLimits limits;
  limits.max_concurrent = concurrent;
  limits.requests_per_minute = requests;
  limits.tokens_per_minute = tokens;
  return limits;
}

}  // namespace

TEST_CASE("A key without limits is never refused", "[api][keys]") {
  Gate gate({});
  Gate::Refusal refusal;
  std::vector<std::shared_ptr<Gate::Pass>> passes;
  for (int i = 0; i < 1000; ++i) {
    passes.push_back(gate.Enter(0, At(0), &refusal));
    REQUIRE(passes.back() != nullptr);
    passes.back()->Spend(1000000);
  }
  CHECK_FALSE(gate.Check(0, At(0)).has_value());
}

TEST_CASE("Requests at the same time are counted until they end, each key for itself",
          "[api][keys]") {
  Gate gate({Limits(2, 0, 0), Limits(1, 0, 0)});
  Gate::Refusal refusal;
  auto first = gate.Enter(0, At(0), &refusal);
  auto second = gate.Enter(0, At(0), &refusal);
  CHECK(gate.Enter(0, At(0), &refusal) == nullptr);
  CHECK(std::string(refusal.reason) == "key_concurrency");
  CHECK(gate.Check(0, At(5)).has_value());
  CHECK(gate.Enter(1, At(0), &refusal) != nullptr);
  first.reset();
  CHECK_FALSE(gate.Check(0, At(0)).has_value());
  CHECK(gate.Enter(0, At(0), &refusal) != nullptr);
}

TEST_CASE("Requests per minute fill up evenly, and a refusal takes none", "[api][keys]") {
  Gate gate({Limits(0, 30, 0)});
  Gate::Refusal refusal;
  for (int i = 0; i < 30; ++i) REQUIRE(gate.Enter(0, At(100), &refusal) != nullptr);
  for (int i = 0; i < 5; ++i) CHECK(gate.Enter(0, At(100), &refusal) == nullptr);
  CHECK(std::string(refusal.reason) == "key_requests");
  CHECK(refusal.retry_after_seconds == Approx(2));
  CHECK(gate.Enter(0, At(101.9), &refusal) == nullptr);
  CHECK(gate.Enter(0, At(102.1), &refusal) != nullptr);
  CHECK(gate.Enter(0, At(102.1), &refusal) == nullptr);
  // Never more than a minute's worth is saved.
  int entered = 0;
  while (gate.Enter(0, At(1000), &refusal) != nullptr) ++entered;
  CHECK(entered == 30);
}

TEST_CASE("Tokens are charged when they are known and waited for when overdrawn", "[api][keys]") {
  Gate gate({Limits(0, 0, 600)});
  Gate::Refusal refusal;
  const auto pass = gate.Enter(0, At(0), &refusal);
  REQUIRE(pass != nullptr);
  pass->Spend(500);
  CHECK_FALSE(gate.Check(0, At(0)).has_value());
  pass->Spend(400);  // 300 below nothing: half a minute
  const auto refused = gate.Check(0, At(0));
  REQUIRE(refused.has_value());
  CHECK(std::string(refused->reason) == "key_tokens");
  CHECK(refused->retry_after_seconds > 28);
  CHECK(refused->retry_after_seconds < 31);
  CHECK_FALSE(gate.Check(0, At(60)).has_value());
}

TEST_CASE("A key over its limit is answered 429 before its body is read", "[api][keys]") {
  TestServer::Setup setup = TestServer::DefaultSetup();
  setup.keys = "first-key requests_per_minute=1\nsecond-key max_concurrent=1\n";
  TestServer server(setup);
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    if (engine.request(id).account == 0) engine.End(id, FinishReason::kLength);
  };
  Client client(server.port());
  const auto ask = [&](const char* key) {
    return client.Ask("POST", "/v1/completions", R"({"prompt": "a"})",
                      std::string("Authorization: Bearer ") + key + "\r\n");
  };
  CHECK(ask("first-key").status == 200);
  const Response refused = ask("first-key");
  CHECK(refused.status == 429);
  CHECK(refused.Json()["error"]["type"] == "rate_limit_error");
  CHECK(refused.Json()["error"]["code"] == "rate_limit_exceeded");
  CHECK(std::stoi(refused.headers.at("retry-after")) >= 59);
  CHECK(server.engine().submissions() == 1);
  // Neither does a body that nobody asked for arrive.
  Client large(server.port());
  large.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first-key\r\n"
      "Content-Type: application/json\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n");
  CHECK(large.Read().status == 429);

  // The second key is another account, with a limit of its own.
  Client waiting(server.port());
  waiting.Request("POST", "/v1/completions", R"({"prompt": "a", "stream": true})",
                  "Authorization: Bearer second-key\r\n");
  REQUIRE(server.engine().WaitForSubmissions(2));
  CHECK(server.engine().request(2).account == 1);
  CHECK(ask("second-key").status == 429);
  waiting.CloseWithReset();
  REQUIRE(server.engine().WaitForCancel(2));
  server.engine().End(2, FinishReason::kCancelled);
  // The pass goes with the reply, a moment after the cancel.
  server.engine().on_submit = [](FakeEngine& engine, RequestId id) {
    engine.End(id, FinishReason::kLength);
  };
  int status = 429;
  for (int i = 0; i < 1000 && status == 429; ++i) status = ask("second-key").status;
  CHECK(status == 200);
  Client metrics(server.port());
  const std::string text = metrics.Ask("GET", "/metrics").body;
  CHECK(text.find("sluice_requests_refused_total{reason=\"key_requests\"} 2") != std::string::npos);
}
