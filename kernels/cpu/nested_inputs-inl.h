// The inputs of bit-nested products (nested-inl.h): activations quantized and packed tile by tile,
// the tokens spread evenly over the fewest tiles of at most kNestedMaxTile; per tile bytes
// [unit][quad][token][4], then per unit [InputField][token] F32.
#pragma once

#include "kernels/cpu/nested_unpack-inl.h"

SLUICE_BEGIN_ISA

// What is stored for a token and unit beside its quantized columns.
enum InputField {
  kInputScale,  // xs
  kInputCount,  // sum of qx, of the unit and of its halves
  kInputHalfCount,
  kInputHalfCount1,
  kInputFloats,
  kInputInt = kInputFloats,  // the same three as int32
  kInputHalfInt,
  kInputHalfInt1,
  kInputAll,
};
constexpr int kInputFields = kNeedsInputSums ? kInputAll : kInputFloats;

// How tokens are spread over tiles: the first `wide` tiles hold base + 1 tokens, the rest base.
struct NestedTiling {
  int tiles;
  int base;
  int wide;
  size_t token_bytes;  // of packed activations
  SLUICE_INLINE int First(int tile) const { return tile * base + (tile < wide ? tile : wide); }
  SLUICE_INLINE int Size(int tile) const { return base + (tile < wide ? 1 : 0); }
};
SLUICE_INLINE NestedTiling NestedTilingOf(int tokens, int cols) {
  const int tiles = (tokens + kNestedMaxTile - 1) / kNestedMaxTile;
  const size_t units = static_cast<size_t>((cols + kNestedUnitCols - 1) / kNestedUnitCols);
  return {tiles, tokens / tiles, tokens % tiles,
          units * (kNestedUnitCols + kInputFields * sizeof(float))};
}

// What CentreInputs may read past the end.
constexpr size_t kInputPadding = 64;

size_t NestedActivationBytesImpl(int tokens, int cols) {
  return static_cast<size_t>(tokens) * NestedTilingOf(tokens, cols).token_bytes + kInputPadding;
}

SLUICE_INLINE Vec AbsOf(Vec v) { return Max(v, Sub(Set(0.0f), v)); }

// Token t of a tile of `size`, from x to the tile's codes and inputs.
SLUICE_INLINE void QuantizeToken(const float* x, int cols, int units, int t, int size,
                                 int8_t* codes, float* inputs) {
  // Max passes over NaN; 0 * x keeps it (and makes one of infinity), and is 0 of all else. One
  // unit that is not a number makes every output one, so it need not be the unit itself.
  Vec poison = Set(0.0f);
  for (int unit = 0; unit < units; ++unit) {
    const float* from = x + static_cast<ptrdiff_t>(unit) * kNestedUnitCols;
    const int left = cols - unit * kNestedUnitCols;
    Vec v[2];
    if (left >= kNestedUnitCols) {
      v[0] = Load(from);
      v[1] = Load(from + 16);
    } else {
      v[0] = LoadN(from, left < 16 ? left : 16);
      v[1] = left > 16 ? LoadN(from + 16, left - 16) : Set(0.0f);
    }
    poison = Fma(v[0], Set(0.0f), Fma(v[1], Set(0.0f), poison));
    float scale = MaxLanes(Max(AbsOf(v[0]), AbsOf(v[1]))) / 127.0f;
    if (unit + 1 == units) scale += SumLanes(poison);
    const Vec divisor = Set(scale > 0.0f ? scale : 1.0f);
    alignas(32) int8_t quantized[kNestedUnitCols];
    float counts[2];
    SLUICE_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      const Vec q = RoundToInt(Max(Min(Div(v[i], divisor), Set(127.0f)), Set(-127.0f)));
      StoreI8(quantized + 16 * i, q);
      counts[i] = SumLanes(q);
    }
    for (int quad = 0; quad < kUnitQuads; ++quad) {
      __builtin_memcpy(
          codes + (static_cast<ptrdiff_t>(unit) * kUnitQuads + quad) * size * 4 + t * 4,
          quantized + quad * 4, 4);
    }
    float* fields = inputs + static_cast<ptrdiff_t>(unit) * kInputFields * size + t;
    fields[kInputScale * size] = scale;
    fields[kInputCount * size] = counts[0] + counts[1];
    fields[kInputHalfCount * size] = counts[0];
    fields[kInputHalfCount1 * size] = counts[1];
    if constexpr (kNeedsInputSums) {
      const int32_t sums[3] = {static_cast<int32_t>(counts[0] + counts[1]),
                               static_cast<int32_t>(counts[0]), static_cast<int32_t>(counts[1])};
      for (int i = 0; i < 3; ++i) __builtin_memcpy(&fields[(kInputInt + i) * size], &sums[i], 4);
    }
  }
}

void NestedPackActivationsImpl(const float* x, ptrdiff_t x_stride, const int32_t* gather,
                               int tokens, int cols, void* packed) {
  const NestedTiling tiling = NestedTilingOf(tokens, cols);
  const int units = (cols + kNestedUnitCols - 1) / kNestedUnitCols;
  auto* out = static_cast<uint8_t*>(packed);
  for (int tile = 0; tile < tiling.tiles; ++tile) {
    const int first = tiling.First(tile);
    const int size = tiling.Size(tile);
    auto* codes = reinterpret_cast<int8_t*>(out);
    auto* inputs =
        reinterpret_cast<float*>(out + static_cast<size_t>(units) * kNestedUnitCols * size);
    for (int t = 0; t < size; ++t) {
      const ptrdiff_t row = gather != nullptr ? gather[first + t] : first + t;
      QuantizeToken(x + row * x_stride, cols, units, t, size, codes, inputs);
    }
    out += tiling.token_bytes * size;
  }
  __builtin_memset(out, 0, kInputPadding);
}

// Field `first` (kInputCount or kInputInt) of a unit's group g, of all tokens.
SLUICE_INLINE const float* GroupField(const float* inputs, int unit_groups, int g, int first,
                                      int size) {
  return inputs + (first + (unit_groups == 1 ? 0 : 1 + g)) * static_cast<ptrdiff_t>(size);
}
// Sum of a group's qx as an integer; only where dot products want it.
SLUICE_INLINE int32_t InputInt(const float* inputs, int unit_groups, int g, int size, int t) {
  int32_t count = 0;
  if constexpr (kNeedsInputSums) {
    __builtin_memcpy(&count, GroupField(inputs, unit_groups, g, kInputInt, size) + t, sizeof count);
  }
  return count;
}

// centre * (sum of qx) of every group of a tile: [unit][group][token].
//
// Stores go 16 lanes at a time, each over the overrun of the one before: inputs are readable and
// out is writable for 15 floats past their ends.
void CentreInputs(const NestedShape& shape, const float* inputs, int size, float* out) {
  static_assert(kNestedMaxTile <= 16);
  const Vec centre = Set(shape.centre);
  for (int unit = 0; unit < shape.units; ++unit) {
    for (int g = 0; g < shape.unit_groups; ++g) {
      const float* counts = GroupField(inputs, shape.unit_groups, g, kInputCount, size);
      if (size < 4) {
        for (int t = 0; t < size; ++t) out[t] = counts[t] * shape.centre;
      } else {
        Store(out, Mul(Load(counts), centre));
      }
      out += size;
    }
    inputs += static_cast<ptrdiff_t>(kInputFields) * size;
  }
}

SLUICE_END_ISA
