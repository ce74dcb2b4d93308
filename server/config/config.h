// Every setting of `sluice serve`: built-in defaults < TOML file < command line (load.h). The table
// of keys, ranges and help is schema.cc; the reference page is config/README.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

struct Bytes {
  int64_t count = 0;
  bool operator==(const Bytes&) const = default;
};
struct Seconds {
  double count = 0;
  bool operator==(const Seconds&) const = default;
};

struct ServerSettings {
  std::string host = "127.0.0.1";
  int port = 8080;         // 0: any free one
  int threads = 2;         // I/O threads
  int worker_threads = 1;  // parse and tokenize bodies above 16 KiB, away from the I/O threads
  int max_connections = 1024;
  Bytes body_limit{8 << 20};
  Bytes header_limit{16 << 10};
  Bytes stream_buffer{1 << 20};  // unsent output of one request before it is cancelled
  Seconds read_timeout{30};      // a whole request, from its first byte
  Seconds write_timeout{30};     // one write to a client that does not read
  Seconds idle_timeout{75};      // between requests of a kept-alive connection
  Seconds drain_timeout{30};
  Seconds ping_interval{15};  // SSE comment after this much silence
  std::vector<std::string> cors_origins;
  std::string api_keys_file;
};

struct ModelSettings {
  std::string path;
  std::string id;      // empty: the directory's name
  int context = 0;     // tokens; 0: the model's
  Bytes kv_memory{0};  // 0: chosen from the model and the memory (memory.h)
  std::string kv_dtype = "auto";
  std::string cache_dir;  // empty: the user's cache directory (cache_dir.h)
  Bytes cache_limit{0};   // of packs in it; 0: half of its file system (pack_cache.h)
  int precision = 0;      // bits of routed experts, of packs; 0: all there is
};

// Where a pack's routed experts live. `bench` and `eval` take the same settings.
struct ExpertSettings {
  Bytes memory_budget{0};  // of the whole process; 0: what the machine or its cgroup leaves
  std::string policy = "auto";
  std::string prefetch = "auto";
  std::string cache = "on";
  std::string quality = "exact";  // of requests that do not say
  double expert_mass = 1;
  double expert_prune = 0;
  // `serve` only.
  std::string pressure = "auto";  // auto: on unless memory_budget is given
  std::string trace;              // file that the routing of the traffic is recorded in
  Bytes trace_limit{int64_t{1} << 30};
};

struct EngineSettings {
  int threads = 0;  // 0: the cores that the process may use
  std::string cpu_isa = "auto";
  int activation_bits = 8;  // inputs of bit-nested matrices: 8, 16 or 24
  int max_queue = 256;
  int max_queue_tokens = 262144;
  int max_running = 64;
  int max_batch_tokens = 512;
  int prefill_chunk = 512;
  int max_decode_stall_ms = 250;
  std::string prefix_cache = "on";
  std::string batch_order = "fcfs";
  int max_affinity_delay_ms = 2000;
  std::string speculation = "off";
  std::string state_dir;  // empty: nothing is kept over a restart
};

struct LogSettings {
  std::string level = "info";
  std::string format = "text";
};

struct MetricsSettings {
  std::vector<std::string> compat;
  bool require_key = false;
};

struct Config {
  ServerSettings server;
  ModelSettings model;
  ExpertSettings experts;
  EngineSettings engine;
  LogSettings log;
  MetricsSettings metrics;
};

}  // namespace sluice
