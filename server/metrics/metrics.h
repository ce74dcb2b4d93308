// What /metrics shows. Own names start with sluice_ and are in base units; `compat` adds the names
// that dashboards of vLLM and llama.cpp read. Counters of the engine are read when scraped, the
// rest is observed as it happens. Safe from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/runtime/engine.h"

namespace sluice {

struct MetricsOptions {
  std::string model_name;
  bool vllm = false;
  bool llamacpp = false;
};

class Metrics {
 public:
  explicit Metrics(const MetricsOptions& options);
  ~Metrics();

  // ---- HTTP ----
  // `route` is a pattern of the route table, so that labels stay few.
  void ObserveHttp(std::string_view route, int status, size_t sent_bytes);
  void SetConnections(int open);

  // ---- Requests, as clients see them: one per choice ----
  void ObserveFirstToken(double seconds_since_arrival);
  void ObserveInterToken(double seconds);
  // `reason`: "stop", "length", "abort" or "error".
  void ObserveRequest(std::string_view reason, double seconds_since_arrival, int prompt_tokens,
                      int generation_tokens);

  // A request answered 429. `reason`: "queue", "key_concurrency", "key_requests" or "key_tokens".
  void ObserveRefusal(std::string_view reason);

  // ---- The engine ----
  void ObserveEngineFinish(const Finish& finish);
  void ObserveStep(int batch_tokens, int sequences, double seconds);

  // The exposition text. `engine` absent: still loading. `per_expert`: with two series for every
  // expert of the model.
  std::string Render(const std::optional<EngineStats>& engine, bool per_expert = false) const;

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace sluice
