// y = x W^T + bias over packed panels (layouts in ops.h), one thread, any number of tokens.
//
// One register tile is P panels by T tokens: P * T accumulators, each a Vec over the 16 rows of a
// panel, each walking k upwards alone. A tile differs from another only in which outputs it holds,
// so results do not depend on the tiling.
//
// Activations are packed tile by tile: [token tile][k][token of the tile], F32, or pairs of Bf16
// when the CPU has Bf16 dot products and the weights are Bf16. The tokens are spread evenly over
// the fewest tiles of at most kMatmulMaxTile, so that broadcasts are contiguous.
//
// Bound: up to about 6 tokens, bytes: every panel is read once, in groups of four panels that are
// four independent streams and dependency chains, prefetched kPrefetchBytes ahead and across the
// end of a panel into the next group. With more tokens, multiply-accumulates: a group of panels
// stays in L2 while all token tiles pass over it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"
#include "kernels/cpu/ops.h"

SLUICE_BEGIN_ISA

constexpr int kGroupPanels = 4;
constexpr size_t kPrefetchBytes = 1024;

// A format says how one step of the k loop reads weights and activations. A step takes kSubSteps
// multiply-accumulates; activations of a step are kSubSteps * kElementsPerSub elements per token.
struct F32Format {
  using Weight = float;
  using Activation = float;
  static constexpr int kSubSteps = 1;
  static constexpr int kElementsPerSub = 1;
  template <int sub>
  static SLUICE_INLINE Vec LoadWeights(const Weight* w) {
    return Load(w);
  }
  static SLUICE_INLINE Vec Broadcast(const Activation* x) { return Set(*x); }
  static SLUICE_INLINE Vec Mac(Vec w, Vec x, Vec sum) { return Fma(w, x, sum); }
};
struct F16Format : F32Format {
  using Weight = F16;
  template <int sub>
  static SLUICE_INLINE Vec LoadWeights(const Weight* w) {
    return Load(w);
  }
};
// Bf16 weights without a dot instruction: the even k of a pair, then the odd one.
struct Bf16WidenFormat : F32Format {
  using Weight = Bf16;
  static constexpr int kSubSteps = 2;
  template <int sub>
  static SLUICE_INLINE Vec LoadWeights(const Weight* w) {
    if constexpr (sub == 0) return LoadEven(w);
    return LoadOdd(w);
  }
};
#if defined(__AVX512BF16__)
struct Bf16DotFormat {
  using Weight = Bf16;
  using Activation = Bf16;
  static constexpr int kSubSteps = 1;
  static constexpr int kElementsPerSub = 2;
  template <int sub>
  static SLUICE_INLINE Bf16Pairs LoadWeights(const Weight* w) {
    return LoadPairs(w);
  }
  static SLUICE_INLINE Bf16Pairs Broadcast(const Activation* x) { return BroadcastPair(x); }
  static SLUICE_INLINE Vec Mac(Bf16Pairs w, Bf16Pairs x, Vec sum) { return DotPairs(w, x, sum); }
};
using Bf16Format = Bf16DotFormat;
#else
using Bf16Format = Bf16WidenFormat;
#endif

template <class Format>
constexpr int kElementsPerStep = Format::kSubSteps* Format::kElementsPerSub;
template <class Format>
SLUICE_INLINE int Steps(int cols) {
  return (cols + kElementsPerStep<Format> - 1) / kElementsPerStep<Format>;
}

// How tokens are spread over tiles: the first `wide` tiles hold base + 1 tokens, the rest base.
struct Tiling {
  int tiles;
  int base;
  int wide;
  SLUICE_INLINE int First(int tile) const { return tile * base + (tile < wide ? tile : wide); }
  SLUICE_INLINE int Size(int tile) const { return base + (tile < wide ? 1 : 0); }
};
SLUICE_INLINE Tiling TileTokens(int tokens) {
  const int tiles = (tokens + kMatmulMaxTile - 1) / kMatmulMaxTile;
  return {tiles, tokens / tiles, tokens % tiles};
}

template <class Format>
struct MatmulShape {
  const typename Format::Weight* weights;  // the first panel of the tile
  size_t panel_elements;
  int steps;
  int near_steps;      // steps whose prefetch stays in the same panel
  size_t near_offset;  // prefetch distance for those, in elements
  size_t far_offset;   // and for the rest, which fetch the next group's panels
};

template <class Format, int P, int T>
SLUICE_INLINE void TileSteps(const MatmulShape<Format>& shape, int begin, int end,
                             size_t prefetch_offset, const typename Format::Activation* x,
                             Vec (&sum)[P][T]) {
  constexpr int kWeightsPerStep = kPanelRows * kElementsPerStep<Format>;
  const typename Format::Weight* w = shape.weights + static_cast<size_t>(begin) * kWeightsPerStep;
  x += static_cast<size_t>(begin) * (kElementsPerStep<Format> * T);
  for (int s = begin; s < end; ++s) {
    SLUICE_UNROLL(8)
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(w + p * shape.panel_elements + prefetch_offset);
    }
    const auto macs = [&]<int sub>() __attribute__((always_inline)) {
      decltype(Format::template LoadWeights<0>(w)) weights[P];
      SLUICE_UNROLL(8)
      for (int p = 0; p < P; ++p) {
        weights[p] = Format::template LoadWeights<sub>(w + p * shape.panel_elements);
      }
      SLUICE_UNROLL(16)
      for (int t = 0; t < T; ++t) {
        const auto a = Format::Broadcast(x + (sub * T + t) * Format::kElementsPerSub);
        SLUICE_UNROLL(8)
        for (int p = 0; p < P; ++p) sum[p][t] = Format::Mac(weights[p], a, sum[p][t]);
      }
    };
    macs.template operator()<0>();
    if constexpr (Format::kSubSteps == 2) macs.template operator()<1>();
    w += kWeightsPerStep;
    x += kElementsPerStep<Format> * T;
  }
}

template <class Format, int P, int T>
void Tile(const MatmulArgs& args, const MatmulShape<Format>& shape,
          const typename Format::Activation* x, int panel, int token) {
  Vec sum[P][T];
  SLUICE_UNROLL(8)
  for (int p = 0; p < P; ++p) {
    SLUICE_UNROLL(16)
    for (int t = 0; t < T; ++t) sum[p][t] = Set(0.0f);
  }
  TileSteps<Format, P, T>(shape, 0, shape.near_steps, shape.near_offset, x, sum);
  TileSteps<Format, P, T>(shape, shape.near_steps, shape.steps, shape.far_offset, x, sum);
  SLUICE_UNROLL(8)
  for (int p = 0; p < P; ++p) {
    const int row = (panel + p) * kPanelRows;
    const int rows = args.rows - row < kPanelRows ? args.rows - row : kPanelRows;
    if (rows <= 0) break;
    float* y = args.y + token * args.y_stride + row;
    if (rows == kPanelRows) {
      const Vec bias = args.bias != nullptr ? Load(args.bias + row) : Set(0.0f);
      SLUICE_UNROLL(16)
      for (int t = 0; t < T; ++t) {
        Store(y + t * args.y_stride, args.bias != nullptr ? Add(sum[p][t], bias) : sum[p][t]);
      }
    } else {
      const Vec bias = args.bias != nullptr ? LoadN(args.bias + row, rows) : Set(0.0f);
      SLUICE_UNROLL(16)
      for (int t = 0; t < T; ++t) {
        StoreN(y + t * args.y_stride, args.bias != nullptr ? Add(sum[p][t], bias) : sum[p][t],
               rows);
      }
    }
  }
}

// All of a group's panels for one token tile, at most as many at once as there are accumulators.
template <class Format, int T>
void GroupTile(const MatmulArgs& args, MatmulShape<Format> shape,
               const typename Format::Activation* x, int panel, int panels, int token) {
  if constexpr (4 * T <= kMatmulAccumulators) {
    if (panels == 4) return Tile<Format, 4, T>(args, shape, x, panel, token);
  }
  if constexpr (2 * T <= kMatmulAccumulators) {
    for (; panels >= 2; panels -= 2, panel += 2) {
      Tile<Format, 2, T>(args, shape, x, panel, token);
      shape.weights += 2 * shape.panel_elements;
    }
  }
  for (; panels >= 1; --panels, ++panel) {
    Tile<Format, 1, T>(args, shape, x, panel, token);
    shape.weights += shape.panel_elements;
  }
}

template <class Format, int T = kMatmulMaxTile>
SLUICE_INLINE void GroupTileOf(int tokens, const MatmulArgs& args, const MatmulShape<Format>& shape,
                               const typename Format::Activation* x, int panel, int panels,
                               int token) {
  if constexpr (T > 1) {
    if (tokens != T) {
      return GroupTileOf<Format, T - 1>(tokens, args, shape, x, panel, panels, token);
    }
  }
  GroupTile<Format, T>(args, shape, x, panel, panels, token);
}

template <class Format>
void MatmulAs(const MatmulArgs& args) {
  using Weight = typename Format::Weight;
  using Activation = typename Format::Activation;
  constexpr int kWeightsPerStep = kPanelRows * kElementsPerStep<Format>;
  const Tiling tiling = TileTokens(args.tokens);
  const auto* x = static_cast<const Activation*>(args.x);
  MatmulShape<Format> shape;
  shape.steps = Steps<Format>(args.cols);
  shape.panel_elements = static_cast<size_t>(shape.steps) * kWeightsPerStep;
  const int ahead = static_cast<int>(kPrefetchBytes / (kWeightsPerStep * sizeof(Weight)));
  const int distance = ahead < shape.steps ? ahead : shape.steps;
  shape.near_steps = shape.steps - distance;
  shape.near_offset = static_cast<size_t>(distance) * kWeightsPerStep;

  for (int panel = args.panel_begin; panel < args.panel_end; panel += kGroupPanels) {
    const int left = args.panel_end - panel;
    const int panels = left < kGroupPanels ? left : kGroupPanels;
    shape.weights = static_cast<const Weight*>(args.weights) +
                    static_cast<size_t>(panel) * shape.panel_elements;
    // Past the end of a panel comes the next one, which this group holds already: skip to the
    // next group's. The last group has nothing to fetch.
    shape.far_offset =
        left > kGroupPanels ? shape.near_offset + (kGroupPanels - 1) * shape.panel_elements : 0;
    for (int tile = 0; tile < tiling.tiles; ++tile) {
      const int token = tiling.First(tile);
      const Activation* tile_x =
          x + static_cast<size_t>(token) * shape.steps * kElementsPerStep<Format>;
      GroupTileOf<Format>(tiling.Size(tile), args, shape, tile_x, panel, panels, token);
    }
  }
}

void Matmul(const MatmulArgs& args) {
  switch (args.weight_dtype) {
    case DType::kF32:
      return MatmulAs<F32Format>(args);
    case DType::kF16:
      return MatmulAs<F16Format>(args);
    case DType::kBF16:
      return MatmulAs<Bf16Format>(args);
  }
}

template <class Format>
SLUICE_INLINE size_t ActivationBytesAs(int tokens, int cols) {
  return static_cast<size_t>(tokens) * Steps<Format>(cols) * kElementsPerStep<Format> *
         sizeof(typename Format::Activation);
}
size_t ActivationBytes(DType weight_dtype, int tokens, int cols) {
  switch (weight_dtype) {
    case DType::kF32:
      return ActivationBytesAs<F32Format>(tokens, cols);
    case DType::kF16:
      return ActivationBytesAs<F16Format>(tokens, cols);
    case DType::kBF16:
      break;
  }
  return ActivationBytesAs<Bf16Format>(tokens, cols);
}

// One token of a tile: element k goes to out[k * stride].
SLUICE_INLINE void SpreadToken(const float* x, int cols, int steps_elements, int stride,
                               float* out) {
  if (stride == 1) {
    int k = 0;
    for (; k + 16 <= cols; k += 16) Store(out + k, Load(x + k));
    StoreN(out + k, LoadN(x + k, cols - k), cols - k);
  } else {
    int k = 0;
    for (; k + 4 <= cols; k += 4) {
      SLUICE_UNROLL(4)
      for (int i = 0; i < 4; ++i) out[(k + i) * static_cast<ptrdiff_t>(stride)] = x[k + i];
    }
    for (; k < cols; ++k) out[k * static_cast<ptrdiff_t>(stride)] = x[k];
  }
  for (int k = cols; k < steps_elements; ++k) out[k * static_cast<ptrdiff_t>(stride)] = 0.0f;
}

#if defined(__AVX512BF16__)
// The same for Bf16 pairs: pair j goes to pair j * stride of out.
SLUICE_INLINE void SpreadToken(const float* x, int cols, int steps_elements, int stride,
                               Bf16* out) {
  alignas(64) uint32_t pairs[16];
  Bf16* rounded = reinterpret_cast<Bf16*>(pairs);
  uint32_t* to = reinterpret_cast<uint32_t*>(out);
  for (int k = 0; k < steps_elements; k += 32) {
    const int left = steps_elements - k;
    const int count = left < 32 ? left / 2 : 16;
    const int first = cols - k < 16 ? cols - k : 16;
    const int second = cols - k < 32 ? cols - k - first : 16;
    StorePairs(rounded, RoundPairs(LoadN(x + k, first), LoadN(x + k + 16, second)));
    for (int i = 0; i < count; ++i) __builtin_memcpy(to + i * stride, &pairs[i], 4);
    to += static_cast<ptrdiff_t>(count) * stride;
  }
}
#endif

// Packs the whole units of 32 of a tile's tokens (one row of x each) and returns how many elements
// that makes; 0 where there is no quicker way than token by token.
template <class Activation>
SLUICE_INLINE int SpreadTile(const float* const (&)[16], int, int, Activation*) {
  return 0;
}
#if defined(__AVX512BF16__)
SLUICE_INLINE int SpreadTile(const float* const (&rows)[16], int size, int cols, Bf16* out) {
  static_assert(kMatmulMaxTile <= 16);
  if (size < 4) return 0;
  const int whole = cols / 32 * 32;
  for (int k = 0; k < whole; k += 32) {
    Bf16Pairs pairs[16];
    SLUICE_UNROLL(16)
    for (int t = 0; t < 16; ++t) {
      pairs[t] = RoundPairs(Set(0.0f), Set(0.0f));
      if (t < size) pairs[t] = RoundPairs(Load(rows[t] + k), Load(rows[t] + k + 16));
    }
    // What is written past the end of one unit is overwritten by the next.
    StoreTransposed(out + static_cast<ptrdiff_t>(k) * size, pairs, size, k + 32 == whole);
  }
  return whole;
}
#endif

template <class Format>
void PackActivationsAs(const float* x, ptrdiff_t x_stride, const int32_t* gather, int tokens,
                       int cols, void* packed) {
  auto* out = static_cast<typename Format::Activation*>(packed);
  const Tiling tiling = TileTokens(tokens);
  const int elements = Steps<Format>(cols) * kElementsPerStep<Format>;
  for (int tile = 0; tile < tiling.tiles; ++tile) {
    const int first = tiling.First(tile);
    const int size = tiling.Size(tile);
    const float* rows[16] = {};
    for (int t = 0; t < size; ++t) {
      rows[t] = x + (gather != nullptr ? gather[first + t] : first + t) * x_stride;
    }
    const int done = SpreadTile(rows, size, cols, out);
    if (done < elements) {
      auto* rest = out + static_cast<ptrdiff_t>(done) * size;
      for (int t = 0; t < size; ++t) {
        SpreadToken(rows[t] + done, cols - done, elements - done, size,
                    rest + t * Format::kElementsPerSub);
      }
    }
    out += static_cast<size_t>(size) * elements;
  }
}
void PackActivations(DType weight_dtype, const float* x, ptrdiff_t x_stride, const int32_t* gather,
                     int tokens, int cols, void* packed) {
  switch (weight_dtype) {
    case DType::kF32:
      return PackActivationsAs<F32Format>(x, x_stride, gather, tokens, cols, packed);
    case DType::kF16:
      return PackActivationsAs<F16Format>(x, x_stride, gather, tokens, cols, packed);
    case DType::kBF16:
      return PackActivationsAs<Bf16Format>(x, x_stride, gather, tokens, cols, packed);
  }
}

// Enough accumulators to hide the latency of the instruction, weights and input in registers.
template <class Format>
int64_t PeakMacsAs(int64_t iterations, float* sink) {
  constexpr int kSums = kMatmulAccumulators < 12 ? kMatmulAccumulators : 12;
  alignas(64) float zeros[32];
  for (int i = 0; i < 32; ++i) zeros[i] = 0.0f;
  // The compiler may not know the inputs, or it would fold the work, nor that the sums start equal,
  // or it would keep one. Sums that are made opaque themselves are stored to memory in every round.
  const float* inputs = zeros;
  __asm__ volatile("" : "+r"(inputs) : : "memory");
  const auto w =
      Format::template LoadWeights<0>(reinterpret_cast<const typename Format::Weight*>(inputs));
  const auto x = Format::Broadcast(reinterpret_cast<const typename Format::Activation*>(inputs));
  Vec sum[kSums];
  SLUICE_UNROLL(16)
  for (int i = 0; i < kSums; ++i) sum[i] = Set(inputs[i]);
  for (int64_t n = 0; n < iterations; ++n) {
    SLUICE_UNROLL(16)
    for (int i = 0; i < kSums; ++i) sum[i] = Format::Mac(w, x, sum[i]);
  }
  for (int i = 0; i < kSums; ++i) *sink += SumLanes(sum[i]);
  return iterations * kSums * kPanelRows * Format::kElementsPerSub;
}
int64_t PeakMacs(DType weight_dtype, int64_t iterations, float* sink) {
  switch (weight_dtype) {
    case DType::kF32:
      return PeakMacsAs<F32Format>(iterations, sink);
    case DType::kF16:
      return PeakMacsAs<F16Format>(iterations, sink);
    case DType::kBF16:
      break;
  }
  return PeakMacsAs<Bf16Format>(iterations, sink);
}

SLUICE_END_ISA
