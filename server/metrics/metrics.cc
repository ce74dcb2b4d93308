#include "server/metrics/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>

#include "server/metrics/expert_metrics.h"
#include "server/metrics/process.h"
#include "server/metrics/snapshot.h"
#include "server/version.h"

namespace sluice {
namespace {

using prometheus::MetricFamily;
using Snapshot = MetricSnapshot;
using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets kLatency = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                          0.5,   1,      2.5,   5,    10,    30,   60,  120};
const Buckets kTokenGap = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                           0.075,  0.1,   0.15,   0.25,  0.5,  1,     2.5};
const Buckets kTokens = {1,   2,   4,    8,    16,   32,   64,    128,
                         256, 512, 1024, 2048, 4096, 8192, 16384, 32768};

struct Series {
  std::string name;
  std::string help;
};

// One histogram under our name and, when asked for, under vLLM's.
class TwinHistogram {
 public:
  TwinHistogram(prometheus::Registry& registry, const Series& own, const std::string& vllm_name,
                bool vllm, const std::string& model, const Buckets& buckets)
      : own_(&prometheus::BuildHistogram().Name(own.name).Help(own.help).Register(registry).Add(
            {}, buckets)) {
    if (!vllm) return;
    twin_ = &prometheus::BuildHistogram().Name(vllm_name).Help(own.help).Register(registry).Add(
        {{"model_name", model}}, buckets);
  }

  void Observe(double value) {
    own_->Observe(value);
    if (twin_) twin_->Observe(value);
  }

 private:
  prometheus::Histogram* own_;
  prometheus::Histogram* twin_ = nullptr;
};

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace

struct Metrics::Impl {
  explicit Impl(const MetricsOptions& o)
      : options(o),
        first_token(
            registry,
            {"sluice_time_to_first_token_seconds", "From a request's arrival to its first token."},
            "vllm:time_to_first_token_seconds", o.vllm, o.model_name, kLatency),
        inter_token(registry,
                    {"sluice_inter_token_latency_seconds", "Between two tokens of a sequence."},
                    "vllm:inter_token_latency_seconds", o.vllm, o.model_name, kTokenGap),
        request(registry,
                {"sluice_request_latency_seconds", "From a request's arrival to its last token."},
                "vllm:e2e_request_latency_seconds", o.vllm, o.model_name, kLatency),
        queue(registry,
              {"sluice_request_queue_seconds", "From submission to a sequence's first step."},
              "vllm:request_queue_time_seconds", o.vllm, o.model_name, kLatency),
        prefill(
            registry,
            {"sluice_request_prefill_seconds", "From a sequence's first step to its first token."},
            "vllm:request_prefill_time_seconds", o.vllm, o.model_name, kLatency),
        decode(registry,
               {"sluice_request_decode_seconds", "From a sequence's first token to its last."},
               "vllm:request_decode_time_seconds", o.vllm, o.model_name, kLatency),
        prompt_tokens(registry, {"sluice_request_prompt_tokens", "Prompt tokens of a sequence."},
                      "vllm:request_prompt_tokens", o.vllm, o.model_name, kTokens),
        generation_tokens(registry,
                          {"sluice_request_generation_tokens", "Generated tokens of a sequence."},
                          "vllm:request_generation_tokens", o.vllm, o.model_name, kTokens),
        step_tokens(registry, {"sluice_step_tokens", "Tokens computed in one engine step."},
                    "vllm:iteration_tokens_total", o.vllm, o.model_name, kTokens),
        step(prometheus::BuildHistogram()
                 .Name("sluice_step_seconds")
                 .Help("Duration of one engine step.")
                 .Register(registry)
                 .Add({}, kTokenGap)),
        requests(prometheus::BuildCounter()
                     .Name("sluice_requests_total")
                     .Help("Finished sequences by reason: stop, length, abort, error.")
                     .Register(registry)),
        http(prometheus::BuildCounter()
                 .Name("sluice_http_requests_total")
                 .Help("Answered HTTP requests by route and status code.")
                 .Register(registry)),
        refused(prometheus::BuildCounter()
                    .Name("sluice_requests_refused_total")
                    .Help("Requests answered 429 by reason: a full queue or a limit of the key.")
                    .Register(registry)),
        http_sent(prometheus::BuildCounter()
                      .Name("sluice_http_sent_bytes_total")
                      .Help("Bytes written to HTTP clients.")
                      .Register(registry)
                      .Add({})),
        connections(prometheus::BuildGauge()
                        .Name("sluice_http_connections")
                        .Help("Open HTTP connections.")
                        .Register(registry)
                        .Add({})) {
    prometheus::BuildGauge()
        .Name("sluice_build_info")
        .Help("Always 1; the labels say what is running.")
        .Register(registry)
        .Add({{"version", kVersion}, {"model", o.model_name}})
        .Set(1);
    if (o.vllm) {
      vllm_success = &prometheus::BuildCounter()
                          .Name("vllm:request_success_total")
                          .Help("Finished sequences by reason.")
                          .Register(registry);
    }
    for (const char* reason : {"stop", "length", "abort", "error"}) Requests(reason, 0);
    for (const char* reason : {"queue", "key_concurrency", "key_requests", "key_tokens"}) {
      refused.Add({{"reason", reason}});
    }
  }

  void Requests(const std::string& reason, double count) {
    requests.Add({{"reason", reason}}).Increment(count);
    if (vllm_success) {
      vllm_success->Add({{"model_name", options.model_name}, {"finished_reason", reason}})
          .Increment(count);
    }
  }

  void AddEngine(const EngineStats& stats, Snapshot& out) const;
  void AddCompat(const EngineStats& stats, Snapshot& out) const;
  void AddProcess(Snapshot& out) const;

  const MetricsOptions options;
  prometheus::Registry registry;
  TwinHistogram first_token, inter_token, request, queue, prefill, decode, prompt_tokens,
      generation_tokens, step_tokens;
  prometheus::Histogram& step;
  prometheus::Family<prometheus::Counter>& requests;
  prometheus::Family<prometheus::Counter>& http;
  prometheus::Family<prometheus::Counter>& refused;
  prometheus::Counter& http_sent;
  prometheus::Gauge& connections;
  prometheus::Family<prometheus::Counter>* vllm_success = nullptr;

  mutable std::mutex mutex;
  double sequence_steps = 0;  // guarded by mutex; sequences summed over steps
};

void Metrics::Impl::AddEngine(const EngineStats& s, Snapshot& out) const {
  out.Gauge("sluice_sequences_running", "Sequences being generated.", s.running);
  out.Gauge("sluice_sequences_waiting", "Sequences waiting to run.", s.waiting);
  out.Gauge("sluice_queue_requests", "Requests that wait to run for the first time.",
            s.queued_requests);
  out.Gauge("sluice_queue_tokens", "Prompt tokens of those requests.",
            static_cast<double>(s.queued_tokens));
  out.Gauge("sluice_queue_begun_per_second",
            "Requests that began to run per second, of late and while some had to wait.",
            s.begun_per_second);
  out.Gauge("sluice_kv_blocks", "KV cache blocks.", s.kv_blocks_total);
  out.Gauge("sluice_kv_blocks_used", "KV cache blocks in use.", s.kv_blocks_used);
  out.Gauge("sluice_kv_blocks_cached", "KV cache blocks kept for prompts that begin alike.",
            s.kv_blocks_cached);
  out.Counter("sluice_prefix_cache_queried_tokens_total", "Prompt tokens looked for in the cache.",
              static_cast<double>(s.prefix_queried_tokens));
  out.Counter("sluice_prefix_cache_hit_tokens_total", "Prompt tokens taken from the cache.",
              static_cast<double>(s.prefix_hit_tokens));
  out.Counter("sluice_prefix_cache_evicted_blocks_total", "Cached KV blocks given to others.",
              static_cast<double>(s.prefix_evicted_blocks));
  out.Counter("sluice_steps_total", "Engine steps.", static_cast<double>(s.steps));
  out.Counter("sluice_step_busy_seconds_total", "Time spent in engine steps.", s.step_seconds);
  out.Counter("sluice_prompt_tokens_total", "Prompt tokens, those from the prefix cache included.",
              static_cast<double>(s.prompt_tokens));
  out.Counter("sluice_generated_tokens_total", "Tokens generated.",
              static_cast<double>(s.generated_tokens));
  out.Counter("sluice_preemptions_total", "Sequences put back to waiting for lack of KV memory.",
              static_cast<double>(s.preemptions));
  out.Counter("sluice_decode_stalls_total",
              "Steps in which prompts held decodes up for longer than max_decode_stall_ms.",
              static_cast<double>(s.decode_stalls));
  out.Counter("sluice_batch_choices_total",
              "Steps in which some of the sequences that could decode might be left out.",
              static_cast<double>(s.affinity.steps));
  out.Counter("sluice_batch_left_out_total", "Sequences that others went before in those steps.",
              static_cast<double>(s.affinity.candidates - s.affinity.chosen));
  out.Counter("sluice_batch_slices_total", "Times that a group of sequences began its turn.",
              static_cast<double>(s.affinity.slices));
  out.Gauge("sluice_batch_longest_wait_seconds",
            "Longest time that a sequence which could decode waited for its step.",
            s.affinity.longest_wait_seconds);
  out.Counter("sluice_speculation_drafted_tokens_total",
              "Tokens guessed and computed before they were due.",
              static_cast<double>(s.speculation.drafted_tokens));
  out.Counter("sluice_speculation_accepted_tokens_total",
              "Of these, those that were right: generated without a step of their own.",
              static_cast<double>(s.speculation.accepted_tokens));
  // With tiers it is among theirs.
  if (s.expert_tiers == nullptr && s.speculation.guard != nullptr) {
    AddGuardMetrics({s.speculation.guard.get(), 1}, &out);
  }
  out.Counter("sluice_prefill_seconds_total", "Prefill time summed over sequences.",
              s.prefill_seconds);
  out.Counter("sluice_decode_seconds_total", "Decode time summed over sequences.",
              s.decode_seconds);
  out.Counter("sluice_expert_assignments_total", "Token-expert pairs chosen, over all layers.",
              static_cast<double>(s.expert_assignments));
  out.Counter("sluice_expert_lower_precision_assignments_total",
              "Of these, computed at less than the pack's full precision.",
              static_cast<double>(s.degraded_assignments));
  out.Counter("sluice_expert_skipped_assignments_total",
              "Of these, left out: skipped rather than waited for, or by routing options.",
              static_cast<double>(s.skipped_assignments));
  out.Counter("sluice_unique_experts_total", "Distinct experts touched per layer and step, summed.",
              static_cast<double>(s.unique_experts));
}

void Metrics::Impl::AddCompat(const EngineStats& s, Snapshot& out) const {
  if (options.vllm) {
    const Snapshot::Labels labels = {{"model_name", options.model_name}};
    out.Gauge("vllm:num_requests_running", "Sequences being generated.", s.running, labels);
    out.Gauge("vllm:num_requests_waiting", "Sequences waiting to run.", s.waiting, labels);
    out.Gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is full.",
              Ratio(s.kv_blocks_used, s.kv_blocks_total), labels);
    out.Counter("vllm:prefix_cache_queries_total", "Prompt tokens looked for in the cache.",
                static_cast<double>(s.prefix_queried_tokens), labels);
    out.Counter("vllm:prefix_cache_hits_total", "Prompt tokens taken from the cache.",
                static_cast<double>(s.prefix_hit_tokens), labels);
    out.Counter("vllm:num_preemptions_total", "Preempted sequences.",
                static_cast<double>(s.preemptions), labels);
    out.Counter("vllm:prompt_tokens_total", "Prompt tokens computed.",
                static_cast<double>(s.prompt_tokens), labels);
    out.Counter("vllm:generation_tokens_total", "Tokens generated.",
                static_cast<double>(s.generated_tokens), labels);
  }
  if (options.llamacpp) {
    double slots = 0;
    {
      std::lock_guard lock(mutex);
      slots = sequence_steps;
    }
    out.Counter("llamacpp:prompt_tokens_total", "Prompt tokens computed.",
                static_cast<double>(s.prompt_tokens));
    out.Counter("llamacpp:prompt_seconds_total", "Prefill time.", s.prefill_seconds);
    out.Counter("llamacpp:tokens_predicted_total", "Tokens generated.",
                static_cast<double>(s.generated_tokens));
    out.Counter("llamacpp:tokens_predicted_seconds_total", "Decode time.", s.decode_seconds);
    out.Gauge("llamacpp:requests_processing", "Sequences being generated.", s.running);
    out.Gauge("llamacpp:requests_deferred", "Sequences waiting to run.", s.waiting);
    out.Counter("llamacpp:n_decode_total", "Engine steps.", static_cast<double>(s.steps));
    out.Gauge("llamacpp:n_busy_slots_per_decode", "Mean number of sequences in a step.",
              Ratio(slots, static_cast<double>(s.steps)));
  }
}

void Metrics::Impl::AddProcess(Snapshot& out) const {
  const ProcessUsage usage = ReadProcessUsage();
  out.Gauge("process_resident_memory_bytes", "Resident memory.",
            static_cast<double>(usage.resident_bytes));
  out.Gauge("process_virtual_memory_bytes", "Virtual memory.",
            static_cast<double>(usage.virtual_bytes));
  out.Counter("process_cpu_seconds_total", "User and system time.", usage.cpu_seconds);
  out.Gauge("process_open_fds", "Open file descriptors.", usage.open_files);
  out.Gauge("process_start_time_seconds", "Start of the process, Unix time.",
            usage.start_time_seconds);
}

Metrics::Metrics(const MetricsOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Metrics::~Metrics() = default;

void Metrics::ObserveHttp(std::string_view route, int status, size_t sent_bytes) {
  impl_->http.Add({{"route", std::string(route)}, {"code", std::to_string(status)}}).Increment();
  impl_->http_sent.Increment(static_cast<double>(sent_bytes));
}

void Metrics::SetConnections(int open) { impl_->connections.Set(open); }

void Metrics::ObserveFirstToken(double seconds) { impl_->first_token.Observe(seconds); }
void Metrics::ObserveInterToken(double seconds) { impl_->inter_token.Observe(seconds); }

void Metrics::ObserveRequest(std::string_view reason, double seconds, int prompt_tokens,
                             int generation_tokens) {
  impl_->Requests(std::string(reason), 1);
  impl_->request.Observe(seconds);
  impl_->prompt_tokens.Observe(prompt_tokens);
  impl_->generation_tokens.Observe(generation_tokens);
}

void Metrics::ObserveRefusal(std::string_view reason) {
  impl_->refused.Add({{"reason", std::string(reason)}}).Increment();
}

void Metrics::ObserveEngineFinish(const Finish& finish) {
  const Usage& usage = finish.usage;
  impl_->queue.Observe(usage.queue_seconds);
  if (usage.completion_tokens == 0) return;  // it never got to a first token
  impl_->prefill.Observe(usage.prefill_seconds);
  impl_->decode.Observe(usage.decode_seconds);
}

void Metrics::ObserveStep(int batch_tokens, int sequences, double seconds) {
  impl_->step_tokens.Observe(batch_tokens);
  impl_->step.Observe(seconds);
  std::lock_guard lock(impl_->mutex);
  impl_->sequence_steps += sequences;
}

std::string Metrics::Render(const std::optional<EngineStats>& engine, bool per_expert) const {
  Snapshot snapshot;
  snapshot.Gauge("sluice_ready", "1 once the model is loaded.", engine ? 1 : 0);
  if (engine) {
    impl_->AddEngine(*engine, snapshot);
    impl_->AddCompat(*engine, snapshot);
    if (engine->expert_tiers) AddExpertMetrics(*engine->expert_tiers, per_expert, &snapshot);
  }
  impl_->AddProcess(snapshot);
  std::vector<MetricFamily> families = impl_->registry.Collect();
  for (MetricFamily& family : snapshot.Take()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace sluice
