// The protocol, over a real socket: what is asked is what is answered, and what is malformed,
// too large or not allowed is refused in the error shape.
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/unit/server/fakes.h"

using namespace sluice;
using namespace sluice::test;

namespace {

void CheckError(const Response& response, int status, const std::string& type) {
  CHECK(response.status == status);
  REQUIRE(!response.body.empty());
  const auto error = response.Json()["error"];
  CHECK(error["type"] == type);
  CHECK(error["message"].is_string());
  CHECK(error.contains("param"));
  CHECK(error.contains("code"));
  CHECK(response.headers.at("content-type") == "application/json");
}

}  // namespace

TEST_CASE("Several requests are served on one connection", "[http]") {
  TestServer server;
  Client client(server.port());
  for (int i = 0; i < 3; ++i) {
    const Response response = client.Ask("GET", "/health");
    CHECK(response.status == 200);
    CHECK(response.Json()["status"] == "ok");
    CHECK(response.headers.contains("date"));
    CHECK(!response.headers.contains("connection"));
  }
}

TEST_CASE("Pipelined requests are answered in order", "[http]") {
  TestServer server;
  Client client(server.port());
  client.Send(
      "GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"
      "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n");
  CHECK(client.Read().status == 200);
  CHECK(client.Read().status == 404);
  CHECK(client.Read().Json()["data"][0]["id"] == "tiny");
}

TEST_CASE("A request may arrive byte by byte", "[http]") {
  TestServer server;
  Client client(server.port());
  for (const char c : std::string("POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\n"
                                  "{\"content\": \"abc\"}")) {
    client.Send(std::string_view(&c, 1));
  }
  CHECK(client.Read().Json()["tokens"] == nlohmann::json({'a', 'b', 'c'}));
}

TEST_CASE("A chunked body is read", "[http]") {
  TestServer server;
  Client client(server.port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "9\r\n{\"content\r\n9\r\n\": \"abc\"}\r\n0\r\n\r\n");
  CHECK(client.Read().Json()["count"] == 3);
}

TEST_CASE("A client that expects 100 Continue gets it, and then its answer", "[http]") {
  TestServer server;
  Client client(server.port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\nExpect: 100-continue\r\n\r\n");
  CHECK(client.Read().status == 100);
  client.Send("{\"content\": \"abc\"}");
  CHECK(client.Read().Json()["count"] == 3);
}

TEST_CASE("A refused request with Expect gets its refusal without sending the body", "[http]") {
  TestServer server;
  Client client(server.port());
  client.Send(
      "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\nExpect: 100-continue\r\n\r\n");
  const Response response = client.Read();
  CheckError(response, 404, "invalid_request_error");
  CHECK(response.headers.at("connection") == "close");
}

TEST_CASE("HEAD answers like GET without a body", "[http]") {
  TestServer server;
  Client client(server.port());
  const Response head = client.Ask("HEAD", "/v1/models");
  CHECK(head.status == 200);
  const Response get = client.Ask("GET", "/v1/models");
  CHECK(head.headers.at("content-length") == std::to_string(get.body.size()));
}

TEST_CASE("Unknown paths answer 404 and wrong methods 405 with Allow", "[http]") {
  TestServer server;
  Client client(server.port());
  CheckError(client.Ask("GET", "/v2"), 404, "invalid_request_error");
  CheckError(client.Ask("GET", "/v1/models/other"), 404, "invalid_request_error");
  const Response wrong = client.Ask("GET", "/v1/completions");
  CheckError(wrong, 405, "invalid_request_error");
  CHECK(wrong.headers.at("allow") == "POST, OPTIONS");
  CheckError(client.Ask("DELETE", "/health"), 405, "invalid_request_error");
}

TEST_CASE("A path is percent-decoded and may come in absolute form", "[http]") {
  TestServer server;
  Client client(server.port());
  CHECK(client.Ask("GET", "/v1/models/t%69ny").status == 200);
  CHECK(client.Ask("GET", "http://example.com/health?verbose=1").status == 200);
  CheckError(client.Ask("GET", "/%zz"), 400, "invalid_request_error");
}

TEST_CASE("A body that is not JSON by its type answers 415", "[http]") {
  TestServer server;
  Client client(server.port());
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: text/xml\r\nContent-Length: "
      "2\r\n\r\n{}");
  CheckError(client.Read(), 415, "invalid_request_error");
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: Application/JSON; charset=utf-8\r\n"
      "Content-Length: 15\r\n\r\n{\"content\":\"a\"}");
  CHECK(client.Read().status == 200);
}

TEST_CASE("Malformed HTTP is answered 400 and the connection closed", "[http]") {
  for (const char* text :
       {"GARBAGE\r\n\r\n", "GET /health\r\n\r\n", "GET /health HTTP/9.9\r\n\r\n",
        "GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    CAPTURE(text);
    TestServer server;
    Client client(server.port());
    client.Send(text);
    const Response response = client.Read();
    CheckError(response, 400, "invalid_request_error");
    CHECK(client.AtEnd());
  }
}

TEST_CASE("Headers that are too long answer 431", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.header_limit_bytes = 1024;
  TestServer server(setup);
  Client client(server.port());
  client.Send("GET /health HTTP/1.1\r\nX-Long: " + std::string(4000, 'a') + "\r\n\r\n");
  CheckError(client.Read(), 431, "invalid_request_error");
}

TEST_CASE("Chunk extensions and trailers without end are cut off", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.header_limit_bytes = 1024;
  TestServer server(setup);
  // More than may be read ahead, less than what is taken after a refusal so that it can be read.
  const std::string flood(1 << 20, 'a');
  const std::string head =
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  SECTION("an extension of a chunk") {
    Client client(server.port());
    client.Send(head + "2;" + flood);
    CheckError(client.Read(), 431, "invalid_request_error");
    CHECK(client.AtEnd());
  }
  SECTION("one long trailer") {
    Client client(server.port());
    client.Send(head + "2\r\n{}\r\n0\r\nX: " + flood);
    CheckError(client.Read(), 431, "invalid_request_error");
    CHECK(client.AtEnd());
  }
  SECTION("many trailers") {
    Client client(server.port());
    std::string trailers;
    for (int i = 0; i < 40000; ++i) trailers += "X-" + std::to_string(i) + ": aaaaaaaaaaaa\r\n";
    client.Send(head + "2\r\n{}\r\n0\r\n" + trailers);
    CheckError(client.Read(), 431, "invalid_request_error");
    CHECK(client.AtEnd());
  }
  SECTION("short ones are read over") {
    Client client(server.port());
    client.Send(head + "f;name=value\r\n{\"content\":\"a\"}\r\n0\r\nX-Sum: 1\r\n\r\n");
    CHECK(client.Read().status == 200);
    CHECK(client.Ask("GET", "/health").status == 200);
  }
}

TEST_CASE("A transfer coding that is not understood is refused, and nothing after it is read",
          "[http]") {
  for (const char* coding : {"gzip", "identity", "gzip, chunked", "chunked, gzip"}) {
    CAPTURE(coding);
    TestServer server;
    Client client(server.port());
    client.Send("POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + std::string(coding) +
                "\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    const Response response = client.Read();
    CHECK(response.status >= 400);
    CHECK(response.Json()["error"]["message"].is_string());
    CHECK(client.AtEnd());
  }
}

TEST_CASE("Lengths that contradict each other are refused", "[http]") {
  for (const char* headers :
       {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999999\r\n", "Content-Length : 5\r\n"}) {
    CAPTURE(headers);
    TestServer server;
    Client client(server.port());
    client.Send("POST /tokenize HTTP/1.1\r\nHost: a\r\n" + std::string(headers) +
                "\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    CheckError(client.Read(), 400, "invalid_request_error");
    CHECK(client.AtEnd());
  }
}

TEST_CASE("A body that is too long answers 413, announced or chunked", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.service.body_limit_bytes = 100 << 10;
  TestServer server(setup);
  const std::string body(200 << 10, ' ');
  SECTION("by its Content-Length") {
    Client client(server.port());
    client.Request("POST", "/tokenize", body);
    CheckError(client.Read(), 413, "invalid_request_error");
  }
  SECTION("by what arrives") {
    Client client(server.port());
    client.Send(
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n32000\r\n" + body +
        "\r\n0\r\n\r\n");
    CheckError(client.Read(), 413, "invalid_request_error");
  }
  SECTION("and one just inside is served, away from the I/O threads") {
    Client client(server.port());
    const std::string text(90 << 10, 'a');
    CHECK(client.Ask("POST", "/tokenize", "{\"content\": \"" + text + "\"}").Json()["count"] ==
          text.size());
  }
}

TEST_CASE("A request that does not arrive in time answers 408", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.read_timeout = std::chrono::milliseconds(20);
  TestServer server(setup);
  Client client(server.port());
  client.Send("GET /health HTTP/1.1\r\nHost");
  CheckError(client.Read(), 408, "invalid_request_error");
}

TEST_CASE("An idle connection is closed", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.idle_timeout = std::chrono::milliseconds(20);
  TestServer server(setup);
  Client client(server.port());
  CHECK(client.AtEnd());
}

TEST_CASE("One connection too many is answered 503", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.max_connections = 1;
  TestServer server(setup);
  Client first(server.port());
  first.Request("POST", "/v1/completions", R"({"prompt": "a"})");
  REQUIRE(server.engine().WaitForSubmissions(1));
  Client second(server.port());
  CheckError(second.Read(), 503, "unavailable_error");
  server.engine().End(1, FinishReason::kLength);
  CHECK(first.Read().status == 200);
}

TEST_CASE("A new connection takes the place of the one that has been idle longest", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.max_connections = 3;
  // A connection is idle a moment after its client has the response: the server has yet to see that
  // it is sent. Whoever comes in that moment is refused, or takes another's place.
  bool too_soon = true;
  for (int attempt = 0; attempt < 50 && too_soon; ++attempt) {
    TestServer server(setup);
    Client busy(server.port());
    busy.Request("POST", "/v1/completions", R"({"prompt": "a"})");
    REQUIRE(server.engine().WaitForSubmissions(1));
    Client idlest(server.port());
    REQUIRE(idlest.Ask("GET", "/health").status == 200);
    Client idle(server.port());
    REQUIRE(idle.Ask("GET", "/health").status == 200);
    Client next(server.port());
    too_soon = next.Ask("GET", "/health").status != 200 || idle.Ask("GET", "/health").status != 200;
    if (!too_soon) CHECK(idlest.AtEnd());
    server.engine().End(1, FinishReason::kLength);
    CHECK(busy.Read().status == 200);
  }
  CHECK_FALSE(too_soon);
}

TEST_CASE("Clients that never finish their requests do not keep others out", "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.max_connections = 2;
  TestServer server(setup);
  std::vector<std::unique_ptr<Client>> slow;
  for (int i = 0; i < 2; ++i) {
    slow.push_back(std::make_unique<Client>(server.port()));
    REQUIRE(slow.back()->Ask("GET", "/health").status == 200);
    slow.back()->Send("GET /health HTTP/1.1\r\nHos");
  }
  Client client(server.port());
  CHECK(client.Ask("GET", "/health").status == 200);
}

TEST_CASE("Many more clients than connections come one after the other and all are served",
          "[http]") {
  auto setup = TestServer::DefaultSetup();
  setup.http.max_connections = 4;
  TestServer server(setup);
  std::vector<std::unique_ptr<Client>> kept;  // all of them keep their connections
  for (int i = 0; i < 40; ++i) {
    kept.push_back(std::make_unique<Client>(server.port()));
    CHECK(kept.back()->Ask("GET", "/health").status == 200);
  }
}

TEST_CASE("HTTP/1.0 closes unless it asks otherwise", "[http]") {
  TestServer server;
  {
    Client client(server.port());
    client.Send("GET /health HTTP/1.0\r\n\r\n");
    const Response response = client.Read();
    CHECK(response.status == 200);
    CHECK(response.headers.at("connection") == "close");
    CHECK(client.AtEnd());
  }
  Client client(server.port());
  client.Send("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  CHECK(client.Read().headers.at("connection") == "keep-alive");
  client.Send("GET /health HTTP/1.0\r\n\r\n");
  CHECK(client.Read().status == 200);
}

TEST_CASE("A sane request id comes back, others are replaced", "[http]") {
  TestServer server;
  Client client(server.port());
  CHECK(client.Ask("GET", "/health", {}, "X-Request-Id: abc-123_4.5\r\n").headers["x-request-id"] ==
        "abc-123_4.5");
  const std::string made =
      client.Ask("GET", "/health", {}, "X-Request-Id: a b\"c\r\n").headers["x-request-id"];
  CHECK(made.starts_with("req-"));
  const std::string next = client.Ask("GET", "/health").headers["x-request-id"];
  CHECK(next.starts_with("req-"));
  CHECK(next != made);
}

TEST_CASE("Keys are asked for everywhere but on probes and metrics", "[http][keys]") {
  auto setup = TestServer::DefaultSetup();
  setup.keys = "sk-0123456789\n";
  TestServer server(setup);
  Client client(server.port());
  CHECK(client.Ask("GET", "/health").status == 200);
  CHECK(client.Ask("GET", "/ready").status == 200);
  CHECK(client.Ask("GET", "/metrics").status == 200);
  const Response refused = client.Ask("GET", "/v1/models");
  CheckError(refused, 401, "authentication_error");
  CHECK(refused.headers.at("www-authenticate") == "Bearer");
  CheckError(client.Ask("POST", "/v1/completions", "{}"), 401, "authentication_error");
  CheckError(client.Ask("GET", "/v1/models", {}, "Authorization: Bearer sk-012345678X\r\n"), 401,
             "authentication_error");
  CHECK(client.Ask("GET", "/v1/models", {}, "Authorization: Bearer sk-0123456789\r\n").status ==
        200);
}

TEST_CASE("Metrics can ask for a key too", "[http][keys]") {
  auto setup = TestServer::DefaultSetup();
  setup.keys = "sk-0123456789\n";
  setup.service.metrics_require_key = true;
  TestServer server(setup);
  Client client(server.port());
  CHECK(client.Ask("GET", "/metrics").status == 401);
}

TEST_CASE("Browsers of the allowed origins may call", "[http][cors]") {
  auto setup = TestServer::DefaultSetup();
  setup.service.cors_origins = {"https://chat.example"};
  setup.keys = "sk-0123456789\n";
  TestServer server(setup);
  Client client(server.port());
  const Response preflight =
      client.Ask("OPTIONS", "/v1/chat/completions", {},
                 "Origin: https://chat.example\r\nAccess-Control-Request-Method: POST\r\n");
  CHECK(preflight.status == 204);
  CHECK(preflight.headers.at("access-control-allow-origin") == "https://chat.example");
  CHECK(preflight.headers.at("access-control-allow-methods").find("POST") != std::string::npos);
  CHECK(preflight.headers.at("access-control-allow-headers").find("Authorization") !=
        std::string::npos);
  const Response allowed = client.Ask("GET", "/health", {}, "Origin: https://chat.example\r\n");
  CHECK(allowed.headers.at("access-control-allow-origin") == "https://chat.example");
  CHECK(allowed.headers.at("vary") == "Origin");
  const Response other = client.Ask("GET", "/health", {}, "Origin: https://evil.example\r\n");
  CHECK(!other.headers.contains("access-control-allow-origin"));
}

TEST_CASE("A page of an allowed origin can read why its request was not taken", "[http][cors]") {
  auto setup = TestServer::DefaultSetup();
  setup.service.cors_origins = {"*"};
  setup.service.body_limit_bytes = setup.http.body_limit_bytes = 1024;
  setup.http.header_limit_bytes = 1024;
  TestServer server(setup);
  const std::string origin = "Origin: https://chat.example\r\n";
  const auto check = [](const Response& response, int status) {
    CheckError(response, status, "invalid_request_error");
    CHECK(response.headers.at("access-control-allow-origin") == "https://chat.example");
    CHECK(!response.headers.at("x-request-id").empty());
  };
  {
    Client client(server.port());
    check(client.Ask("POST", "/tokenize", std::string(100 << 10, ' '), origin), 413);
  }
  {
    Client client(server.port());
    check(client.Ask("GET", "/%zz", {}, origin), 400);
  }
  {
    Client client(server.port());
    client.Send("POST /tokenize HTTP/1.1\r\nHost: a\r\n" + origin +
                "Transfer-Encoding: chunked\r\n\r\nzz\r\n");
    check(client.Read(), 400);
  }
  Client client(server.port());
  check(client.Ask("PATCH", "/health", {}, origin), 405);
  check(client.Ask("GET", "/nothing", {}, origin), 404);
}

TEST_CASE("HEAD and OPTIONS of every path answer without a body or say what is taken", "[http]") {
  TestServer server;
  Client client(server.port());
  for (const char* path : {"/health", "/ready", "/metrics", "/props", "/v1/models"}) {
    CAPTURE(path);
    client.Request("HEAD", path);
    const Response head = client.Read(true);
    CHECK(head.status == 200);
    CHECK(std::stoul(head.headers.at("content-length")) > 0);
    const Response options = client.Ask("OPTIONS", path);
    CHECK(options.status == 204);
    CHECK(options.headers.at("allow").find("GET, HEAD") != std::string::npos);
    CHECK(!options.headers.contains("content-length"));
  }
  client.Request("HEAD", "/v1/completions");
  CHECK(client.Read(true).status == 405);
  client.Request("HEAD", "/nothing");
  CHECK(client.Read(true).status == 404);
  CHECK(client.Ask("OPTIONS", "*").status == 204);
  CHECK(client.Ask("OPTIONS", "/nothing").status == 404);
  CHECK(client.Ask("GET", "/health").status == 200);
}

TEST_CASE("Metrics are exposed with every name exactly once", "[http][metrics]") {
  TestServer server;
  Client client(server.port());
  client.Ask("GET", "/nothing");
  const Response response = client.Ask("GET", "/metrics");
  CHECK(response.headers.at("content-type").starts_with("text/plain; version=0.0.4"));
  for (const char* name :
       {"sluice_ready 1", "sluice_build_info{", "sluice_kv_blocks 8", "sluice_steps_total 3",
        "sluice_http_requests_total{code=\"404\",route=\"other\"} 1",
        "sluice_requests_total{reason=\"stop\"} 0", "sluice_time_to_first_token_seconds_bucket{",
        "process_resident_memory_bytes ", "vllm:num_requests_running{model_name=\"tiny\"} 0",
        "vllm:iteration_tokens_total_count{model_name=\"tiny\"} 0",
        "llamacpp:requests_processing 0"}) {
    CAPTURE(name);
    CHECK(response.body.find(name) != std::string::npos);
  }
  std::map<std::string, int> types;
  for (size_t at = 0; (at = response.body.find("# TYPE ", at)) != std::string::npos; ++at) {
    ++types[response.body.substr(at + 7, response.body.find(' ', at + 7) - at - 7)];
  }
  CHECK(types.size() > 30);
  for (const auto& [name, count] : types) {
    CAPTURE(name);
    CHECK(count == 1);
  }
}
