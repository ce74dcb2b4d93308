// Where a forward pass spends its time: milliseconds by op for a prefill and for decoding, beside
// the machine's read bandwidth and arithmetic peak. A profile to be read by people, not a test.
//
//   bench_model DIRECTORY [prompt=512] [decode steps=64] [threads=0] [isa=auto] [streams=1]
//   [prefills=5]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/transformer.h"
#include "engine/tensor/cpu_backend.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/support/forwarding_backend.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

enum Op { kEmbed, kQkv, kRope, kAttention, kOutput, kRouter, kTopK, kMlp, kCombine, kHead, kOps };
constexpr const char* kOpNames[kOps] = {"embed",  "qkv",   "rope+kv", "attention", "o_proj",
                                        "router", "top-k", "experts", "combine",   "head"};

// A backend that times the calls it passes on.
class TimedBackend final : public ForwardingBackend {
 public:
  explicit TimedBackend(std::unique_ptr<Backend> backend, double* seconds)
      : ForwardingBackend(std::move(backend)), seconds_(seconds) {}

  void Embed(const EmbeddingTable& table, std::span<const int32_t> ids, float* out) override {
    Time(kEmbed, [&] { backend_->Embed(table, ids, out); });
  }
  void Linear(const LinearArgs& args) override {
    Op op = kHead;
    if (args.outputs.size() == 3) op = kQkv;
    if (args.normed != nullptr) op = kRouter;
    if (args.outputs.size() == 1 && args.outputs[0].add) op = kOutput;
    Time(op, [&] { backend_->Linear(args); });
  }
  void RopeCache(const RopeCacheArgs& args) override {
    Time(kRope, [&] { backend_->RopeCache(args); });
  }
  void Attention(const PagedAttentionArgs& args) override {
    Time(kAttention, [&] { backend_->Attention(args); });
  }
  void TopK(const TopKArgs& args) override {
    Time(kTopK, [&] { backend_->TopK(args); });
  }
  void Mlp(const MlpArgs& args) override {
    Time(kMlp, [&] { backend_->Mlp(args); });
  }
  void Combine(const CombineArgs& args) override {
    Time(kCombine, [&] { backend_->Combine(args); });
  }

 private:
  template <class F>
  void Time(Op op, F&& f) {
    const auto start = Clock::now();
    f();
    seconds_[op] += Seconds(start);
  }

  double* seconds_;
};

// Best of several, since other work shares the machine.
double ReadBandwidth(const cpu::Ops* ops, cpu::ThreadPool& pool) {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr int64_t kPiece = 1 << 20;
  auto buffer = DeviceBuffer::Host(kBytes, "bandwidth test");
  if (!buffer) return 0;
  std::fill_n(buffer->as<char>(), kBytes, 1);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = Clock::now();
    pool.ParallelFor(kBytes / kPiece, 1, [&](int64_t begin, int64_t end) {
      ops->read_stream(buffer->as<char>() + begin * kPiece,
                       static_cast<size_t>((end - begin) * kPiece));
    });
    best = std::min(best, Seconds(start));
  }
  return kBytes / best;
}

double PeakMacs(const cpu::Ops* ops, cpu::ThreadPool& pool, DType dtype) {
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    std::vector<int64_t> macs(pool.threads() * 16);
    const auto start = Clock::now();
    pool.Run([&](int worker) {
      float sink = 0;
      macs[worker * 16] = ops->peak_macs(dtype, 2000000, &sink);
    });
    const double seconds = Seconds(start);
    int64_t total = 0;
    for (int64_t n : macs) total += n;
    best = std::max(best, static_cast<double>(total) / seconds);
  }
  return best;
}

struct Timing {
  double seconds = 1e9;  // of the fastest step
  double median = 0;
  double ops[kOps] = {};  // of the fastest step
};

template <class F>
Timing Measure(int repeats, double* op_seconds, F&& step) {
  Timing timing;
  std::vector<double> all;
  for (int i = 0; i < repeats; ++i) {
    std::fill_n(op_seconds, kOps, 0.0);
    const auto start = Clock::now();
    step(i);
    const double seconds = Seconds(start);
    all.push_back(seconds);
    if (seconds < timing.seconds) {
      timing.seconds = seconds;
      std::copy_n(op_seconds, kOps, timing.ops);
    }
  }
  std::sort(all.begin(), all.end());
  timing.median = all[all.size() / 2];
  return timing;
}

void Print(const char* title, const Timing& timing, int tokens, double bound_seconds) {
  std::printf("%s: best %.3f ms (%.1f tokens/s), median %.3f ms; bound %.3f ms = %.0f%% / %.0f%%\n",
              title, timing.seconds * 1e3, tokens / timing.seconds, timing.median * 1e3,
              bound_seconds * 1e3, 100 * bound_seconds / timing.seconds,
              100 * bound_seconds / timing.median);
  double sum = 0;
  for (int op = 0; op < kOps; ++op) {
    sum += timing.ops[op];
    std::printf("  %-10s %9.4f ms %5.1f%%\n", kOpNames[op], timing.ops[op] * 1e3,
                100 * timing.ops[op] / timing.seconds);
  }
  std::printf("  %-10s %9.4f ms %5.1f%%\n", "between", (timing.seconds - sum) * 1e3,
              100 * (timing.seconds - sum) / timing.seconds);
}

int Main(int argc, char** argv) {
  const auto argument = [&](int i, int fallback) {
    return argc > i ? std::atoi(argv[i]) : fallback;
  };
  const int prompt = argument(2, 512);
  const int steps = argument(3, 64);
  const int threads = argument(4, 0) > 0 ? argument(4, 0) : cpu::UsableCores();
  cpu::Isa isa = cpu::Isa::kAuto;
  if (argc < 2 || (argc > 5 && !cpu::ParseIsa(argv[5], &isa)) || cpu::SelectOps(isa) == nullptr) {
    std::fprintf(
        stderr,
        "usage: bench_model DIRECTORY [prompt] [steps] [threads] [isa] [streams] [prefills]\n");
    return 2;
  }
  const int streams = argument(6, 1);
  const cpu::Ops* ops = cpu::SelectOps(isa);

  double op_seconds[kOps] = {};
  const int blocks = (prompt + steps) / kKvBlockTokens + 2;
  ModelOptions options;
  options.max_batch_tokens = std::max(prompt, streams);
  options.max_sequences = streams;
  options.max_context = prompt + steps + 16;
  options.kv_blocks = blocks * streams;
  auto model = LoadTransformer(argv[1], options,
                               std::make_unique<TimedBackend>(
                                   std::make_unique<CpuBackend>(ops, threads, false), op_seconds));
  if (!model) {
    std::fprintf(stderr, "%s\n", model.error().message.c_str());
    return 1;
  }
  const ModelConfig& config = (*model)->config();
  const ModelFootprint footprint = (*model)->footprint();

  cpu::ThreadPool pool(threads);
  const double bandwidth = ReadBandwidth(ops, pool);
  const double macs = PeakMacs(ops, pool, (*model)->weight_dtype());
  std::printf("%s, %d threads: reads %.1f GB/s, %s peak %.1f GMAC/s\n", ops->name, threads,
              bandwidth / 1e9, DTypeName((*model)->weight_dtype()), macs / 1e9);
  std::printf("weights %.1f MB, arena %.1f MB, dense %.2f MB per token, expert %.3f MB\n",
              footprint.weight_bytes / 1e6, footprint.arena_bytes / 1e6,
              footprint.dense_bytes_per_token / 1e6, footprint.expert_bytes / 1e6);

  uint32_t random = 1;
  const auto token = [&] {
    random = random * 1664525u + 1013904223u;
    return static_cast<int32_t>((random >> 8) % static_cast<uint32_t>(config.vocab));
  };
  std::vector<std::vector<int32_t>> tables(streams);
  for (int s = 0; s < streams; ++s) {
    for (int b = 0; b < blocks; ++b) tables[s].push_back(s * blocks + b);
  }
  std::vector<int32_t> tokens(prompt);
  const Timing prefill = Measure(argument(7, 5), op_seconds, [&](int i) {
    for (int32_t& t : tokens) t = token();
    const SequenceChunk chunk = {tokens, 0, tables[i % streams], LogitRows::kLast};
    (*model)->Forward({&chunk, 1});
  });
  const double prefill_macs =
      static_cast<double>(footprint.dense_macs_per_token + footprint.expert_macs_per_token) *
          prompt -
      static_cast<double>(footprint.logit_row_macs) * (prompt - 1);
  Print("prefill", prefill, prompt, prefill_macs / macs);

  std::vector<int32_t> next(streams);
  std::vector<SequenceChunk> chunks(streams);
  double unique = 0;
  const Timing decode = Measure(steps, op_seconds, [&](int i) {
    for (int s = 0; s < streams; ++s) {
      next[s] = token();
      chunks[s] = {{&next[s], 1}, prompt + i, tables[s], LogitRows::kLast};
    }
    (*model)->Forward(chunks);
    unique += static_cast<double>((*model)->last_stats().unique_experts);
  });
  const double bytes =
      static_cast<double>(footprint.dense_bytes_per_token) +
      unique / steps * static_cast<double>(footprint.expert_bytes) +
      static_cast<double>(footprint.kv_bytes_per_block) * streams * (prompt / kKvBlockTokens);
  Print("decode", decode, streams, bytes / bandwidth);
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
