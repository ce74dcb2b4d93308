// A codec whose tokens are bytes, an engine that does what the test says, and a socket client.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "engine/runtime/engine.h"
#include "server/api/served_model.h"
#include "server/api/service.h"
#include "server/http/server.h"

namespace sluice::test {

inline constexpr int32_t kEos = 256;
inline constexpr int32_t kBos = 257;
inline constexpr int kVocab = 260;

// Token b is the byte b; kEos is "<eos>", kBos is "<bos>" (added when special tokens are asked
// for). The chat template writes "role:content;" per message and "assistant:" at the end; a message
// "refuse" makes it fail.
std::unique_ptr<TextCodec> MakeByteCodec();

std::vector<int32_t> BytesToIds(std::string_view text);

// Records submissions and lets the test play the engine thread. Calls of the test may come from any
// thread; every wait has a bound of 20 s after which the test fails instead of hanging.
class FakeEngine final : public Engine {
 public:
  struct Sequence {
    GenerationRequest request;
    std::shared_ptr<OutputSink> sink;
    bool cancelled = false;
  };

  // What Submit answers; empty: ids 1, 2, 3...
  std::function<Result<void>(const GenerationRequest&)> admit;
  // Called from Submit after the sequence is recorded, outside the lock.
  std::function<void(FakeEngine&, RequestId)> on_submit;
  // What every token and end says of experts.
  ExpertCounts experts;
  // What SetMemoryBudget does; empty: what a model without tiers answers.
  std::function<void(uint64_t bytes, std::function<void(Result<>)> done)> on_budget;

  ~FakeEngine() override;

  Result<RequestId> Submit(GenerationRequest request, std::shared_ptr<OutputSink> sink) override;
  void Cancel(RequestId id) override;
  void BeginDrain() override {}
  bool Idle() const override { return true; }
  void SetMemoryBudget(uint64_t bytes, std::function<void(Result<>)> done) override;
  EngineStats Stats() const override;
  std::chrono::steady_clock::time_point LastPulse() const override {
    return std::chrono::steady_clock::now();
  }
  const Model& model() const override;
  int max_context() const override { return 4096; }

  // ---- The test's side ----
  void Say(RequestId id, std::string_view text);
  void Token(RequestId id, int32_t token, float logprob = -0.5f,
             std::vector<TokenLogprob> top = {});
  void End(RequestId id, FinishReason reason, Error error = {});
  // Prompt log-probabilities -1, -2, ... for every prompt token after the first.
  void Prompt(RequestId id);

  void SetTiers(ExpertTierStats tiers);

  bool WaitForSubmissions(size_t count);
  bool WaitForCancel(RequestId id);
  size_t submissions() const;
  GenerationRequest request(RequestId id) const;

 private:
  std::shared_ptr<OutputSink> Sink(RequestId id) const;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Sequence> sequences_;
  RequestId next_ = 1;
  std::shared_ptr<const ExpertTierStats> tiers_;
};

struct Response {
  int status = 0;
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;                            // chunks joined

  nlohmann::json Json() const;
  // The payloads of the `data:` lines.
  std::vector<std::string> Events() const;
};

// A blocking client on one connection.
class Client {
 public:
  explicit Client(int port, int receive_buffer_bytes = 0);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void Send(std::string_view bytes);
  // Sends a request with a body, if any, as JSON.
  void Request(std::string_view method, std::string_view path, std::string_view body = {},
               std::string_view extra_headers = {});
  // Reads one whole response. `head_only`: it has no body, whatever its head says.
  Response Read(bool head_only = false);
  Response Ask(std::string_view method, std::string_view path, std::string_view body = {},
               std::string_view extra_headers = {});
  // Reads until `text` has come; returns everything read so far. Empty at the end of the stream.
  std::string ReadUntil(std::string_view text);
  // True when the server has closed the connection and nothing is left to read.
  bool AtEnd();
  void CloseWithReset();
  void CloseSending();
  void Close();

 private:
  bool Fill();

  int socket_ = -1;
  std::string buffer_;
};

// A service on a socket of its own, with the fakes behind it.
class TestServer {
 public:
  struct Setup {
    HttpServerOptions http;
    ServiceOptions service;
    std::string keys;  // text of a key file; empty: none
    bool with_model = true;
  };
  static Setup DefaultSetup();

  explicit TestServer(Setup setup = DefaultSetup());
  ~TestServer();

  int port() const { return server_->port(); }
  FakeEngine& engine() { return *engine_; }
  Service& service() { return *service_; }
  HttpServer& http() { return *server_; }
  void AddModel();

 private:
  Logger log_;
  std::shared_ptr<Metrics> metrics_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> server_;
  FakeEngine* engine_ = nullptr;
};

}  // namespace sluice::test
