#include "tests/unit/server/fakes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "engine/base/check.h"
#include "engine/base/utf8.h"

namespace sluice::test {
namespace {

constexpr std::chrono::seconds kPatience{20};

std::string BytesOf(int32_t token) {
  if (token == kEos) return "<eos>";
  if (token == kBos) return "<bos>";
  return token < 256 ? std::string(1, static_cast<char>(token)) : std::string();
}

class ByteStream final : public TextStream {
 public:
  explicit ByteStream(bool skip_special) : skip_special_(skip_special) {}
  void Continue(std::span<const int32_t> prompt) override {
    for (const int32_t id : prompt) Push(id);
  }
  std::string Push(int32_t token) override {
    if (token >= 256 && skip_special_) return {};
    held_ += BytesOf(token);
    std::string out;
    held_.erase(0, AppendRepairedUtf8(held_, &out));
    return out;
  }
  std::string Finish() override { return ReplaceInvalidUtf8(std::exchange(held_, {})); }

 private:
  const bool skip_special_;
  std::string held_;
};

class ByteCodec final : public TextCodec {
 public:
  std::vector<int32_t> Encode(std::string_view text, bool add_special, bool) const override {
    std::vector<int32_t> ids;
    if (add_special) ids.push_back(kBos);
    for (const int32_t id : BytesToIds(text)) ids.push_back(id);
    return ids;
  }
  std::string TokenBytes(int32_t token) const override { return BytesOf(token); }
  bool IsSpecial(int32_t token) const override { return token >= 256; }
  std::unique_ptr<TextStream> OpenStream(bool skip_special) const override {
    return std::make_unique<ByteStream>(skip_special);
  }
  bool has_chat_template() const override { return true; }
  Result<std::string> RenderChat(const nlohmann::ordered_json& messages,
                                 const nlohmann::ordered_json&,
                                 bool add_generation_prompt) const override {
    std::string text;
    for (const auto& message : messages) {
      const auto content = message["content"].get<std::string>();
      if (content == "refuse") return InvalidArgument("conversation refused");
      text += message["role"].get<std::string>() + ":" + content + ";";
    }
    return text + (add_generation_prompt ? "assistant:" : "");
  }
};

}  // namespace

std::unique_ptr<TextCodec> MakeByteCodec() { return std::make_unique<ByteCodec>(); }

std::vector<int32_t> BytesToIds(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

// ---- FakeEngine ----

FakeEngine::~FakeEngine() {
  for (auto& [id, sequence] : sequences_) {
    if (sequence.sink)
      sequence.sink->OnFinish({.reason = FinishReason::kCancelled, .usage = {}, .error = {}});
  }
}

Result<RequestId> FakeEngine::Submit(GenerationRequest request, std::shared_ptr<OutputSink> sink) {
  if (admit) {
    if (const Result<void> admitted = admit(request); !admitted) return admitted.error();
  }
  RequestId id = 0;
  {
    std::lock_guard lock(mutex_);
    id = next_++;
    sequences_[id] = {std::move(request), std::move(sink)};
  }
  changed_.notify_all();
  if (on_submit) on_submit(*this, id);
  return id;
}

void FakeEngine::Cancel(RequestId id) {
  {
    std::lock_guard lock(mutex_);
    const auto it = sequences_.find(id);
    if (it != sequences_.end()) it->second.cancelled = true;
  }
  changed_.notify_all();
}

void FakeEngine::SetMemoryBudget(uint64_t bytes, std::function<void(Result<>)> done) {
  if (on_budget) return on_budget(bytes, std::move(done));
  done(Unsupported("this model keeps all of its experts in memory"));
}

void FakeEngine::SetTiers(ExpertTierStats tiers) {
  std::lock_guard lock(mutex_);
  tiers_ = std::make_shared<const ExpertTierStats>(std::move(tiers));
}

EngineStats FakeEngine::Stats() const {
  EngineStats stats;
  {
    std::lock_guard lock(mutex_);
    stats.expert_tiers = tiers_;
  }
  stats.kv_blocks_total = 8;
  stats.steps = 3;
  return stats;
}

const Model& FakeEngine::model() const { CheckFailed(__FILE__, __LINE__, "FakeEngine::model"); }

std::shared_ptr<OutputSink> FakeEngine::Sink(RequestId id) const {
  std::lock_guard lock(mutex_);
  return sequences_.at(id).sink;
}

void FakeEngine::Token(RequestId id, int32_t token, float logprob, std::vector<TokenLogprob> top) {
  if (const auto sink = Sink(id)) sink->OnToken({token, logprob, std::move(top), experts});
}

void FakeEngine::Say(RequestId id, std::string_view text) {
  for (const int32_t token : BytesToIds(text)) Token(id, token);
}

void FakeEngine::Prompt(RequestId id) {
  std::vector<TokenOutput> prompt;
  for (const int32_t token : request(id).prompt) {
    const auto position = static_cast<float>(prompt.size());
    prompt.push_back({token, -position, {{'x', -0.25f}}});
  }
  prompt.front().top.clear();
  if (const auto sink = Sink(id)) sink->OnPrompt(std::move(prompt));
}

void FakeEngine::End(RequestId id, FinishReason reason, Error error) {
  std::shared_ptr<OutputSink> sink;
  {
    std::lock_guard lock(mutex_);
    sink = std::exchange(sequences_.at(id).sink, nullptr);
  }
  if (sink) {
    Usage usage;
    usage.experts = experts;
    sink->OnFinish({.reason = reason, .usage = usage, .error = std::move(error)});
  }
}

bool FakeEngine::WaitForSubmissions(size_t count) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] { return sequences_.size() >= count; });
}

bool FakeEngine::WaitForCancel(RequestId id) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] { return sequences_.at(id).cancelled; });
}

size_t FakeEngine::submissions() const {
  std::lock_guard lock(mutex_);
  return sequences_.size();
}

GenerationRequest FakeEngine::request(RequestId id) const {
  std::lock_guard lock(mutex_);
  return sequences_.at(id).request;
}

// ---- Client ----

nlohmann::json Response::Json() const { return nlohmann::json::parse(body); }

std::vector<std::string> Response::Events() const {
  std::vector<std::string> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = std::min(body.find("\n\n", at), body.size());
    if (body.compare(at, 6, "data: ") == 0) events.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return events;
}

Client::Client(int port, int receive_buffer_bytes) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
  if (receive_buffer_bytes > 0) {
    setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
  }
  const timeval patience{kPatience.count(), 0};
  setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("cannot connect");
  }
}

Client::~Client() { Close(); }

void Client::Close() {
  if (socket_ >= 0) close(std::exchange(socket_, -1));
}

void Client::CloseWithReset() {
  const linger reset{1, 0};
  setsockopt(socket_, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  Close();
}

void Client::CloseSending() { shutdown(socket_, SHUT_WR); }

void Client::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;  // the server may have answered and closed: the test reads that
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

void Client::Request(std::string_view method, std::string_view path, std::string_view body,
                     std::string_view extra_headers) {
  std::string text = std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n";
  if (!body.empty()) {
    text +=
        "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  }
  text += extra_headers;
  text += "\r\n";
  text += body;
  Send(text);
}

bool Client::Fill() {
  char bytes[16384];
  const ssize_t got = recv(socket_, bytes, sizeof bytes, 0);
  if (got <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(got));
  return true;
}

std::string Client::ReadUntil(std::string_view text) {
  while (buffer_.find(text) == std::string::npos) {
    if (!Fill()) return {};
  }
  return buffer_;
}

bool Client::AtEnd() {
  char byte = 0;
  return buffer_.empty() && recv(socket_, &byte, 1, 0) == 0;
}

Response Client::Read(bool head_only) {
  Response response;
  size_t head_end = 0;
  while ((head_end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (!Fill()) return response;
  }
  const std::string head = buffer_.substr(0, head_end + 2);
  buffer_.erase(0, head_end + 4);
  response.status = std::stoi(head.substr(9, 3));
  for (size_t at = head.find("\r\n") + 2; at < head.size();) {
    const size_t end = head.find("\r\n", at), colon = head.find(": ", at);
    std::string name = head.substr(at, colon - at);
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    response.headers[name] = head.substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  if (head_only || response.status == 204 || response.status == 100) return response;
  if (response.headers.contains("content-length")) {
    const size_t length = std::stoul(response.headers["content-length"]);
    while (buffer_.size() < length && Fill()) {
    }
    response.body = buffer_.substr(0, length);
    buffer_.erase(0, length);
  } else if (response.headers["transfer-encoding"] == "chunked") {
    while (true) {
      size_t line = 0;
      while ((line = buffer_.find("\r\n")) == std::string::npos) {
        if (!Fill()) return response;
      }
      const size_t size = std::stoul(buffer_.substr(0, line), nullptr, 16);
      while (buffer_.size() < line + 2 + size + 2) {
        if (!Fill()) return response;
      }
      response.body += buffer_.substr(line + 2, size);
      buffer_.erase(0, line + 2 + size + 2);
      if (size == 0) break;
    }
  } else {
    while (Fill()) {
    }
    response.body = std::exchange(buffer_, {});
  }
  return response;
}

Response Client::Ask(std::string_view method, std::string_view path, std::string_view body,
                     std::string_view extra_headers) {
  Request(method, path, body, extra_headers);
  return Read(method == "HEAD");
}

// ---- TestServer ----

TestServer::Setup TestServer::DefaultSetup() {
  Setup setup;
  setup.http.port = 0;
  setup.http.threads = 2;
  return setup;
}

TestServer::TestServer(Setup setup)
    : log_(LogLevel::kOff, LogFormat::kText),
      metrics_(std::make_shared<Metrics>(MetricsOptions{"tiny", true, true})) {
  ApiKeys keys;
  if (!setup.keys.empty()) keys = *ApiKeys::Parse(setup.keys, "keys");
  service_ = std::make_unique<Service>(setup.service, std::move(keys), metrics_, log_);
  setup.http.body_limit_bytes = setup.service.body_limit_bytes;
  auto server = HttpServer::Listen(setup.http, *service_);
  if (!server) throw std::runtime_error(server.error().message);
  server_ = std::move(*server);
  if (setup.with_model) AddModel();
  server_->Run();
}

void TestServer::AddModel() {
  auto model = std::make_shared<ServedModel>();
  model->id = "tiny";
  model->family = "fake";
  model->vocab = kVocab;
  model->max_context = 4096;
  model->eos_ids = {kEos};
  model->codec = MakeByteCodec();
  auto engine = std::make_unique<FakeEngine>();
  engine_ = engine.get();
  model->engine = std::move(engine);
  service_->SetModel(std::move(model));
}

TestServer::~TestServer() {
  server_->Stop();
  service_->StopEngine();
}

}  // namespace sluice::test
