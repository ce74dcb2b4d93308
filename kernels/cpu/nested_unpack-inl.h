// Reading bit-nested panels (layout: kernels/common/nested.h): codes of a prefix of planes as one
// byte each, scales and minima as F32.
//
// Codes are assembled two quads at a time, the even one in low nibbles and the odd one in high
// ones, with one shift and one bit select per plane.
//
// Sizes are computed here again: functions of nested.h are shared with the rest of the program, and
// an ISA file may not call those (isa_macros.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/isa_macros.h"
#include "kernels/cpu/ops.h"

SLUICE_BEGIN_ISA

constexpr int kUnitQuads = kNestedUnitCols / 4;
constexpr int kUnitBytes = kNestedUnitCols * kNestedRows;  // of unpacked codes
constexpr int kChunkUnits = kNestedSuperCols / kNestedUnitCols;

// The sizes of a matrix at the precision that is used.
struct NestedShape {
  ScaleKind scales;
  int unit_groups;  // groups in a unit: 1 or 2
  int units;
  int planes;
  int precision;
  bool has_min;
  const uint8_t* table;  // kCodeTables of this precision; null: codes are numbers
  // The level as the kernels apply it: mul goes into the scales, and add / mul, which is then left
  // to add to every code, into the minima of kinds that have them.
  float mul;
  float centre;
  size_t super_bytes;
  size_t scale_bytes;
  size_t panel_bytes[kMaxPlanes];
  int plane_bits[kMaxPlanes];
};

// kCodeTables, which is one object of the whole program, in one of this file.
struct CodeTables {
  uint8_t value[2][3][16];
};
constexpr CodeTables CopyCodeTables() {
  CodeTables tables = {};
  for (int kind = 0; kind < 2; ++kind) {
    for (int planes = 0; planes < 3; ++planes) {
      for (int i = 0; i < 16; ++i) tables.value[kind][planes][i] = kCodeTables[kind][planes][i];
    }
  }
  return tables;
}
constexpr CodeTables kTables = CopyCodeTables();

SLUICE_INLINE size_t AlignLine(size_t bytes) { return (bytes + 63) / 64 * 64; }

SLUICE_INLINE NestedShape ShapeOf(NestedFormat format, NestedLevel level, int planes, int cols) {
  NestedShape shape;
  // A fitted level may say that codes do not count.
  shape.mul = level.mul != 0 ? level.mul : 1e-10f;
  shape.centre = level.add / shape.mul;
  shape.scales = format.scales;
  shape.unit_groups = kNestedUnitCols / format.group;
  shape.units = (cols + kNestedUnitCols - 1) / kNestedUnitCols;
  shape.planes = planes;
  shape.has_min = format.scales == ScaleKind::kF16Min || format.scales == ScaleKind::kU8Min;
  const size_t supers = static_cast<size_t>((shape.units + kChunkUnits - 1) / kChunkUnits);
  const size_t groups = static_cast<size_t>(shape.units) * shape.unit_groups;
  const bool e2m1 = format.scales == ScaleKind::kE2m1E8m0;
  const bool signed_bytes = format.scales == ScaleKind::kI8 || format.scales == ScaleKind::kIq4I8;
  shape.table = format.scales < ScaleKind::kIq4F16 ? nullptr : kTables.value[e2m1][planes - 1];
  const size_t super_bytes = format.scales == ScaleKind::kU8Min ? 64 : signed_bytes ? 32 : 0;
  const size_t group_bytes = format.scales == ScaleKind::kF16Min ? 64
                             : signed_bytes || e2m1              ? 16
                                                                 : 32;
  shape.super_bytes = AlignLine(super_bytes * supers);
  shape.scale_bytes = AlignLine(group_bytes * groups);
  shape.precision = 0;
  for (int i = 0; i < planes; ++i) {
    const int bits = i == 0 ? 2 : i <= 2 || format.bits == 5 ? 1 : 2;
    shape.precision += bits;
    shape.plane_bits[i] = bits;
    shape.panel_bytes[i] = static_cast<size_t>(shape.units) * (64 * bits);
  }
  shape.panel_bytes[0] += shape.super_bytes + shape.scale_bytes;
  return shape;
}

// One panel's parts.
struct PanelView {
  const uint8_t* supers;
  const uint8_t* scales;
  const uint8_t* codes[kMaxPlanes];
  // From here to the same place of the panel that is read next, for prefetch (modulo 2^64): 0 when
  // there is none.
  size_t ahead[kMaxPlanes];
};
SLUICE_INLINE PanelView ViewOf(const NestedMatmulArgs& args, const NestedShape& shape, int panel) {
  PanelView view;
  const bool last = panel + 1 >= args.panel_end;
  for (int i = 0; i < shape.planes; ++i) {
    view.codes[i] = reinterpret_cast<const uint8_t*>(args.plane[i]) +
                    static_cast<size_t>(panel) * shape.panel_bytes[i];
    view.ahead[i] = shape.panel_bytes[i];
    if (last) {
      view.ahead[i] = args.next[i] == nullptr ? 0
                                              : reinterpret_cast<uintptr_t>(args.next[i]) -
                                                    reinterpret_cast<uintptr_t>(view.codes[i]);
    }
  }
  for (int i = shape.planes; i < kMaxPlanes; ++i) {
    view.codes[i] = nullptr;
    view.ahead[i] = 0;
  }
  view.supers = view.codes[0];
  view.scales = view.supers + shape.super_bytes;
  view.codes[0] = view.scales + shape.scale_bytes;
  return view;
}

// Walks over ranges of memory line by line, for prefetch while something else is computed.
struct LineWalk {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  int range = -1;
  int ranges = 0;
  const uint8_t* begins[kMaxPlanes];
  size_t bytes[kMaxPlanes];
};

// Into L2: on Zen 4 prefetches into L1 are few in flight, and reach half of the bandwidth.
SLUICE_INLINE void PrefetchLine(const uint8_t* at) { __builtin_prefetch(at, 0, 2); }

SLUICE_INLINE void PrefetchNext(LineWalk& walk) {
  if (walk.at == walk.end) {
    if (walk.range + 1 >= walk.ranges) return;
    ++walk.range;
    walk.at = walk.begins[walk.range];
    walk.end = walk.at + walk.bytes[walk.range];
  }
  PrefetchLine(walk.at);
  walk.at += 64;
}

// Moves bit `from` of every byte to bit `to`; bits that cross a byte are undefined.
template <int from, int to>
SLUICE_INLINE Codes MoveBit(Codes v) {
  if constexpr (from > to) return ShiftRight<from - to>(v);
  if constexpr (from < to) return ShiftLeft<to - from>(v);
  return v;
}

// Calls take.operator()<quad>(codes) for the quads of a unit, in order, with codes of P bits. With
// P = 5 the fourth plane has one bit. With kOddHigh (P <= 4) odd quads come as 16 times their
// codes, which saves a shift for each.
template <int P, bool kOddHigh = false, class Take>
SLUICE_INLINE void UnpackUnit(const PanelView& view, int unit, const Take& take) {
  static_assert(!kOddHigh || P <= 4);
  const size_t line = static_cast<size_t>(unit) * 64;
  const auto load = [&]<int plane, int bits>(int vector) __attribute__((always_inline)) {
    return KeepLoaded(LoadCodes(view.codes[plane] + line * bits + vector * 64));
  };
  PrefetchLine(view.codes[0] + line * 2 + view.ahead[0]);
  PrefetchLine(view.codes[0] + line * 2 + 64 + view.ahead[0]);
  if constexpr (P >= 3) PrefetchLine(view.codes[1] + line + view.ahead[1]);
  if constexpr (P >= 4) PrefetchLine(view.codes[2] + line + view.ahead[2]);
  if constexpr (P == 5) PrefetchLine(view.codes[3] + line + view.ahead[3]);
  if constexpr (P >= 6) {
    PrefetchLine(view.codes[3] + line * 2 + view.ahead[3]);
    PrefetchLine(view.codes[3] + line * 2 + 64 + view.ahead[3]);
  }
  if constexpr (P == 8) {
    PrefetchLine(view.codes[4] + line * 2 + view.ahead[4]);
    PrefetchLine(view.codes[4] + line * 2 + 64 + view.ahead[4]);
  }
  Codes second, even, odd, narrow;
  if constexpr (P >= 3) second = load.template operator()<1, 1>(0);
  if constexpr (P >= 4) {
    // The second and third planes side by side: of pairs 0 and 2, and of pairs 1 and 3, each pair
    // two bits of a nibble.
    const Codes third = load.template operator()<2, 1>(0);
    even = SelectBits<0xaa>(ShiftLeft<1>(second), third);
    odd = SelectBits<0xaa>(second, ShiftRight<1>(third));
  }
  if constexpr (P == 5) narrow = load.template operator()<3, 1>(0);
  // Pairs 2v and 2v + 1, v = vector.
  const auto vector = [&]<int v>() __attribute__((always_inline)) {
    const Codes base = load.template operator()<0, 2>(v);
    Codes fourth, fifth;
    if constexpr (P >= 6) fourth = load.template operator()<3, 2>(v);
    if constexpr (P == 8) fifth = load.template operator()<4, 2>(v);
    // Pair k: quads 2k and 2k + 1.
    const auto pair = [&]<int k>() __attribute__((always_inline)) {
      constexpr int kAt = 2 * (k % 2);  // where a 2-bit plane holds it, within a nibble
      constexpr int kLow = (1 << P) - 1;
      if constexpr (P <= 4) {
        Codes codes;
        if constexpr (P == 2) codes = MoveBit<kAt, 0>(base);
        if constexpr (P == 3) {
          codes = SelectBits<0x66>(MoveBit<kAt, 1>(base), MoveBit<k, 0>(second));
        }
        if constexpr (P == 4) {
          codes = SelectBits<0xcc>(MoveBit<kAt, 2>(base), MoveBit<2 * v, 0>(k % 2 ? odd : even));
        }
        take.template operator()<2 * k>(KeepBits<kLow>(codes));
        if constexpr (kOddHigh) {
          take.template operator()<2 * k + 1>(KeepBits<kLow << 4>(codes));
        } else {
          take.template operator()<2 * k + 1>(KeepBits<kLow>(MoveBit<4, 0>(codes)));
        }
        return;
      }
      const Codes codes =
          SelectBits<0xcc>(MoveBit<kAt, 2>(base), MoveBit<2 * v, 0>(k % 2 ? odd : even));
      if constexpr (P == 5) {
        take.template operator()<2 * k>(
            KeepBits<0x1f>(SelectBits<0x1e>(MoveBit<0, 1>(codes), MoveBit<k, 0>(narrow))));
        take.template operator()<2 * k + 1>(
            KeepBits<0x1f>(SelectBits<0x1e>(MoveBit<4, 1>(codes), MoveBit<k + 4, 0>(narrow))));
      } else if constexpr (P == 6) {
        take.template operator()<2 * k>(
            KeepBits<0x3f>(SelectBits<0x3c>(MoveBit<0, 2>(codes), MoveBit<kAt, 0>(fourth))));
        take.template operator()<2 * k + 1>(
            KeepBits<0x3f>(SelectBits<0x3c>(MoveBit<4, 2>(codes), MoveBit<kAt + 4, 0>(fourth))));
      } else if constexpr (P == 8) {
        const Codes rest = SelectBits<0xcc>(MoveBit<kAt, 2>(fourth), MoveBit<kAt, 0>(fifth));
        take.template operator()<2 * k>(SelectBits<0xf0>(MoveBit<0, 4>(codes), rest));
        take.template operator()<2 * k + 1>(SelectBits<0xf0>(codes, MoveBit<4, 0>(rest)));
      }
    };
    pair.template operator()<2 * v>();
    pair.template operator()<2 * v + 1>();
  };
  vector.template operator()<0>();
  vector.template operator()<1>();
}

// What codes count for: themselves, or kTable their places in a table.
template <bool kTable>
struct CodeValues {
  explicit CodeValues(const NestedShape&) {}
  SLUICE_INLINE Codes operator()(Codes codes) const { return codes; }
};
template <>
struct CodeValues<true> {
  CodeTable table;
  SLUICE_INLINE explicit CodeValues(const NestedShape& shape) : table(LoadTable(shape.table)) {}
  SLUICE_INLINE Codes operator()(Codes codes) const { return LookUp(table, codes); }
};

// Units [begin, end) of a panel to bytes: out[unit - begin][quad][16][4].
template <int P, bool kTable = false>
void UnpackUnits(const NestedShape& shape, const PanelView& view, int begin, int end,
                 uint8_t* out) {
  const CodeValues<kTable> value(shape);
  for (int unit = begin; unit < end; ++unit) {
    UnpackUnit<P>(
        view, unit, [&]<int quad>(Codes codes) __attribute__((always_inline)) {
          StoreCodes(out + quad * 64, value(codes));
        });
    out += kUnitBytes;
  }
}
SLUICE_INLINE void UnpackUnitsOf(const NestedShape& shape, const PanelView& view, int begin,
                                 int end, uint8_t* out) {
  const bool table = shape.table != nullptr;
  switch (shape.precision) {
    case 2:
      return table ? UnpackUnits<2, true>(shape, view, begin, end, out)
                   : UnpackUnits<2>(shape, view, begin, end, out);
    case 3:
      return table ? UnpackUnits<3, true>(shape, view, begin, end, out)
                   : UnpackUnits<3>(shape, view, begin, end, out);
    case 4:
      return table ? UnpackUnits<4, true>(shape, view, begin, end, out)
                   : UnpackUnits<4>(shape, view, begin, end, out);
    case 5:
      return UnpackUnits<5>(shape, view, begin, end, out);
    case 6:
      return UnpackUnits<6>(shape, view, begin, end, out);
    default:
      return UnpackUnits<8>(shape, view, begin, end, out);
  }
}

// Scale and minimum of a group for the 16 rows, the level applied (NestedShape).
struct GroupScale {
  Vec scale;
  Vec min;  // only for kinds that have one
};
template <ScaleKind kind>
struct ScaleReader {
  const uint8_t* groups;
  Vec super_scale;
  Vec super_min;  // negated
  float mul;
  Vec centre;
  size_t ahead;

  // Groups of the super-group `super`. A super-group is a chunk of units.
  SLUICE_INLINE ScaleReader(const NestedShape& shape, const PanelView& view, int super)
      : groups(view.scales), mul(shape.mul), centre(Set(shape.centre)), ahead(view.ahead[0]) {
    if constexpr (kind == ScaleKind::kU8Min) {
      const uint8_t* at = view.supers + static_cast<size_t>(super) * 64;
      PrefetchLine(at + ahead);
      super_scale = Mul(Load(reinterpret_cast<const F16*>(at)), Set(mul));
      super_min = Sub(Set(0.0f), Load(reinterpret_cast<const F16*>(at + 32)));
    } else if constexpr (kind == ScaleKind::kI8 || kind == ScaleKind::kIq4I8) {
      const uint8_t* at = view.supers + static_cast<size_t>(super) * 32;
      super_scale = Mul(Load(reinterpret_cast<const F16*>(at)), Set(mul));
    }
  }
  SLUICE_INLINE GroupScale Read(int group) const {
    const size_t g = static_cast<size_t>(group);
    constexpr bool kByte =
        kind == ScaleKind::kI8 || kind == ScaleKind::kIq4I8 || kind == ScaleKind::kE2m1E8m0;
    constexpr int kBytes = kind == ScaleKind::kF16Min ? 64 : kByte ? 16 : 32;
    PrefetchLine(groups + g * kBytes + ahead);
    if constexpr (kind == ScaleKind::kF16 || kind == ScaleKind::kIq4F16) {
      const Vec scale = Load(reinterpret_cast<const F16*>(groups + g * 32));
      return {Mul(scale, Set(mul)), Set(0.0f)};
    } else if constexpr (kind == ScaleKind::kF16Min) {
      const Vec scale = Mul(Load(reinterpret_cast<const F16*>(groups + g * 64)), Set(mul));
      return {scale, Fma(scale, centre, Load(reinterpret_cast<const F16*>(groups + g * 64 + 32)))};
    } else if constexpr (kind == ScaleKind::kU8Min) {
      const Vec scale = Mul(super_scale, LoadU8(groups + g * 32));
      return {scale, Fma(scale, centre, Mul(super_min, LoadU8(groups + g * 32 + 16)))};
    } else if constexpr (kind == ScaleKind::kE2m1E8m0) {
      return {Mul(LoadE8m0(groups + g * 16), Set(mul)), Set(0.0f)};
    } else {
      return {Mul(super_scale, LoadI8(groups + g * 16)), Set(0.0f)};
    }
  }
};

// Scales of units [begin, end), begin a multiple of kChunkUnits, as F32: per group s[16], then
// m[16] for kinds that have one.
template <ScaleKind kind>
void ExpandScales(const NestedShape& shape, const PanelView& view, int begin, int end, float* out) {
  constexpr bool kMin = kind == ScaleKind::kF16Min || kind == ScaleKind::kU8Min;
  for (int chunk = begin; chunk < end; chunk += kChunkUnits) {
    const ScaleReader<kind> reader(shape, view, chunk / kChunkUnits);
    const int last = chunk + kChunkUnits < end ? chunk + kChunkUnits : end;
    for (int group = chunk * shape.unit_groups; group < last * shape.unit_groups; ++group) {
      const GroupScale read = reader.Read(group);
      Store(out, read.scale);
      out += 16;
      if constexpr (kMin) {
        Store(out, read.min);
        out += 16;
      }
    }
  }
}
SLUICE_INLINE void ExpandScalesOf(const NestedShape& shape, const PanelView& view, int begin,
                                  int end, float* out) {
  switch (shape.scales) {
    case ScaleKind::kF16:
      return ExpandScales<ScaleKind::kF16>(shape, view, begin, end, out);
    case ScaleKind::kF16Min:
      return ExpandScales<ScaleKind::kF16Min>(shape, view, begin, end, out);
    case ScaleKind::kU8Min:
      return ExpandScales<ScaleKind::kU8Min>(shape, view, begin, end, out);
    case ScaleKind::kI8:
    case ScaleKind::kIq4I8:
      return ExpandScales<ScaleKind::kI8>(shape, view, begin, end, out);
    case ScaleKind::kIq4F16:
      return ExpandScales<ScaleKind::kF16>(shape, view, begin, end, out);
    case ScaleKind::kE2m1E8m0:
      return ExpandScales<ScaleKind::kE2m1E8m0>(shape, view, begin, end, out);
  }
}

SLUICE_END_ISA
