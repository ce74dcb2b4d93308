// y = x W^T + bias over bit-nested panels (arguments and arithmetic: ops.h, layout:
// kernels/common/nested.h), one thread, any number of tokens.
//
// Every output is one F32 lane that walks the groups of its row upwards; the integer dot product of
// a group is exact. Tilings differ only in which outputs they hold at once, so results do not
// depend on them.
//
// Up to kNestedMaxTile tokens, codes go from the planes through registers into dot products. Bound:
// bytes for one token or two; every plane is a stream of its own, prefetched one panel ahead.
// With more tokens, codes are unpacked once for all of them, kNestedGroupPanels panels at a time,
// which stay in L2 while the tiles pass over them. Bound: multiply-accumulates.
#pragma once

#include "kernels/cpu/nested_inputs-inl.h"

SLUICE_BEGIN_ISA

constexpr int kNestedGroupPanels = 4;

// The arithmetic of one group and token, as ops.h states it: `u` is the sum of the unit's groups
// before it. counts and centres are the group's, of all tokens.
template <int width, bool kMin>
SLUICE_INLINE Vec AddGroup(const Dots<width>& dots, int32_t x_sum, const GroupScale& scale,
                           const float* counts, const float* centres, int t, bool first, Vec u) {
  Vec dot = DotsToVec(dots, x_sum);
  if constexpr (!kMin) dot = Add(dot, Set(centres[t]));
  u = first ? Mul(scale.scale, dot) : Fma(scale.scale, dot, u);
  if constexpr (kMin) u = Fma(scale.min, Set(counts[t]), u);
  return u;
}
SLUICE_INLINE Vec AddUnit(Vec u, const float* inputs, int t, Vec y) {
  return Fma(u, Set(inputs[kInputScale + t]), y);
}

// What a tile of tokens brings along: quantized columns, their fields, centres (kinds without a
// minimum).
struct TileInputs {
  const int8_t* codes;
  const float* inputs;
  const float* centres;
};

// Adds `units` unpacked units to the outputs of T tokens: sums[token][16]. Takes `steps` steps of
// the walk per unit.
template <int width, int kUnitGroups, bool kMin, int T>
void UnitsTile(const uint8_t* codes, const float* scales, TileInputs tile, int units, int steps,
               LineWalk* walk, float* sums) {
  constexpr int kQuads = kUnitQuads / kUnitGroups;
  const int8_t* x = tile.codes;
  const float* inputs = tile.inputs;
  const float* centres = tile.centres;
  LineWalk ahead = *walk;
  Vec y[T];
  SLUICE_UNROLL(16)
  for (int t = 0; t < T; ++t) y[t] = Load(sums + 16 * t);
  for (int unit = 0; unit < units; ++unit) {
    for (int i = 0; i < steps; ++i) PrefetchNext(ahead);
    Vec u[T];
    SLUICE_UNROLL(2)
    for (int g = 0; g < kUnitGroups; ++g) {
      Dots<width> dots[T];
      SLUICE_UNROLL(8)
      for (int quad = 0; quad < kQuads; ++quad) {
        const Codes w = LoadCodes(codes + quad * 64);
        SLUICE_UNROLL(16)
        for (int t = 0; t < T; ++t) AddDots(w, x + (quad * T + t) * 4, dots[t]);
      }
      const GroupScale scale = {Load(scales), kMin ? Load(scales + 16) : Set(0.0f)};
      const float* counts = GroupField(inputs, kUnitGroups, g, kInputCount, T);
      SLUICE_UNROLL(16)
      for (int t = 0; t < T; ++t) {
        u[t] = AddGroup<width, kMin>(dots[t], InputInt(inputs, kUnitGroups, g, T, t), scale, counts,
                                     centres, t, g == 0, u[t]);
      }
      scales += kMin ? 32 : 16;
      if constexpr (!kMin) centres += T;
      codes += kQuads * 64;
      x += kQuads * T * 4;
    }
    SLUICE_UNROLL(16)
    for (int t = 0; t < T; ++t) y[t] = AddUnit(u[t], inputs, t, y[t]);
    inputs += kInputFields * T;
  }
  SLUICE_UNROLL(16)
  for (int t = 0; t < T; ++t) Store(sums + 16 * t, y[t]);
  *walk = ahead;
}

using UnitsTileFunction = void (*)(const uint8_t* codes, const float* scales, TileInputs tile,
                                   int units, int steps, LineWalk* walk, float* sums);
template <int width, int kUnitGroups, bool kMin, int T = kNestedMaxTile>
SLUICE_INLINE UnitsTileFunction UnitsTileOf(int tokens) {
  // A tile is less than half full only when it is the only one.
  if constexpr (T > 1 && T > kNestedMaxTile / 2) {
    if (tokens != T) return UnitsTileOf<width, kUnitGroups, kMin, T - 1>(tokens);
  }
  return UnitsTile<width, kUnitGroups, kMin, T>;
}
template <int width, int kUnitGroups>
SLUICE_INLINE UnitsTileFunction UnitsTileOf(const NestedShape& shape, int tokens) {
  return shape.has_min ? UnitsTileOf<width, kUnitGroups, true>(tokens)
                       : UnitsTileOf<width, kUnitGroups, false>(tokens);
}
template <int width>
SLUICE_INLINE UnitsTileFunction UnitsTileOf(const NestedShape& shape, int tokens) {
  return shape.unit_groups == 1 ? UnitsTileOf<width, 1>(shape, tokens)
                                : UnitsTileOf<width, 2>(shape, tokens);
}
SLUICE_INLINE UnitsTileFunction UnitsTileOf(const NestedShape& shape, int tokens) {
  if (shape.table != nullptr) return UnitsTileOf<kDotWidth<8>>(shape, tokens);
  if (shape.precision <= 4) return UnitsTileOf<kDotWidth<4>>(shape, tokens);
  if (shape.precision <= 6) return UnitsTileOf<kDotWidth<6>>(shape, tokens);
  return UnitsTileOf<kDotWidth<8>>(shape, tokens);
}

// Outputs of `size` tokens from `token` on for one panel: sums[token][16] and the bias.
SLUICE_INLINE void StoreOutputs(const NestedMatmulArgs& args, int panel, int token, int size,
                                const float* sums) {
  const int row = panel * kPanelRows;
  const int rows = args.rows - row < kPanelRows ? args.rows - row : kPanelRows;
  if (rows <= 0) return;
  const bool whole = rows == kPanelRows;
  Vec bias = Set(0.0f);
  if (args.bias != nullptr) bias = whole ? Load(args.bias + row) : LoadN(args.bias + row, rows);
  float* y = args.y + token * args.y_stride + row;
  for (int t = 0; t < size; ++t) {
    Vec sum = Load(sums + 16 * t);
    if (args.bias != nullptr) sum = Add(sum, bias);
    if (whole) {
      Store(y, sum);
    } else {
      StoreN(y, sum, rows);
    }
    y += args.y_stride;
  }
}

// Where a tile's activations and a call's buffers lie.
SLUICE_INLINE TileInputs InputsOf(const NestedMatmulArgs& args, const NestedShape& shape,
                                  const NestedTiling& tiling, int tile, float* centres) {
  const uint8_t* at = static_cast<const uint8_t*>(args.x) + tiling.token_bytes * tiling.First(tile);
  const TileInputs inputs = {
      reinterpret_cast<const int8_t*>(at),
      reinterpret_cast<const float*>(at + static_cast<size_t>(shape.units) * kNestedUnitCols *
                                              tiling.Size(tile)),
      centres};
  if (!shape.has_min) CentreInputs(shape, inputs.inputs, tiling.Size(tile), centres);
  return inputs;
}
struct NestedScratch {
  uint8_t* codes;  // [panel][unit][quad][64]
  float* scales;   // [panel][group][1 or 2][16]
  float* centres;  // of one tile
  size_t panel_codes;
  size_t panel_scales;
};
SLUICE_INLINE NestedScratch ScratchOf(const NestedMatmulArgs& args, const NestedShape& shape) {
  NestedScratch scratch;
  const size_t units = static_cast<size_t>(shape.units);
  scratch.panel_codes = units * kUnitBytes;
  scratch.panel_scales = units * shape.unit_groups * (shape.has_min ? 32 : 16);
  scratch.codes = static_cast<uint8_t*>(args.scratch);
  scratch.scales =
      reinterpret_cast<float*>(scratch.codes + kNestedGroupPanels * scratch.panel_codes);
  scratch.centres = scratch.scales + kNestedGroupPanels * units * 64;
  return scratch;
}

// Where even and odd quads have sums of their own, the odd ones need not be moved to low nibbles;
// as places in a table they must.
template <int P, bool kTable>
constexpr bool kOddHighOf = kDotsTakeHigh&& P <= 4 && !kTable;
template <int P, bool kTable>
constexpr int kWidthOf = kDotWidth<kTable ? 8 : P>;
template <bool kOddHigh, int width>
SLUICE_INLINE Dots<width> MergeChains(Dots<width> even, Dots<width> odd) {
  if constexpr (kOddHigh) {
    return MergeHighDots(even, odd);
  } else {
    return MergeDots(even, odd);
  }
}

// Adds units [begin, end) of a panel to the outputs of T tokens, codes taken from the planes:
// sums[token][16]. scales as ExpandScales gives them from `begin` on; the tile starts at `begin`.
template <int P, int kUnitGroups, bool kMin, bool kTable, int T>
void StreamUnits(const NestedShape& shape, const PanelView& view, int begin, int end,
                 const float* scales, TileInputs tile, float* sums) {
  constexpr int kQuads = kUnitQuads / kUnitGroups;
  // With few tokens two sums each: one would wait for itself all the time.
  constexpr int kChains = T * kUnitGroups < 4 ? 2 : 1;
  constexpr bool kOddHigh = kChains == 2 && kOddHighOf<P, kTable>;
  constexpr int kWidth = kWidthOf<P, kTable>;
  const CodeValues<kTable> value(shape);
  const int8_t* x = tile.codes;
  const float* inputs = tile.inputs;
  const float* centres = tile.centres;
  Vec y[T];
  SLUICE_UNROLL(16)
  for (int t = 0; t < T; ++t) y[t] = Load(sums + 16 * t);
  for (int unit = begin; unit < end; ++unit) {
    Dots<kWidth> dots[kUnitGroups][kChains][T];
    UnpackUnit<P, kOddHigh>(
        view, unit, [&]<int quad>(Codes raw) __attribute__((always_inline)) {
          const Codes codes = value(raw);
          SLUICE_UNROLL(16)
          for (int t = 0; t < T; ++t)
            AddDots(codes, x + (quad * T + t) * 4, dots[quad / kQuads][quad % kChains][t]);
        });
    Vec u[T];
    SLUICE_UNROLL(2)
    for (int g = 0; g < kUnitGroups; ++g) {
      const GroupScale scale = {Load(scales), kMin ? Load(scales + 16) : Set(0.0f)};
      const float* counts = GroupField(inputs, kUnitGroups, g, kInputCount, T);
      SLUICE_UNROLL(16)
      for (int t = 0; t < T; ++t) {
        Dots<kWidth> sum = dots[g][0][t];
        if constexpr (kChains == 2) sum = MergeChains<kOddHigh>(sum, dots[g][1][t]);
        u[t] = AddGroup<kWidth, kMin>(sum, InputInt(inputs, kUnitGroups, g, T, t), scale, counts,
                                      centres, t, g == 0, u[t]);
      }
      scales += kMin ? 32 : 16;
      if constexpr (!kMin) centres += T;
    }
    SLUICE_UNROLL(16)
    for (int t = 0; t < T; ++t) y[t] = AddUnit(u[t], inputs, t, y[t]);
    inputs += kInputFields * T;
    x += kNestedUnitCols * T;
  }
  SLUICE_UNROLL(16)
  for (int t = 0; t < T; ++t) Store(sums + 16 * t, y[t]);
}

using StreamUnitsFunction = void (*)(const NestedShape& shape, const PanelView& view, int begin,
                                     int end, const float* scales, TileInputs tile, float* sums);
template <int P, int kUnitGroups, bool kMin, bool kTable = false, int T = kNestedMaxTile>
SLUICE_INLINE StreamUnitsFunction StreamUnitsOf(int tokens) {
  if constexpr (T > 2) {
    if (tokens != T) return StreamUnitsOf<P, kUnitGroups, kMin, kTable, T - 1>(tokens);
  }
  return StreamUnits<P, kUnitGroups, kMin, kTable, T>;
}
template <int kUnitGroups, bool kMin>
SLUICE_INLINE StreamUnitsFunction StreamUnitsOf(int precision, int tokens) {
  switch (precision) {
    case 2:
      return StreamUnitsOf<2, kUnitGroups, kMin>(tokens);
    case 3:
      return StreamUnitsOf<3, kUnitGroups, kMin>(tokens);
    case 4:
      return StreamUnitsOf<4, kUnitGroups, kMin>(tokens);
    case 5:
      return StreamUnitsOf<5, kUnitGroups, kMin>(tokens);
    case 6:
      return StreamUnitsOf<6, kUnitGroups, kMin>(tokens);
    default:
      return StreamUnitsOf<8, kUnitGroups, kMin>(tokens);
  }
}
SLUICE_INLINE StreamUnitsFunction StreamUnitsOf(const NestedShape& shape, int tokens) {
  if (shape.table != nullptr) {
    return shape.planes == 1   ? StreamUnitsOf<2, 1, false, true>(tokens)
           : shape.planes == 2 ? StreamUnitsOf<3, 1, false, true>(tokens)
                               : StreamUnitsOf<4, 1, false, true>(tokens);
  }
  if (shape.unit_groups == 1) {
    return shape.has_min ? StreamUnitsOf<1, true>(shape.precision, tokens)
                         : StreamUnitsOf<1, false>(shape.precision, tokens);
  }
  return shape.has_min ? StreamUnitsOf<2, true>(shape.precision, tokens)
                       : StreamUnitsOf<2, false>(shape.precision, tokens);
}

// 2 to kNestedMaxTile tokens.
void NestedFewTokens(const NestedMatmulArgs& args, const NestedShape& shape,
                     const NestedTiling& tiling) {
  const NestedScratch scratch = ScratchOf(args, shape);
  const TileInputs tile = InputsOf(args, shape, tiling, 0, scratch.centres);
  const StreamUnitsFunction stream = StreamUnitsOf(shape, args.tokens);
  const ptrdiff_t unit_codes = kNestedUnitCols * args.tokens;
  const ptrdiff_t unit_inputs = kInputFields * args.tokens;
  const ptrdiff_t unit_centres = shape.unit_groups * args.tokens;
  alignas(64) float sums[kNestedMaxTile * 16];
  for (int panel = args.panel_begin; panel < args.panel_end; ++panel) {
    const PanelView view = ViewOf(args, shape, panel);
    for (int i = 0; i < args.tokens * 16; ++i) sums[i] = 0.0f;
    for (int unit = 0; unit < shape.units; unit += kChunkUnits) {
      const int end = unit + kChunkUnits < shape.units ? unit + kChunkUnits : shape.units;
      ExpandScalesOf(shape, view, unit, end, scratch.scales);
      const TileInputs part = {tile.codes + unit * unit_codes, tile.inputs + unit * unit_inputs,
                               tile.centres + unit * unit_centres};
      stream(shape, view, unit, end, scratch.scales, part, sums);
    }
    StoreOutputs(args, panel, 0, args.tokens, sums);
  }
}

// One panel and one token, scales taken from the panel too: sums[16].
template <int P, ScaleKind kind, int kUnitGroups>
void StreamPanel(const NestedShape& shape, const PanelView& view, TileInputs tile, float* sums) {
  constexpr bool kMin = kind == ScaleKind::kF16Min || kind == ScaleKind::kU8Min;
  constexpr int kQuads = kUnitQuads / kUnitGroups;
  constexpr bool kTable = kind >= ScaleKind::kIq4F16;
  constexpr bool kOddHigh = kOddHighOf<P, kTable>;
  constexpr int kWidth = kWidthOf<P, kTable>;
  const CodeValues<kTable> value(shape);
  const int8_t* x = tile.codes;
  const float* inputs = tile.inputs;
  const float* centres = tile.centres;
  Vec y = Set(0.0f);
  for (int chunk = 0; chunk < shape.units; chunk += kChunkUnits) {
    const ScaleReader<kind> reader(shape, view, chunk / kChunkUnits);
    const int last = chunk + kChunkUnits < shape.units ? chunk + kChunkUnits : shape.units;
    for (int unit = chunk; unit < last; ++unit) {
      // Two sums per group: one would wait for itself eight times.
      Dots<kWidth> dots[kUnitGroups][2];
      UnpackUnit<P, kOddHigh>(
          view, unit, [&]<int quad>(Codes codes) __attribute__((always_inline)) {
            AddDots(value(codes), x + quad * 4, dots[quad / kQuads][quad % 2]);
          });
      Vec u = Set(0.0f);
      SLUICE_UNROLL(2)
      for (int g = 0; g < kUnitGroups; ++g) {
        const GroupScale scale = reader.Read(unit * kUnitGroups + g);
        u = AddGroup<kWidth, kMin>(
            MergeChains<kOddHigh>(dots[g][0], dots[g][1]), InputInt(inputs, kUnitGroups, g, 1, 0),
            scale, GroupField(inputs, kUnitGroups, g, kInputCount, 1), centres, 0, g == 0, u);
        if constexpr (!kMin) ++centres;
      }
      y = AddUnit(u, inputs, 0, y);
      inputs += kInputFields;
      x += kNestedUnitCols;
    }
  }
  Store(sums, y);
}

using StreamPanelFunction = void (*)(const NestedShape& shape, const PanelView& view,
                                     TileInputs tile, float* sums);
template <ScaleKind kind, int kUnitGroups>
SLUICE_INLINE StreamPanelFunction StreamPanelOf(int precision) {
  if (precision == 2) return StreamPanel<2, kind, kUnitGroups>;
  if (precision == 3) return StreamPanel<3, kind, kUnitGroups>;
  if (kind >= ScaleKind::kIq4F16 || precision == 4) return StreamPanel<4, kind, kUnitGroups>;
  if constexpr (kind < ScaleKind::kIq4F16) {
    if (precision == 5) return StreamPanel<5, kind, kUnitGroups>;
    if (precision == 6) return StreamPanel<6, kind, kUnitGroups>;
    return StreamPanel<8, kind, kUnitGroups>;
  }
}
SLUICE_INLINE StreamPanelFunction StreamPanelOf(const NestedShape& shape) {
  const int precision = shape.precision;
  switch (shape.scales) {
    case ScaleKind::kF16:
      return StreamPanelOf<ScaleKind::kF16, 1>(precision);
    case ScaleKind::kF16Min:
      return StreamPanelOf<ScaleKind::kF16Min, 1>(precision);
    case ScaleKind::kU8Min:
      return shape.unit_groups == 1 ? StreamPanelOf<ScaleKind::kU8Min, 1>(precision)
                                    : StreamPanelOf<ScaleKind::kU8Min, 2>(precision);
    case ScaleKind::kIq4F16:
      return StreamPanelOf<ScaleKind::kIq4F16, 1>(precision);
    case ScaleKind::kIq4I8:
      return StreamPanelOf<ScaleKind::kIq4I8, 1>(precision);
    case ScaleKind::kE2m1E8m0:
      return StreamPanelOf<ScaleKind::kE2m1E8m0, 1>(precision);
    case ScaleKind::kI8:
      break;
  }
  return shape.unit_groups == 1 ? StreamPanelOf<ScaleKind::kI8, 1>(precision)
                                : StreamPanelOf<ScaleKind::kI8, 2>(precision);
}

void NestedOneToken(const NestedMatmulArgs& args, const NestedShape& shape,
                    const NestedTiling& tiling) {
  const NestedScratch scratch = ScratchOf(args, shape);
  const TileInputs tile = InputsOf(args, shape, tiling, 0, scratch.centres);
  const StreamPanelFunction stream = StreamPanelOf(shape);
  alignas(64) float sums[16];
  for (int panel = args.panel_begin; panel < args.panel_end; ++panel) {
    stream(shape, ViewOf(args, shape, panel), tile, sums);
    StoreOutputs(args, panel, 0, 1, sums);
  }
}

// The planes of the panels that follow [first, first + panels): this call's, or what it is told
// comes after.
SLUICE_INLINE LineWalk PanelsAfter(const NestedMatmulArgs& args, const NestedShape& shape,
                                   int first, int panels) {
  LineWalk walk;
  const int next = first + panels;
  int count = args.panel_end - next;
  if (count <= 0 || count > kNestedGroupPanels) count = kNestedGroupPanels;
  for (int i = 0; i < shape.planes; ++i) {
    const std::byte* begin = next < args.panel_end
                                 ? args.plane[i] + shape.panel_bytes[i] * static_cast<size_t>(next)
                                 : args.next[i];
    if (begin == nullptr) continue;
    walk.begins[walk.ranges] = reinterpret_cast<const uint8_t*>(begin);
    walk.bytes[walk.ranges] = shape.panel_bytes[i] * static_cast<size_t>(count);
    ++walk.ranges;
  }
  return walk;
}

// More tokens: groups of panels.
void NestedManyTiles(const NestedMatmulArgs& args, const NestedShape& shape,
                     const NestedTiling& tiling) {
  const NestedScratch scratch = ScratchOf(args, shape);
  alignas(64) float sums[kNestedMaxTile * 16];
  for (int first = args.panel_begin; first < args.panel_end; first += kNestedGroupPanels) {
    const int left = args.panel_end - first;
    const int panels = left < kNestedGroupPanels ? left : kNestedGroupPanels;
    for (int p = 0; p < panels; ++p) {
      const PanelView view = ViewOf(args, shape, first + p);
      UnpackUnitsOf(shape, view, 0, shape.units, scratch.codes + p * scratch.panel_codes);
      ExpandScalesOf(shape, view, 0, shape.units, scratch.scales + p * scratch.panel_scales);
    }
    LineWalk walk = PanelsAfter(args, shape, first, panels);
    size_t lines = 0;
    for (int i = 0; i < walk.ranges; ++i) lines += walk.bytes[i] / 64;
    const auto units = static_cast<size_t>(tiling.tiles) * panels * shape.units;
    const int steps = static_cast<int>((lines + units - 1) / units);
    for (int i = 0; i < tiling.tiles; ++i) {
      const int size = tiling.Size(i);
      const UnitsTileFunction tile = UnitsTileOf(shape, size);
      const TileInputs inputs = InputsOf(args, shape, tiling, i, scratch.centres);
      for (int p = 0; p < panels; ++p) {
        for (int k = 0; k < size * 16; ++k) sums[k] = 0.0f;
        tile(scratch.codes + p * scratch.panel_codes, scratch.scales + p * scratch.panel_scales,
             inputs, shape.units, steps, &walk, sums);
        StoreOutputs(args, first + p, tiling.First(i), size, sums);
      }
    }
  }
}

void NestedMatmulImpl(const NestedMatmulArgs& args) {
  const NestedShape shape = ShapeOf(args.format, args.level, args.planes, args.cols);
  const NestedTiling tiling = NestedTilingOf(args.tokens, args.cols);
  if (args.tokens == 1) return NestedOneToken(args, shape, tiling);
  if (tiling.tiles == 1) return NestedFewTokens(args, shape, tiling);
  NestedManyTiles(args, shape, tiling);
}

// Enough sums to hide the latency of the dot product, codes and inputs in registers.
int64_t NestedPeakMacsImpl(int64_t iterations, float* sink) {
  constexpr int kSums = kNestedMaxTile < 8 ? kNestedMaxTile : 12;
  constexpr int kWidth = kDotWidth<4>;
  alignas(64) uint8_t zeros[(kSums + 1) * 64];
  for (int i = 0; i < (kSums + 1) * 64; ++i) zeros[i] = 0;
  // As for PeakMacs: the compiler may know neither the inputs nor that the sums start equal.
  const uint8_t* inputs = zeros;
  __asm__ volatile("" : "+r"(inputs) : : "memory");
  const Codes codes = LoadCodes(inputs);
  Dots<kWidth> sums[kSums];
  SLUICE_UNROLL(16)
  for (int i = 0; i < kSums; ++i) {
    Codes start = LoadCodes(inputs + i * 64);
    __builtin_memcpy(static_cast<void*>(&sums[i]), &start, sizeof sums[i]);
  }
  for (int64_t n = 0; n < iterations; ++n) {
    SLUICE_UNROLL(16)
    for (int i = 0; i < kSums; ++i) {
      AddDots(codes, reinterpret_cast<const int8_t*>(inputs + kSums * 64), sums[i]);
    }
  }
  for (int i = 0; i < kSums; ++i) *sink += SumLanes(DotsToVec(sums[i], 0));
  return iterations * kSums * kPanelRows * 4;
}

SLUICE_END_ISA

// What the table of this ISA takes from here.
namespace sluice::cpu::SLUICE_ISA {

size_t NestedActivationBytes(int tokens, int cols);
void NestedPackActivations(const float* x, ptrdiff_t x_stride, const int32_t* gather, int tokens,
                           int cols, void* packed);
void NestedMatmul(const NestedMatmulArgs& args);
int64_t NestedPeakMacs(int64_t iterations, float* sink);

size_t NestedActivationBytes(int tokens, int cols) {
  return NestedActivationBytesImpl(tokens, cols);
}
void NestedPackActivations(const float* x, ptrdiff_t x_stride, const int32_t* gather, int tokens,
                           int cols, void* packed) {
  NestedPackActivationsImpl(x, x_stride, gather, tokens, cols, packed);
}
void NestedMatmul(const NestedMatmulArgs& args) { NestedMatmulImpl(args); }
int64_t NestedPeakMacs(int64_t iterations, float* sink) {
  return NestedPeakMacsImpl(iterations, sink);
}

}  // namespace sluice::cpu::SLUICE_ISA
