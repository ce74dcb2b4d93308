// Measures the kernels against this machine's own rooflines, taken in the same run and interleaved
// with what they bound: bandwidth from Ops::read_stream, arithmetic from Ops::peak_macs.
//
//   bench_kernels [--isa NAME] [--threads N] [--rounds N] [--dtype BF16|F16|F32|Q8]
//                 [stream|matmul|nested_stream|nested_matmul|attention|small|pool]...
//
// Every figure is the best of the rounds, so that other load on the machine disturbs it least
// (attention of one token, nested_stream and nested_matmul: the median); each round measures the
// roofline and the kernel one after the other.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/bench/kernel_bench.h"

namespace sluice::cpu {
namespace {

// Matrices in a row, walked in windows that come round again only after 512 MB: what a decode step
// does with experts. Each window is read once by the probe and once, later, by the matmul.
void BenchStream(Bench& b) {
  const size_t total = size_t{512} << 20;
  const Arena arena(total);
  for (const DType dtype : b.dtypes) {
    for (const auto& shape :
         {std::pair(768, 2048), {2048, 768}, {2048, 2048}, {4096, 4096}, {50304, 2048}}) {
      const int rows = shape.first, cols = shape.second;
      const size_t bytes = PackedMatrixBytes(dtype, rows, cols);
      const int matrices = std::max(1, static_cast<int>((size_t{24} << 20) / bytes));
      const size_t window = matrices * bytes;
      const size_t windows = total / window;
      if (windows < 2) continue;
      for (const int tokens : {1, 2, 4, 8}) {
        if (tokens > 1 && (dtype != DType::kBF16 || rows != 768)) continue;
        std::vector<float> x(static_cast<size_t>(tokens) * cols, 0.5f);
        std::vector<float> y(static_cast<size_t>(tokens) * rows);
        const Arena packed(b.ops->activation_bytes(dtype, tokens, cols));
        b.ops->pack_activations(dtype, x.data(), cols, nullptr, tokens, cols, packed.data());
        size_t read_at = 0, multiply_at = windows / 2;
        const auto read = [&] { b.ReadAll(arena.data() + read_at++ % windows * window, window); };
        const auto multiply = [&] {
          const uint8_t* weights = arena.data() + multiply_at++ % windows * window;
          for (int m = 0; m < matrices; ++m) {
            const int panels = PanelCount(rows);
            const int grain = std::max(4, (panels / b.threads + 3) / 4 * 4);
            b.pool.ParallelFor(panels, grain, [&](int64_t begin, int64_t end) {
              b.ops->matmul({dtype, weights + m * bytes, packed.data(), tokens, cols,
                             static_cast<int>(begin), static_cast<int>(end), rows, nullptr,
                             y.data(), rows});
            });
          }
        };
        const auto best = b.Best({read, multiply}, b.rounds * 20);
        const double gigabytes = static_cast<double>(window) * 1e-9;
        std::printf(
            "stream %-4s %5d x %-5d tokens %2d: read %6.1f GB/s, matmul %6.1f GB/s = %3.0f%%\n",
            DTypeName(dtype), rows, cols, tokens, gigabytes / best[0], gigabytes / best[1],
            100 * best[0] / best[1]);
      }
    }
  }
}

// One matrix, warm; packing the activations included.
void BenchMatmul(Bench& b) {
  for (const DType dtype : b.dtypes) {
    const double peak = b.PeakMacsPerSecond(dtype);
    std::printf("peak %-4s: %.1f GMAC/s\n", DTypeName(dtype), peak * 1e-9);
    for (const auto& shape : {std::pair(768, 2048), {2048, 768}, {2048, 2048}}) {
      const int rows = shape.first, cols = shape.second;
      const Arena weights(PackedMatrixBytes(dtype, rows, cols));
      for (const int tokens : {1, 2, 4, 6, 8, 12, 16, 32, 64, 128, 512}) {
        if (dtype != DType::kBF16 && tokens != 1 && tokens != 8 && tokens != 512) continue;
        std::vector<float> x(static_cast<size_t>(tokens) * cols, 0.5f);
        std::vector<float> y(static_cast<size_t>(tokens) * rows);
        const Arena packed(b.ops->activation_bytes(dtype, tokens, cols));
        float sink = 0;
        int64_t peak_macs = 0;
        double pack_s = 1e30;
        const auto best = b.Best(
            {[&] { peak_macs = b.ops->peak_macs(dtype, 20000, &sink); },
             [&] {
               const double start = Now();
               b.ops->pack_activations(dtype, x.data(), cols, nullptr, tokens, cols, packed.data());
               pack_s = std::min(pack_s, Now() - start);
               const int panels = PanelCount(rows);
               const int grain = std::max(4, (panels / b.threads + 3) / 4 * 4);
               b.pool.ParallelFor(panels, grain, [&](int64_t begin, int64_t end) {
                 b.ops->matmul({dtype, weights.data(), packed.data(), tokens, cols,
                                static_cast<int>(begin), static_cast<int>(end), rows, nullptr,
                                y.data(), rows});
               });
             }},
            b.rounds * 10);
        const double macs = static_cast<double>(rows) * cols * tokens;
        const double bound = static_cast<double>(peak_macs) / best[0] * b.threads;
        std::printf(
            "matmul %-4s %4d x %-4d tokens %3d: %7.1f GMAC/s = %3.0f%% of peak, %6.1f GB/s, pack "
            "%4.1f%%\n",
            DTypeName(dtype), rows, cols, tokens, macs / best[1] * 1e-9,
            100 * macs / best[1] / bound,
            static_cast<double>(PackedMatrixBytes(dtype, rows, cols)) / best[1] * 1e-9,
            100 * pack_s / best[1]);
      }
    }
  }
}

// Shapes of a small model: the cost of a call.
void BenchSmall(Bench& b) {
  for (const auto& shape : {std::pair(96, 192), {192, 96}, {576, 192}, {4096, 192}}) {
    const int rows = shape.first, cols = shape.second;
    const Arena weights(PackedMatrixBytes(DType::kBF16, rows, cols));
    for (const int tokens : {1, 4, 16}) {
      std::vector<float> x(static_cast<size_t>(tokens) * cols, 0.5f);
      std::vector<float> y(static_cast<size_t>(tokens) * rows);
      const Arena packed(b.ops->activation_bytes(DType::kBF16, tokens, cols));
      const int calls = 200;
      const auto best =
          b.Best({[&] {
                    for (int i = 0; i < calls; ++i) {
                      b.ops->pack_activations(DType::kBF16, x.data(), cols, nullptr, tokens, cols,
                                              packed.data());
                    }
                  },
                  [&] {
                    for (int i = 0; i < calls; ++i) {
                      b.ops->matmul({DType::kBF16, weights.data(), packed.data(), tokens, cols, 0,
                                     PanelCount(rows), rows, nullptr, y.data(), rows});
                    }
                  }},
                 b.rounds * 3);
      const double per_call = best[1] / calls;
      std::printf(
          "small BF16 %4d x %-3d tokens %2d: pack %6.0f ns, matmul %7.0f ns, %6.1f GB/s, %6.1f "
          "GMAC/s\n",
          rows, cols, tokens, best[0] / calls * 1e9, per_call * 1e9,
          static_cast<double>(PackedMatrixBytes(DType::kBF16, rows, cols)) / per_call * 1e-9,
          static_cast<double>(rows) * cols * tokens / per_call * 1e-9);
    }
  }
}

void BenchAttention(Bench& b) {
  struct Shape {
    const char* what;
    int kv_heads, group, head_dim, tokens, context;
  };
  for (const KvDType dtype : b.kv_dtypes) {
    for (const Shape& s :
         {Shape{"decode", 4, 8, 128, 1, 4096}, Shape{"decode", 8, 4, 128, 1, 4096},
          Shape{"decode", 16, 1, 128, 1, 4096}, Shape{"decode", 1, 8, 128, 1, 32768},
          Shape{"decode", 2, 4, 128, 1, 32768}, Shape{"decode", 4, 1, 128, 1, 32768},
          Shape{"decode", 2, 4, 32, 1, 512}, Shape{"prefill", 4, 8, 128, 64, 1024},
          Shape{"prefill", 16, 1, 128, 64, 1024}, Shape{"prefill", 2, 4, 32, 64, 512}}) {
      const int blocks = (s.context + 15) / 16;
      const size_t k_bytes = s.kv_heads * KvKeyBytes(dtype, s.head_dim);
      const size_t block_bytes = k_bytes + s.kv_heads * KvValueBytes(dtype, s.head_dim);
      const size_t bytes = blocks * block_bytes;
      // Enough copies that decode finds nothing in the caches.
      const int copies = s.tokens == 1 ? static_cast<int>((size_t{192} << 20) / bytes) + 1 : 1;
      const Arena arena(bytes * copies);
      std::vector<int32_t> table(static_cast<size_t>(blocks) * copies);
      for (int copy = 0; copy < copies; ++copy) {
        for (int i = 0; i < blocks; ++i) {
          // Scattered within the copy: 7919 is a prime that no block count here is a multiple of.
          table[static_cast<size_t>(copy) * blocks + i] = copy * blocks + i * 7919 % blocks;
        }
      }
      const int rows = s.group * s.tokens;
      std::vector<float> q(static_cast<size_t>(rows) * s.kv_heads * s.head_dim, 0.01f);
      std::vector<float> out(q.size());
      std::vector<int32_t> first(rows, 0), context;
      std::vector<ptrdiff_t> offsets;
      for (int t = 0; t < s.tokens; ++t) {
        for (int g = 0; g < s.group; ++g) {
          context.push_back(s.context - s.tokens + 1 + t);
          offsets.push_back((static_cast<ptrdiff_t>(t) * s.kv_heads * s.group + g) * s.head_dim);
        }
      }
      // Decode is cut into parts of the context as CpuBackend does where kv heads are few.
      const int parts = AttentionParts(s.context);
      const bool cut = s.tokens == 1 && parts > 1 && s.kv_heads < 8 * b.threads;
      const int step = std::max(1, parts * s.kv_heads / (8 * b.threads));
      const int pieces = cut ? (parts + step - 1) / step : 1;
      const size_t partial_floats = AttentionPartialFloats(s.head_dim) * rows * parts;
      std::vector<float> partials(cut ? partial_floats * s.kv_heads : 0);
      const auto args_of = [&](int at, int64_t head) {
        AttentionArgs args = {};
        args.kv_dtype = dtype;
        args.k_cache = arena.data();
        args.v_cache = arena.data() + k_bytes;
        args.k_block_bytes = args.v_block_bytes = block_bytes;
        args.blocks = table.data() + static_cast<size_t>(at) * blocks;
        args.head_dim = s.head_dim;
        args.kv_head = static_cast<int>(head);
        args.rows = rows;
        args.q = q.data() + head * s.group * s.head_dim;
        args.out = out.data() + head * s.group * s.head_dim;
        args.q_offsets = offsets.data();
        args.first_visible = first.data();
        args.context = context.data();
        args.scale = 0.1f;
        if (cut) args.partials = partials.data() + static_cast<size_t>(head) * partial_floats;
        args.parts = parts;
        return args;
      };
      // One copy at a time: short measurements find quiet moments on a busy machine.
      int copy = 0, read_copy = copies / 2;
      const auto attend = [&] {
        copy = (copy + 1) % copies;
        b.pool.ParallelFor(int64_t{s.kv_heads} * pieces, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            AttentionArgs args = args_of(copy, i / pieces);
            args.part_begin = static_cast<int>(i % pieces) * step;
            args.part_end = std::min(parts, args.part_begin + step);
            b.ops->attention(args);
          }
        });
        for (int head = 0; cut && head < s.kv_heads; ++head) {
          b.ops->merge_attention(args_of(copy, head));
        }
      };
      const auto read = [&] {
        read_copy = (read_copy + 1) % copies;
        b.ReadAll(arena.data() + read_copy * bytes, bytes / 4096 * 4096);
      };
      float sink = 0;
      int64_t peak_macs = 0;
      // Q8: the 8-bit products of one of its two passes (attention_q8-inl.h).
      const auto multiply = [&] {
        peak_macs = dtype == KvDType::kQ8 ? b.ops->nested_peak_macs(20000, &sink)
                                          : b.ops->peak_macs(DType::kF32, 20000, &sink);
      };
      // The best read of memory may have found some of it in a cache: decode takes the median.
      const auto best =
          b.Quantile(s.tokens == 1 ? 0.5 : 0, {read, attend, multiply}, b.rounds * 30);
      const double peak = static_cast<double>(peak_macs) / best[2];
      double keys = 0;
      for (const int c : context) keys += c;
      const double macs = keys * s.kv_heads * 2 * s.head_dim;
      std::printf(
          "attention %-4s %-7s kv heads %2d x %d, head_dim %3d, context %5d: %8.1f us/call, "
          "%5.1f GB/s = %3.0f%% of read, %5.1f GMAC/s = %3.0f%% of peak\n",
          KvDTypeName(dtype), s.what, s.kv_heads, s.group, s.head_dim, s.context, best[1] * 1e6,
          static_cast<double>(bytes) / best[1] * 1e-9, 100 * best[0] / best[1],
          macs / best[1] * 1e-9, 100 * macs / best[1] / (peak * b.threads));
    }
  }
}

void BenchPool(Bench& b) {
  const int regions = 20000;
  const auto best = b.Best({[&] {
                              for (int i = 0; i < regions; ++i) b.pool.Run([](int) {});
                            },
                            [&] {
                              for (int i = 0; i < regions; ++i) {
                                b.pool.ParallelFor(b.threads * 4, 1, [](int64_t, int64_t) {});
                              }
                            }},
                           b.rounds);
  std::printf("pool %d threads: Run %.0f ns, ParallelFor of %d pieces %.0f ns\n", b.threads,
              best[0] / regions * 1e9, b.threads * 4, best[1] / regions * 1e9);
}

int Main(int argc, char** argv) {
  Isa isa = Isa::kAuto;
  int threads = UsableCores();
  int rounds = 15;
  std::set<std::string> wanted;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool more = i + 1 < argc;
    if (arg == "--isa" && more) {
      if (!ParseIsa(argv[++i], &isa)) {
        std::fprintf(stderr, "unknown instruction set %s\n", argv[i]);
        return 2;
      }
    } else if (arg == "--threads" && more) {
      threads = std::clamp(std::atoi(argv[++i]), 1, 64);
    } else if (arg == "--rounds" && more) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--dtype" && more) {
      only = argv[++i];
    } else {
      wanted.insert(arg);
    }
  }
  const Ops* ops = SelectOps(isa);
  if (ops == nullptr) {
    std::fprintf(stderr, "this CPU cannot run that instruction set\n");
    return 2;
  }
  Bench bench{ops, threads, rounds, ThreadPool(threads, true)};
  if (!only.empty()) {
    std::erase_if(bench.dtypes, [&](DType dtype) { return only != DTypeName(dtype); });
    std::erase_if(bench.kv_dtypes, [&](KvDType dtype) { return only != KvDTypeName(dtype); });
  }
  ThreadPool::PinCaller();
  std::printf("isa %s, %d threads\n", ops->name, threads);
  const struct {
    const char* name;
    void (*run)(Bench&);
  } kSections[] = {{"stream", BenchStream},
                   {"matmul", BenchMatmul},
                   {"nested_stream", BenchNestedStream},
                   {"nested_matmul", BenchNestedMatmul},
                   {"small", BenchSmall},
                   {"attention", BenchAttention},
                   {"pool", BenchPool}};
  for (const auto& section : kSections) {
    if (wanted.empty() || wanted.count(section.name) != 0) section.run(bench);
  }
  return 0;
}

}  // namespace
}  // namespace sluice::cpu

int main(int argc, char** argv) { return sluice::cpu::Main(argc, argv); }
