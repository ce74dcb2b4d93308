// Bit-nested matrices beside the rooflines: one or a few tokens over far more matrices than the
// caches hold, against the read bandwidth; many tokens over one warm matrix, against the 8-bit dot
// product from registers. Every figure is a median.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "tests/bench/kernel_bench.h"

namespace sluice::cpu {
namespace {

constexpr int kRows = 1024;
constexpr int kCols = 2048;

struct Kind {
  const char* name;
  ScaleKind scales;
  int group;
};
constexpr Kind kKinds[] = {{"F16", ScaleKind::kF16, 32},
                           {"U8Min", ScaleKind::kU8Min, 32},
                           {"U8Min16", ScaleKind::kU8Min, 16},
                           {"I8/16", ScaleKind::kI8, 16}};

// A matrix whose planes follow one another at `at`, used by every thread in turn.
NestedMatmulArgs ArgsAt(uint8_t* at, NestedFormat format, int planes, int tokens,
                        const void* packed, float* y) {
  NestedMatmulArgs args = {};
  args.format = format;
  args.level = DefaultNestedLevel(format, planes);
  args.planes = planes;
  for (int i = 0; i < planes; ++i) {
    args.plane[i] = reinterpret_cast<std::byte*>(at);
    at += NestedPlaneBytes(format, kRows, kCols, i);
  }
  args.x = packed;
  args.tokens = tokens;
  args.cols = kCols;
  args.rows = kRows;
  args.y = y;
  args.y_stride = kRows;
  return args;
}

// Each thread its share of the panels of every matrix, in one parallel region.
void Multiply(Bench& b, const NestedMatmulArgs* matrices, size_t count,
              const std::vector<std::unique_ptr<Arena>>& scratch) {
  b.pool.Run([&](int worker) {
    const int panels = PanelCount(kRows);
    for (size_t m = 0; m < count; ++m) {
      NestedMatmulArgs args = matrices[m];
      args.panel_begin = panels * worker / b.threads;
      args.panel_end = panels * (worker + 1) / b.threads;
      args.scratch = scratch[worker]->data();
      for (int i = 0; m + 1 < count && i < args.planes; ++i) {
        args.next[i] = matrices[m + 1].plane[i] + NestedPanelBytes(args.format, kCols, i) *
                                                      static_cast<size_t>(args.panel_begin);
      }
      b.ops->nested_matmul(args);
    }
  });
}

struct Inputs {
  Inputs(Bench& b, int tokens)
      : y(static_cast<size_t>(tokens) * kRows),
        packed(b.ops->nested_activation_bytes(tokens, kCols)) {
    const std::vector<float> x(static_cast<size_t>(tokens) * kCols, 0.5f);
    b.ops->nested_pack_activations(x.data(), kCols, nullptr, tokens, kCols, packed.data());
  }
  std::vector<float> y;
  Arena packed;
};

std::vector<std::unique_ptr<Arena>> Scratch(const Bench& b) {
  std::vector<std::unique_ptr<Arena>> scratch;
  for (int i = 0; i < b.threads; ++i) {
    scratch.push_back(std::make_unique<Arena>(NestedScratchBytes(kCols)));
  }
  return scratch;
}

}  // namespace

void BenchNestedStream(Bench& b) {
  const size_t total = size_t{512} << 20;
  const Arena arena(total);
  const auto scratch = Scratch(b);
  for (const Kind& kind : kKinds) {
    const NestedFormat format = {kind.scales, static_cast<uint8_t>(kind.group), 8};
    for (int planes = 1; planes <= 5; ++planes) {
      const size_t bytes = NestedBytes(format, kRows, kCols, planes);
      const size_t matrices = (size_t{24} << 20) / bytes;
      const size_t window = matrices * bytes, windows = total / window;
      for (const int tokens : {1, 2, 4}) {
        if (tokens > 1 && kind.group == 16) continue;
        Inputs inputs(b, tokens);
        std::vector<NestedMatmulArgs> args;
        for (size_t m = 0; m < matrices * windows; ++m) {
          args.push_back(ArgsAt(arena.data() + m * bytes, format, planes, tokens,
                                inputs.packed.data(), inputs.y.data()));
        }
        size_t read_at = 0, multiply_at = windows / 2;
        const auto median = b.Median(
            {[&] { b.ReadAll(arena.data() + read_at++ % windows * window, window); },
             [&] { Multiply(b, &args[multiply_at++ % windows * matrices], matrices, scratch); }},
            b.rounds);
        const double gigabytes = static_cast<double>(window) * 1e-9;
        std::printf(
            "nested stream %-7s precision %d tokens %d: read %5.1f GB/s, matmul %5.1f GB/s = "
            "%3.0f%%\n",
            kind.name, NestedPrecision(8, planes), tokens, gigabytes / median[0],
            gigabytes / median[1], 100 * median[0] / median[1]);
      }
    }
  }
}

void BenchNestedMatmul(Bench& b) {
  const Arena arena(size_t{8} << 20);
  const auto scratch = Scratch(b);
  for (const Kind& kind : kKinds) {
    const NestedFormat format = {kind.scales, static_cast<uint8_t>(kind.group), 8};
    for (const int planes : {1, 3, 5}) {
      for (const int tokens : {1, 2, 3, 4, 8, 12, 16, 32, 64, 512}) {
        Inputs inputs(b, tokens);
        // Often enough that waking the workers does not show.
        const std::vector<NestedMatmulArgs> args(
            std::max(1, 256 / tokens),
            ArgsAt(arena.data(), format, planes, tokens, inputs.packed.data(), inputs.y.data()));
        int64_t peak_macs = 0;
        const auto median = b.Median({[&] {
                                        float sink = 0;
                                        peak_macs = b.ops->nested_peak_macs(20000, &sink);
                                      },
                                      [&] { Multiply(b, args.data(), args.size(), scratch); }},
                                     b.rounds);
        const double macs = static_cast<double>(kRows) * kCols * tokens *
                            static_cast<double>(args.size()) / median[1];
        const double peak = static_cast<double>(peak_macs) / median[0] * b.threads;
        std::printf("nested matmul %-7s precision %d tokens %3d: %6.1f of %6.1f GMAC/s = %3.0f%%\n",
                    kind.name, NestedPrecision(8, planes), tokens, macs * 1e-9, peak * 1e-9,
                    100 * macs / peak);
      }
    }
  }
}

}  // namespace sluice::cpu
