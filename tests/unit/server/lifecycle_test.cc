// Clients that leave or do not read, servers that load, drain and stop.
#include <future>
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/unit/server/fakes.h"

using namespace sluice;
using namespace sluice::test;
using nlohmann::json;

namespace {
constexpr const char* kStream = R"({"prompt": "a", "stream": true, "max_tokens": 4000})";
constexpr const char* kWhole = R"({"prompt": "a", "max_tokens": 4000})";
}  // namespace

TEST_CASE("A client that leaves before the first token frees its sequence", "[lifecycle]") {
  TestServer server;
  for (const char* body : {kStream, kWhole}) {
    const size_t before = server.engine().submissions();
    Client client(server.port());
    client.Request("POST", "/v1/completions", body);
    REQUIRE(server.engine().WaitForSubmissions(before + 1));
    client.Close();
    CHECK(server.engine().WaitForCancel(before + 1));
  }
}

TEST_CASE("A client that resets in the middle of a stream frees its sequence", "[lifecycle]") {
  TestServer server;
  Client client(server.port());
  client.Request("POST", "/v1/completions", kStream);
  REQUIRE(server.engine().WaitForSubmissions(1));
  server.engine().Say(1, "hello");
  CHECK(client.ReadUntil("h") != "");
  client.CloseWithReset();
  CHECK(server.engine().WaitForCancel(1));
}

TEST_CASE("A client that leaves frees all sequences of its request", "[lifecycle]") {
  TestServer server;
  Client client(server.port());
  client.Request("POST", "/v1/completions", R"({"prompt": ["a", "b"], "n": 2})");
  REQUIRE(server.engine().WaitForSubmissions(4));
  client.Close();
  for (const RequestId id : {1, 2, 3, 4}) CHECK(server.engine().WaitForCancel(id));
}

TEST_CASE("A reader that falls too far behind is cancelled, others go on", "[lifecycle]") {
  auto setup = TestServer::DefaultSetup();
  setup.service.stream_buffer_bytes = 64 << 10;
  TestServer server(setup);
  Client slow(server.port(), 4096);
  slow.Request("POST", "/v1/completions", kStream);
  REQUIRE(server.engine().WaitForSubmissions(1));
  // The engine thread is never blocked: it talks until it is told to stop.
  std::atomic<bool> stop = false;
  std::thread engine([&] {
    while (!stop) server.engine().Token(1, 'x');
  });
  CHECK(server.engine().WaitForCancel(1));
  stop = true;
  engine.join();
  Client other(server.port());
  CHECK(other.Ask("GET", "/health").status == 200);
}

TEST_CASE("A client that takes nothing for the write timeout is disconnected", "[lifecycle]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.write_timeout = std::chrono::milliseconds(50);
  setup.service.stream_buffer_bytes = size_t{1} << 30;  // only the time counts here
  TestServer server(setup);
  Client slow(server.port(), 4096);
  slow.Request("POST", "/v1/completions", kStream);
  REQUIRE(server.engine().WaitForSubmissions(1));
  // More than the socket buffers of both sides hold, in one go.
  const std::string text(1 << 20, 'x');
  std::thread engine([&] { server.engine().Say(1, text); });
  CHECK(server.engine().WaitForCancel(1));
  engine.join();
}

TEST_CASE("A client that reads slowly but steadily gets a long answer whole", "[lifecycle]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.write_timeout = std::chrono::milliseconds(500);
  setup.service.stream_buffer_bytes = size_t{1} << 30;
  TestServer server(setup);
  Client slow(server.port(), 4096);
  slow.Request("POST", "/v1/completions", R"({"prompt": "a", "max_tokens": 4000, "logprobs": 5})");
  REQUIRE(server.engine().WaitForSubmissions(1));
  // Megabytes: several times what the socket buffers hold.
  constexpr int kTokens = 4000;
  for (int i = 0; i < kTokens; ++i) {
    server.engine().Token(1, 'x', -1, std::vector<TokenLogprob>(200, {'y', -2}));
  }
  server.engine().End(1, FinishReason::kLength);
  const Response response = slow.Read();
  CHECK(response.status == 200);
  CHECK(response.Json()["choices"][0]["text"].get<std::string>().size() == kTokens);
}

TEST_CASE("A client that has sent too much ahead and resets frees its sequence", "[lifecycle]") {
  TestServer server;
  Client client(server.port());
  client.Request("POST", "/v1/completions", kWhole);
  REQUIRE(server.engine().WaitForSubmissions(1));
  client.Send(std::string(100 << 10, 'x'));
  client.CloseWithReset();
  CHECK(server.engine().WaitForCancel(1));
}

TEST_CASE("A client that closes its sending side counts as gone", "[lifecycle]") {
  for (const char* body : {kStream, kWhole}) {
    TestServer server;
    Client client(server.port());
    client.Request("POST", "/v1/completions", body);
    REQUIRE(server.engine().WaitForSubmissions(1));
    client.CloseSending();
    CHECK(server.engine().WaitForCancel(1));
  }
}

TEST_CASE("A pipelined request waits for the stream before it", "[lifecycle]") {
  TestServer server;
  Client client(server.port());
  client.Request("POST", "/v1/completions", kStream);
  client.Request("GET", "/health");
  REQUIRE(server.engine().WaitForSubmissions(1));
  server.engine().Say(1, "x");
  server.engine().End(1, FinishReason::kLength);
  CHECK(client.Read().Events().back() == "[DONE]");
  CHECK(client.Read().Json()["status"] == "ok");
}

TEST_CASE("Silence on a stream is filled with comments", "[lifecycle]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.ping_interval = std::chrono::milliseconds(5);
  TestServer server(setup);
  Client client(server.port());
  client.Request("POST", "/v1/completions", kStream);
  REQUIRE(server.engine().WaitForSubmissions(1));
  CHECK(client.ReadUntil(": ping\n\n") != "");
  server.engine().End(1, FinishReason::kLength);
  CHECK(client.Read().Events().back() == "[DONE]");
}

TEST_CASE("While the model loads the server is alive but not ready", "[lifecycle]") {
  auto setup = TestServer::DefaultSetup();
  setup.with_model = false;
  TestServer server(setup);
  Client client(server.port());
  CHECK(client.Ask("GET", "/health").status == 200);
  CHECK(client.Ask("GET", "/ready").status == 503);
  CHECK(client.Ask("GET", "/metrics").body.find("sluice_ready 0") != std::string::npos);
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize"}) {
    const Response response = client.Ask("POST", path, "{}");
    CHECK(response.status == 503);
    CHECK(response.Json()["error"]["type"] == "unavailable_error");
  }
  CHECK(client.Ask("GET", "/v1/models").status == 503);
  server.AddModel();
  CHECK(client.Ask("GET", "/ready").status == 200);
}

TEST_CASE("Draining refuses new work, finishes what runs, and then is idle", "[lifecycle]") {
  TestServer server;
  Client running(server.port());
  running.Request("POST", "/v1/completions", kStream);
  REQUIRE(server.engine().WaitForSubmissions(1));
  server.engine().Say(1, "before");
  CHECK(running.ReadUntil("b") != "");

  std::promise<void> idle;
  server.service().BeginDrain();
  server.http().BeginDrain([&] { idle.set_value(); });
  {
    Client late(server.port());
    const Response refused = late.Ask("POST", "/v1/completions", kWhole);
    CHECK(refused.status == 503);
    CHECK(refused.Json()["error"]["type"] == "unavailable_error");
    CHECK(refused.headers.at("connection") == "close");
    Client probe(server.port());
    CHECK(probe.Ask("GET", "/ready").status == 503);
    Client alive(server.port());
    CHECK(alive.Ask("GET", "/health").status == 200);
  }
  server.engine().Say(1, "after");
  server.engine().End(1, FinishReason::kLength);
  const Response response = running.Read();
  CHECK(response.Events().back() == "[DONE]");
  CHECK(running.AtEnd());
  CHECK(idle.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready);
}

TEST_CASE("A server without requests is idle as soon as it drains", "[lifecycle]") {
  TestServer server;
  std::promise<void> idle;
  server.service().BeginDrain();
  server.http().BeginDrain([&] { idle.set_value(); });
  CHECK(idle.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready);
}

TEST_CASE("Aborting ends streams with an error event and whole answers with 503", "[lifecycle]") {
  TestServer server;
  Client stream(server.port()), whole(server.port());
  stream.Request("POST", "/v1/completions", kStream);
  REQUIRE(server.engine().WaitForSubmissions(1));
  whole.Request("POST", "/v1/completions", kWhole);
  REQUIRE(server.engine().WaitForSubmissions(2));
  server.engine().Say(1, "x");
  CHECK(stream.ReadUntil("x") != "");
  server.http().AbortReplies();
  const auto events = stream.Read().Events();
  REQUIRE(events.size() >= 2);
  CHECK(json::parse(events[events.size() - 2])["error"]["type"] == "unavailable_error");
  CHECK(whole.Read().status == 503);
  CHECK(server.engine().WaitForCancel(1));
  CHECK(server.engine().WaitForCancel(2));
}

TEST_CASE("A server can be stopped and destroyed with streams open", "[lifecycle]") {
  Client* client = nullptr;
  {
    TestServer server;
    client = new Client(server.port());
    client->Request("POST", "/v1/completions", kStream);
    REQUIRE(server.engine().WaitForSubmissions(1));
    server.engine().Say(1, "x");
  }
  delete client;
}

TEST_CASE("Many clients at once, half of which leave, all end", "[lifecycle]") {
  TestServer server;
  constexpr size_t kClients = 64;
  std::vector<std::unique_ptr<Client>> clients;
  for (size_t i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<Client>(server.port()));
    clients.back()->Request("POST", "/v1/completions",
                            json({{"prompt", {static_cast<int>(i)}}, {"stream", true}}).dump());
  }
  REQUIRE(server.engine().WaitForSubmissions(kClients));
  std::map<int32_t, RequestId> by_client;
  for (RequestId id = 1; id <= kClients; ++id) {
    by_client[server.engine().request(id).prompt.front()] = id;
  }
  for (size_t i = 0; i < kClients; i += 2) clients[i]->Close();
  for (size_t i = 0; i < kClients; ++i) {
    const RequestId id = by_client.at(static_cast<int32_t>(i));
    if (i % 2 == 0) {
      CHECK(server.engine().WaitForCancel(id));
    } else {
      server.engine().Say(id, "done " + std::to_string(i));
      server.engine().End(id, FinishReason::kLength);
      const Response response = clients[i]->Read();
      CHECK(response.status == 200);
      CHECK(response.Events().back() == "[DONE]");
    }
  }
}
