#include "server/config/schema.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "engine/base/utf8.h"

namespace sluice {
namespace {

#define SLUICE_FIELD(member) [](Config& c) -> SettingField { return &c.member; }

constexpr double kTiB = 1024.0 * 1024 * 1024 * 1024;

const std::array kSettings = {
    Setting{"server",
            "host",
            "--host",
            SLUICE_FIELD(server.host),
            0,
            0,
            {},
            "Address to listen on. 0.0.0.0 or :: opens the server to the network: set API keys."},
    Setting{"server",
            "port",
            "--port",
            SLUICE_FIELD(server.port),
            0,
            65535,
            {},
            "TCP port; 0 picks a free one (the ready line names it)."},
    Setting{"server",
            "threads",
            "--io-threads",
            SLUICE_FIELD(server.threads),
            1,
            256,
            {},
            "Threads for network I/O. Few are enough for thousands of connections."},
    Setting{"server",
            "worker_threads",
            "--worker-threads",
            SLUICE_FIELD(server.worker_threads),
            1,
            64,
            {},
            "Threads that parse and tokenize request bodies above 16 KiB."},
    Setting{"server",
            "max_connections",
            "--max-connections",
            SLUICE_FIELD(server.max_connections),
            1,
            1000000,
            {},
            "Open connections; one more takes the place of the one that has been idle longest, or "
            "is answered 503."},
    Setting{"server",
            "body_limit",
            "--body-limit",
            SLUICE_FIELD(server.body_limit),
            1024,
            1024.0 * 1024 * 1024,
            {},
            "Longest request body; longer is answered 413."},
    Setting{"server",
            "header_limit",
            "--header-limit",
            SLUICE_FIELD(server.header_limit),
            512,
            1024.0 * 1024,
            {},
            "Longest request line and headers; longer is answered 431."},
    Setting{"server",
            "stream_buffer",
            "--stream-buffer",
            SLUICE_FIELD(server.stream_buffer),
            4096,
            1024.0 * 1024 * 1024,
            {},
            "Output that a slow reader may leave unread before its request is cancelled."},
    Setting{"server",
            "read_timeout",
            "--read-timeout",
            SLUICE_FIELD(server.read_timeout),
            0.01,
            86400,
            {},
            "Time for a whole request to arrive, from its first byte."},
    Setting{"server",
            "write_timeout",
            "--write-timeout",
            SLUICE_FIELD(server.write_timeout),
            0.01,
            86400,
            {},
            "Time for the client to take 256 KiB of what it is sent; then it is disconnected."},
    Setting{"server",
            "idle_timeout",
            "--idle-timeout",
            SLUICE_FIELD(server.idle_timeout),
            0.01,
            86400,
            {},
            "Time that a kept-alive connection may wait for its next request."},
    Setting{"server",
            "drain_timeout",
            "--drain-timeout",
            SLUICE_FIELD(server.drain_timeout),
            0,
            86400,
            {},
            "After SIGTERM, time for running requests to finish."},
    Setting{"server",
            "ping_interval",
            "--ping-interval",
            SLUICE_FIELD(server.ping_interval),
            0.01,
            86400,
            {},
            "Silence on a stream before a comment (`: ping`) is sent."},
    Setting{
        "server",
        "cors_origins",
        "--cors-origins",
        SLUICE_FIELD(server.cors_origins),
        0,
        0,
        {},
        "Web origins that browsers may call from, as [\"https://chat.example\"]; \"*\" is any."},
    Setting{"server",
            "api_keys_file",
            "--api-keys-file",
            SLUICE_FIELD(server.api_keys_file),
            0,
            0,
            {},
            "File of API keys, one per line, # comments. Empty: no key is asked for."},

    Setting{"model",
            "path",
            "--model",
            SLUICE_FIELD(model.path),
            0,
            0,
            {},
            "A pack, a GGUF file (the first of a split) or a Hugging Face directory."},
    Setting{"model",
            "id",
            "--model-id",
            SLUICE_FIELD(model.id),
            0,
            0,
            {},
            "Name that clients use for the model. Empty: the directory's name."},
    Setting{"model",
            "context",
            "--context",
            SLUICE_FIELD(model.context),
            0,
            1 << 24,
            {},
            "Most tokens of one request, prompt and answer together; 0: what the model was made "
            "for."},
    Setting{"model",
            "kv_memory",
            "--kv-memory",
            SLUICE_FIELD(model.kv_memory),
            0,
            1024 * kTiB,
            {},
            "Memory for attention keys and values. 0: eight full contexts, at most a quarter of "
            "the memory that is available (cgroup limits included)."},
    Setting{"model",
            "kv_dtype",
            "--kv-dtype",
            SLUICE_FIELD(model.kv_dtype),
            0,
            0,
            {"auto", "f32", "f16", "bf16", "q8"},
            "Format of keys and values; auto: f32 for F32 weights, otherwise f16. q8: 8 bits with "
            "scales, about half the memory of f16."},
    Setting{"model",
            "cache_dir",
            "--cache-dir",
            SLUICE_FIELD(model.cache_dir),
            0,
            0,
            {},
            "Where packs of GGUF files and directories are kept, made on first use. Empty: the "
            "service's or the user's cache directory."},
    Setting{"model",
            "cache_limit",
            "--cache-limit",
            SLUICE_FIELD(model.cache_limit),
            0,
            1024 * kTiB,
            {},
            "What packs in the cache may take together; those used longest ago are removed before "
            "one is made. 0: half of its file system."},
    Setting{"model",
            "precision",
            "--precision",
            SLUICE_FIELD(model.precision),
            0,
            8,
            {},
            "Highest precision of a pack's routed experts, in bits (2 to 8); 0: all there is."},

    Setting{
        "experts",
        "memory_budget",
        "--memory-budget",
        SLUICE_FIELD(experts.memory_budget),
        0,
        1024 * kTiB,
        {},
        "Resident memory of the whole process: experts of a pack that do not fit are read from "
        "disk when they are needed. 0: what the machine or its cgroup leaves, less a sixteenth."},
    Setting{"experts",
            "policy",
            "--expert-policy",
            SLUICE_FIELD(experts.policy),
            0,
            0,
            {},
            "Which expert leaves memory for another: next-use (auto), lru, lfu, arc, least-stale, "
            "shallow or look-ahead."},
    Setting{"experts",
            "prefetch",
            "--prefetch",
            SLUICE_FIELD(experts.prefetch),
            0,
            0,
            {"auto", "off", "cross-layer", "activation-path", "previous-token", "prior"},
            "What experts of the layers ahead are guessed from, to read them early; auto: "
            "cross-layer while it pays."},
    Setting{"experts",
            "cache",
            "--cache",
            SLUICE_FIELD(experts.cache),
            0,
            0,
            {"on", "off"},
            "off: experts are read when a layer asks for them and kept no longer."},
    Setting{
        "experts",
        "quality",
        "--quality",
        SLUICE_FIELD(experts.quality),
        0,
        0,
        {"exact", "balanced", "fast"},
        "Of requests that do not ask for one. exact: the pack's full precision; balanced: light "
        "experts at fewer bits rather than late; fast: all of them, and the lightest not at "
        "all."},
    Setting{"experts",
            "expert_mass",
            "--expert-mass",
            SLUICE_FIELD(experts.expert_mass),
            0,
            1,
            {},
            "Top-p routing: a token uses the fewest experts that have this share of its gate "
            "weight together. 1: all that the model chooses."},
    Setting{"experts",
            "expert_prune",
            "--expert-prune",
            SLUICE_FIELD(experts.expert_prune),
            0,
            1,
            {},
            "Experts that weigh less than this share of the token's weightiest are left out. 0: "
            "none."},
    Setting{"experts",
            "pressure",
            "--memory-pressure",
            SLUICE_FIELD(experts.pressure),
            0,
            0,
            {"auto", "on", "off"},
            "on: lower the budget while the machine or the cgroup is short of memory; auto: on "
            "unless a budget is given."},
    Setting{"experts",
            "trace",
            "--trace",
            SLUICE_FIELD(experts.trace),
            0,
            0,
            {},
            "File that the routing of the traffic is recorded in, for `sluice trace replay` and "
            "`sluice plan`; one of that name becomes FILE.1. Empty: none."},
    Setting{"experts",
            "trace_limit",
            "--trace-limit",
            SLUICE_FIELD(experts.trace_limit),
            0,
            1024 * kTiB,
            {},
            "Most bytes of the trace; what comes later is not recorded. 0: no limit."},

    Setting{"engine",
            "threads",
            "--threads",
            SLUICE_FIELD(engine.threads),
            0,
            1024,
            {},
            "Compute threads; 0: the cores that the process may use."},
    Setting{"engine",
            "cpu_isa",
            "--cpu-isa",
            SLUICE_FIELD(engine.cpu_isa),
            0,
            0,
            {"auto", "scalar", "avx2", "avx512", "avx512bf16", "neon"},
            "Instruction set of the kernels; auto: the best that the CPU has."},
    Setting{"engine",
            "activation_bits",
            "--activation-bits",
            SLUICE_FIELD(engine.activation_bits),
            8,
            24,
            {},
            "Precision of what bit-nested weights are multiplied with: 8, or 16 or 24 for more "
            "exact results at up to two or three times the arithmetic."},
    Setting{"engine",
            "max_queue",
            "--max-queue",
            SLUICE_FIELD(engine.max_queue),
            1,
            1000000,
            {},
            "Requests that may wait; one more is answered 429."},
    Setting{"engine",
            "max_queue_tokens",
            "--max-queue-tokens",
            SLUICE_FIELD(engine.max_queue_tokens),
            0,
            1e9,
            {},
            "Prompt tokens that may wait, together; one request may always wait. 0: any number."},
    Setting{"engine",
            "max_running",
            "--max-running",
            SLUICE_FIELD(engine.max_running),
            1,
            4096,
            {},
            "Sequences generated at the same time."},
    Setting{"engine",
            "max_batch_tokens",
            "--max-batch-tokens",
            SLUICE_FIELD(engine.max_batch_tokens),
            1,
            65536,
            {},
            "Tokens computed in one step."},
    Setting{"engine",
            "prefill_chunk",
            "--prefill-chunk",
            SLUICE_FIELD(engine.prefill_chunk),
            1,
            65536,
            {},
            "Most prompt tokens of one request in one step."},
    Setting{"engine",
            "max_decode_stall_ms",
            "--max-decode-stall-ms",
            SLUICE_FIELD(engine.max_decode_stall_ms),
            0,
            3600000,
            {},
            "Most milliseconds that prompts may add to a step in which others wait for their next "
            "token; 0: no bound."},
    Setting{"engine",
            "prefix_cache",
            "--prefix-cache",
            SLUICE_FIELD(engine.prefix_cache),
            0,
            0,
            {"on", "off"},
            "on: prompts that begin alike compute their beginning once; changes no token."},
    Setting{"engine",
            "batch_order",
            "--batch-order",
            SLUICE_FIELD(engine.batch_order),
            0,
            0,
            {"auto", "affinity", "longest-queue", "fcfs"},
            "Who decodes together where experts come from disk; changes no token."},
    Setting{"engine",
            "max_affinity_delay_ms",
            "--max-affinity-delay-ms",
            SLUICE_FIELD(engine.max_affinity_delay_ms),
            1,
            3600000,
            {},
            "Most milliseconds that a stream waits while others with the same experts decode."},
    Setting{"engine",
            "speculation",
            "--speculation",
            SLUICE_FIELD(engine.speculation),
            0,
            0,
            {"off", "ngram", "auto"},
            "Guesses tokens from the text so far and checks several in one step; changes no "
            "token."},
    Setting{"engine",
            "state_dir",
            "--state-dir",
            SLUICE_FIELD(engine.state_dir),
            0,
            0,
            {},
            "Directory that keeps prefix cache and expert heat over a restart. Empty: nothing is "
            "kept."},

    Setting{"log",
            "level",
            "--log-level",
            SLUICE_FIELD(log.level),
            0,
            0,
            {"debug", "info", "warn", "error", "off"},
            "Least severity that is logged."},
    Setting{"log",
            "format",
            "--log-format",
            SLUICE_FIELD(log.format),
            0,
            0,
            {"text", "json"},
            "Log lines for people (text) or machines (json); both go to standard error."},

    Setting{"metrics",
            "compat",
            "--metrics-compat",
            SLUICE_FIELD(metrics.compat),
            0,
            0,
            {"vllm", "llamacpp"},
            "Also export the metric names that dashboards of these expect."},
    Setting{"metrics",
            "require_key",
            "--metrics-require-key",
            SLUICE_FIELD(metrics.require_key),
            0,
            0,
            {},
            "Ask for an API key on /metrics too."},
};
#undef SLUICE_FIELD

bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

struct Unit {
  std::string_view name;
  double factor;
};

// A number and one of `units`; the empty unit name is the bare number.
Result<double> ParseQuantity(std::string_view text, std::span<const Unit> units,
                             const char* example) {
  double number = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  if (status == std::errc() && std::isfinite(number)) {
    for (const Unit& candidate : units) {
      if (EqualsIgnoringCase(unit, candidate.name)) return number * candidate.factor;
    }
  }
  return InvalidArgument("\"" + std::string(text.substr(0, 64)) + "\" is not " + example);
}

Error WrongType(const Setting& setting, std::string_view got) {
  return InvalidArgument("expected " + Expected(setting) + ", got " + std::string(got));
}

std::string NumberText(double value) {
  char text[40];
  const auto end = value == std::floor(value) && std::abs(value) < 1e15
                       ? std::to_chars(text, text + sizeof text, static_cast<int64_t>(value))
                       : std::to_chars(text, text + sizeof text, value);
  return std::string(text, end.ptr);
}

std::string BytesText(double bytes) {
  constexpr std::array<const char*, 5> kNames = {"", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kNames.size() && std::fmod(bytes, 1024) == 0) {
    bytes /= 1024, ++unit;
  }
  return NumberText(bytes) + kNames[unit];
}

Result<void> SetNumber(const Setting& setting, double value, std::string_view shown,
                       Config& config) {
  if (!(value >= setting.min && value <= setting.max)) return WrongType(setting, shown);
  const SettingField field = setting.field(config);
  if (auto* const* integer = std::get_if<int*>(&field)) {
    **integer = static_cast<int>(value);
  } else if (auto* const* number = std::get_if<double*>(&field)) {
    **number = value;
  } else if (auto* const* bytes = std::get_if<Bytes*>(&field)) {
    (*bytes)->count = static_cast<int64_t>(value);
  } else if (auto* const* seconds = std::get_if<Seconds*>(&field)) {
    (*seconds)->count = value;
  } else {
    return WrongType(setting, shown);
  }
  return {};
}

bool Allowed(const Setting& setting, std::string_view value) {
  return setting.choices.empty() ||
         std::find(setting.choices.begin(), setting.choices.end(), value) != setting.choices.end();
}

// As TOML and JSON both spell it. What is no UTF-8 neither can spell: U+FFFD stands for it.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : ReplaceInvalidUtf8(text)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const Setting> Settings() { return kSettings; }

const Setting* FindSetting(std::string_view name) {
  for (const Setting& setting : kSettings) {
    if (setting.name() == name) return &setting;
  }
  return nullptr;
}

Result<Bytes> ParseBytes(std::string_view text) {
  constexpr double k = 1000, ki = 1024;
  static constexpr std::array kUnits = {Unit{"", 1},
                                        Unit{"B", 1},
                                        Unit{"kB", k},
                                        Unit{"MB", k * k},
                                        Unit{"GB", k * k * k},
                                        Unit{"TB", k * k * k * k},
                                        Unit{"KiB", ki},
                                        Unit{"MiB", ki * ki},
                                        Unit{"GiB", ki * ki * ki},
                                        Unit{"TiB", kTiB},
                                        Unit{"K", ki},
                                        Unit{"M", ki * ki},
                                        Unit{"G", ki * ki * ki},
                                        Unit{"T", kTiB}};
  const auto value = ParseQuantity(text, kUnits, "a size such as \"512MiB\"");
  if (!value) return value.error();
  if (*value < 0 || *value > 1024 * kTiB) {
    return InvalidArgument("\"" + std::string(text) + "\" is out of range for a size");
  }
  return Bytes{static_cast<int64_t>(*value)};
}

Result<Seconds> ParseSeconds(std::string_view text) {
  static constexpr std::array kUnits = {Unit{"", 1},   Unit{"s", 1},    Unit{"ms", 0.001},
                                        Unit{"m", 60}, Unit{"min", 60}, Unit{"h", 3600}};
  const auto value = ParseQuantity(text, kUnits, "a time such as \"30s\"");
  if (!value) return value.error();
  return Seconds{*value};
}

Result<void> SetInteger(const Setting& setting, int64_t value, Config& config) {
  return SetNumber(setting, static_cast<double>(value), std::to_string(value), config);
}

Result<void> SetDouble(const Setting& setting, double value, Config& config) {
  const SettingField field = setting.field(config);
  if (!std::holds_alternative<Seconds*>(field) && !std::holds_alternative<double*>(field)) {
    return WrongType(setting, NumberText(value));
  }
  return SetNumber(setting, value, NumberText(value), config);
}

Result<void> SetBool(const Setting& setting, bool value, Config& config) {
  const SettingField field = setting.field(config);
  auto* const* flag = std::get_if<bool*>(&field);
  if (!flag) return WrongType(setting, value ? "true" : "false");
  **flag = value;
  return {};
}

Result<void> SetString(const Setting& setting, std::string_view value, Config& config) {
  const SettingField field = setting.field(config);
  if (auto* const* text = std::get_if<std::string*>(&field)) {
    if (!Allowed(setting, value)) return WrongType(setting, Quoted(value));
    **text = value;
    return {};
  }
  if (std::holds_alternative<Bytes*>(field)) {
    const Result<Bytes> bytes = ParseBytes(value);
    if (!bytes) return bytes.error();
    return SetNumber(setting, static_cast<double>(bytes->count), Quoted(value), config);
  }
  if (std::holds_alternative<Seconds*>(field)) {
    const Result<Seconds> seconds = ParseSeconds(value);
    if (!seconds) return seconds.error();
    return SetNumber(setting, seconds->count, Quoted(value), config);
  }
  return WrongType(setting, Quoted(value));
}

Result<void> SetList(const Setting& setting, std::vector<std::string> value, Config& config) {
  const SettingField field = setting.field(config);
  auto* const* list = std::get_if<std::vector<std::string>*>(&field);
  if (!list) return WrongType(setting, "a list");
  for (const std::string& item : value) {
    if (!Allowed(setting, item)) return WrongType(setting, Quoted(item));
  }
  **list = std::move(value);
  return {};
}

Result<void> SetFromText(const Setting& setting, std::string_view text, Config& config) {
  const SettingField field = setting.field(config);
  if (std::holds_alternative<int*>(field)) {
    int64_t value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status != std::errc() || end != text.data() + text.size()) {
      return WrongType(setting, Quoted(text));
    }
    return SetInteger(setting, value, config);
  }
  if (std::holds_alternative<double*>(field)) {
    double value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status != std::errc() || end != text.data() + text.size()) {
      return WrongType(setting, Quoted(text));
    }
    return SetDouble(setting, value, config);
  }
  if (std::holds_alternative<bool*>(field)) {
    if (text == "true" || text == "false") return SetBool(setting, text == "true", config);
    return WrongType(setting, Quoted(text));
  }
  if (std::holds_alternative<std::vector<std::string>*>(field)) {
    std::vector<std::string> items;
    while (!text.empty()) {
      const size_t comma = std::min(text.find(','), text.size());
      if (comma > 0) items.emplace_back(text.substr(0, comma));
      text.remove_prefix(std::min(comma + 1, text.size()));
    }
    return SetList(setting, std::move(items), config);
  }
  return SetString(setting, text, config);
}

std::string ValueText(const Setting& setting, const Config& config) {
  // The table's accessors give mutable pointers; nothing is written through this one.
  const SettingField field = setting.field(const_cast<Config&>(config));
  struct Visitor {
    std::string operator()(const int* v) const { return std::to_string(*v); }
    std::string operator()(const double* v) const { return NumberText(*v); }
    std::string operator()(const Bytes* v) const {
      return v->count == 0 ? "0" : Quoted(BytesText(static_cast<double>(v->count)));
    }
    std::string operator()(const Seconds* v) const { return Quoted(NumberText(v->count) + "s"); }
    std::string operator()(const bool* v) const { return *v ? "true" : "false"; }
    std::string operator()(const std::string* v) const { return Quoted(*v); }
    std::string operator()(const std::vector<std::string>* v) const {
      std::string out = "[";
      for (const std::string& item : *v) out += (out.size() > 1 ? ", " : "") + Quoted(item);
      return out + "]";
    }
  };
  return std::visit(Visitor{}, field);
}

std::string Expected(const Setting& setting) {
  Config config;
  const SettingField field = setting.field(config);
  const auto choices = [&] {
    std::string out;
    for (const std::string_view choice : setting.choices) {
      out += (out.empty() ? "" : ", ") + std::string(choice);
    }
    return out;
  };
  struct Visitor {
    const Setting& setting;
    std::string choices;
    std::string operator()(const int*) const {
      return "an integer from " + NumberText(setting.min) + " to " + NumberText(setting.max);
    }
    std::string operator()(const double*) const {
      return "a number from " + NumberText(setting.min) + " to " + NumberText(setting.max);
    }
    std::string operator()(const Bytes*) const {
      return "a size from " + BytesText(setting.min) + " to " + BytesText(setting.max) +
             " (as \"512MiB\")";
    }
    std::string operator()(const Seconds*) const {
      return "a time from " + NumberText(setting.min) + "s to " + NumberText(setting.max) +
             "s (as \"30s\")";
    }
    std::string operator()(const bool*) const { return "true or false"; }
    std::string operator()(const std::string*) const {
      return choices.empty() ? "a string" : "one of " + choices;
    }
    std::string operator()(const std::vector<std::string>*) const {
      return choices.empty() ? "a list of strings" : "a list of strings out of " + choices;
    }
  };
  return std::visit(Visitor{setting, choices()}, field);
}

std::string_view Nearest(std::string_view word, std::span<const std::string> candidates) {
  std::string_view best;
  size_t best_distance = word.size() / 3 + 2;  // farther than this is another word, not a slip
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}

}  // namespace sluice
