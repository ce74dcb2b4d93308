// Products with bit-nested matrices (arguments and order of sums: ops.h, layout:
// kernels/common/nested.h).
//
// A block of eight warps has one panel of 16 rows of one group. A warp takes a chunk of 16 units at
// a time, in two steps of eight: lane 4 * u + g has rows 4 g to 4 g + 3 of unit u, so that it reads
// the planes 16 bytes at a time (four rows' words of a vector) and the warp reads them in one
// piece. Words become bytes in registers, four columns each, and go through dp4a against the
// quantized input: integer dot products of a group are exact. The lane scales them and adds up its
// two units; a butterfly over the eight units of a step ends the chunk, and the block adds chunks
// upwards.
//
// Bound: bytes of the planes for few tokens. Further tiles of a group find them in the caches.
#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kStepUnits = 8;
constexpr int kSteps = kNestedChunkUnits / kStepUnits;
constexpr int kLaneRows = 4;
constexpr int kMaxTile = 4;
// Blocks that a multiprocessor must have room for: at most 128 registers a thread.
constexpr int kBlocksAtOnce = 2;
static_assert(kMaxTile * kNestedRows <= kWarps * kWarpLanes);

struct MatmulLaunch {
  NestedMatmulArgs args;
  int units;
  int chunks;
};

// A lane's words of a unit: [row], plane after plane.
template <int P>
struct Words {
  static constexpr int kOnes = P == 2 ? 0 : P == 3 ? 1 : P == 5 ? 3 : 2;  // planes of one bit
  static constexpr int kTwos = P == 6 ? 1 : P == 8 ? 2 : 0;               // of two, after plane 0
  unsigned base[2][kLaneRows];
  unsigned one[kOnes > 0 ? kOnes : 1][kLaneRows];
  unsigned two[kTwos > 0 ? kTwos : 1][2][kLaneRows];
};

__device__ __forceinline__ void LoadRows(const std::byte* from, unsigned (&to)[kLaneRows]) {
  const uint4 v = LoadConst<uint4>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// Where a panel's codes start in each plane.
struct PanelPlanes {
  const std::byte* scales;
  const std::byte* supers;
  const std::byte* codes[kMaxPlanes];
};
template <int P>
__device__ __forceinline__ PanelPlanes PlanesOf(const NestedOperand& m, int panel, int units) {
  const auto wide = static_cast<size_t>(units) * 128;
  const std::byte* first = m.plane[0] + static_cast<size_t>(panel) * (m.code_offset_bytes + wide);
  PanelPlanes p;
  p.supers = first;
  p.scales = first + m.scale_offset_bytes;
  p.codes[0] = first + m.code_offset_bytes;
#pragma unroll
  for (int i = 1; i < kMaxPlanes; ++i) {
    const bool one = i <= Words<P>::kOnes;
    if (i > Words<P>::kOnes + Words<P>::kTwos) break;
    p.codes[i] = m.plane[i] + static_cast<size_t>(panel) * (one ? wide / 2 : wide);
  }
  return p;
}

template <int P>
__device__ __forceinline__ Words<P> LoadWords(const PanelPlanes& p, int unit, int row_group) {
  Words<P> w;
  const int wide = unit * 128 + row_group * 16;
  const int narrow = unit * 64 + row_group * 16;
  LoadRows(p.codes[0] + wide, w.base[0]);
  LoadRows(p.codes[0] + wide + 64, w.base[1]);
#pragma unroll
  for (int i = 0; i < Words<P>::kOnes; ++i) LoadRows(p.codes[1 + i] + narrow, w.one[i]);
#pragma unroll
  for (int i = 0; i < Words<P>::kTwos; ++i) {
    const std::byte* from = p.codes[1 + Words<P>::kOnes + i] + wide;
    LoadRows(from, w.two[i][0]);
    LoadRows(from + 64, w.two[i][1]);
  }
  return w;
}

// Bytes T[n] of eight nibbles n: of the low nibbles of each byte, and of the high ones.
__device__ __forceinline__ void LookUp(const uint32_t (&table)[4], unsigned nibbles, unsigned* low,
                                       unsigned* high) {
  const unsigned places = nibbles & 0x77777777u;
  const unsigned halves = 0x32103210u | (nibbles & 0x88888888u) >> 1;
  const unsigned a = __byte_perm(__byte_perm(table[0], table[1], places & 0xffff),
                                 __byte_perm(table[2], table[3], places & 0xffff), halves & 0xffff);
  const unsigned b = __byte_perm(__byte_perm(table[0], table[1], places >> 16),
                                 __byte_perm(table[2], table[3], places >> 16), halves >> 16);
  *low = __byte_perm(a, b, 0x6420);
  *high = __byte_perm(a, b, 0x7531);
}

// A row's leading bits, or table entries, as bytes: q[quad].
template <int P, bool kTable>
__device__ __forceinline__ void Unpack(const Words<P>& w, int row, const uint32_t (&table)[4],
                                       unsigned (&q)[8]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    unsigned nibbles = w.base[k / 2][row] >> (2 * (k % 2)) & 0x33333333u;
    if constexpr (P >= 3) nibbles = nibbles << 1 | (w.one[0][row] >> k & 0x11111111u);
    if constexpr (P >= 4) nibbles = nibbles << 1 | (w.one[1][row] >> k & 0x11111111u);
    unsigned even, odd;
    if constexpr (kTable) {
      LookUp(table, nibbles, &even, &odd);
    } else {
      even = nibbles & 0x0f0f0f0fu;
      odd = nibbles >> 4 & 0x0f0f0f0fu;
    }
    if constexpr (P == 5) {
      even = even << 1 | (w.one[2][row] >> k & 0x01010101u);
      odd = odd << 1 | (w.one[2][row] >> (k + 4) & 0x01010101u);
    }
#pragma unroll
    for (int i = 0; i < Words<P>::kTwos; ++i) {
      const unsigned two = w.two[i][k / 2][row] >> (2 * (k % 2));
      even = even << 2 | (two & 0x03030303u);
      odd = odd << 2 | (two >> 4 & 0x03030303u);
    }
    q[2 * k] = even;
    q[2 * k + 1] = odd;
  }
}

// s' and m of a lane's rows, by group of the unit.
struct Scales {
  float scale[2][kLaneRows];
  float min[2][kLaneRows];
};

__device__ __forceinline__ void Halves(const std::byte* from, float (&to)[kLaneRows]) {
  const uint2 v = LoadConst<uint2>(from);
  to[0] = HalfToFloat(v.x & 0xffff);
  to[1] = HalfToFloat(v.x >> 16);
  to[2] = HalfToFloat(v.y & 0xffff);
  to[3] = HalfToFloat(v.y >> 16);
}
__device__ __forceinline__ unsigned ByteOf(unsigned word, int i) { return word >> (8 * i) & 0xff; }
__device__ __forceinline__ int SignedByteOf(unsigned word, int i) {
  return static_cast<int8_t>(ByteOf(word, i));
}

__device__ __forceinline__ void LoadScales(const NestedOperand& m, const PanelPlanes& p, int unit,
                                           int row_group, Scales* out) {
  const int super = unit / (kNestedSuperCols / kNestedUnitCols);
  float d[kLaneRows], d_min[kLaneRows];
  switch (m.scales) {
    case ScaleKind::kF16:
    case ScaleKind::kIq4F16:
      Halves(p.scales + unit * 32 + row_group * 8, out->scale[0]);
      break;
    case ScaleKind::kF16Min:
      Halves(p.scales + unit * 64 + row_group * 8, out->scale[0]);
      Halves(p.scales + unit * 64 + 32 + row_group * 8, out->min[0]);
      break;
    case ScaleKind::kU8Min:
      Halves(p.supers + super * 64 + row_group * 8, d);
      Halves(p.supers + super * 64 + 32 + row_group * 8, d_min);
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        if (g >= m.unit_groups) break;
        const std::byte* at = p.scales + (unit * m.unit_groups + g) * 32 + row_group * 4;
        const uint32_t steps = LoadConst<uint32_t>(at);
        const uint32_t mins = LoadConst<uint32_t>(at + 16);
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i) {
          out->scale[g][i] = d[i] * static_cast<float>(ByteOf(steps, i));
          out->min[g][i] = -(d_min[i] * static_cast<float>(ByteOf(mins, i)));
        }
      }
      break;
    case ScaleKind::kI8:
    case ScaleKind::kIq4I8:
      Halves(p.supers + super * 32 + row_group * 8, d);
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        if (g >= m.unit_groups) break;
        const uint32_t steps =
            LoadConst<uint32_t>(p.scales + (unit * m.unit_groups + g) * 16 + row_group * 4);
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i) {
          out->scale[g][i] = d[i] * static_cast<float>(SignedByteOf(steps, i));
        }
      }
      break;
    case ScaleKind::kE2m1E8m0: {
      const uint32_t exponents = LoadConst<uint32_t>(p.scales + unit * 16 + row_group * 4);
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
        const unsigned e = ByteOf(exponents, i);
        out->scale[0][i] = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
      }
      break;
    }
  }
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    if (g >= m.unit_groups) break;
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) out->scale[g][i] *= m.mul;
  }
}

// What a tile reads of the input: its tokens' rows. Tokens past the group's end repeat the last.
template <int T>
struct Tile {
  size_t row[T];
};

// A token's columns of a unit.
struct TokenUnit {
  unsigned codes[8];
  float scale;
  uint32_t sums;  // of QuantizedRows
};
__device__ __forceinline__ TokenUnit LoadInput(const QuantizedRows& x, size_t row, int unit,
                                               int units) {
  const size_t at = row * static_cast<size_t>(units) + static_cast<size_t>(unit);
  const uint4 low = LoadConst<uint4>(x.codes + at * 32);
  const uint4 high = LoadConst<uint4>(x.codes + at * 32 + 16);
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w},
          __uint_as_float(LoadConst<uint32_t>(x.scales + at)),
          LoadConst<uint32_t>(x.sums + at)};
}

// u of ops.h for one row, unit and token; dots and sums are of the unit's halves.
__device__ __forceinline__ float UnitSum(const NestedOperand& m, const Scales& s, int row,
                                         const int (&dot)[2], uint32_t sums) {
  const int n[2] = {static_cast<int16_t>(sums & 0xffff), static_cast<int16_t>(sums >> 16)};
  const bool has_min = HasGroupMinima(m.scales);
  float u = 0;
  const auto add = [&](int g, int dots, int count) {
    const auto x = static_cast<float>(dots);
    const auto sum = static_cast<float>(count);
    if (has_min) {
      u = fmaf(fmaf(s.scale[g][row], m.centre, s.min[g][row]), sum, fmaf(s.scale[g][row], x, u));
    } else {
      u = fmaf(s.scale[g][row], x + m.centre * sum, u);
    }
  };
  if (m.unit_groups == 1) {
    add(0, dot[0] + dot[1], n[0] + n[1]);
  } else {
    add(0, dot[0], n[0]);
    add(1, dot[1], n[1]);
  }
  return u;
}

// The chunk's sums of a panel for a tile: sums[token][row of the panel], written by a warp. Not
// inlined: precisions that share registers with each other spill.
template <int P, bool kTable, int T>
__device__ __attribute__((noinline)) void ChunkSums(const NestedOperand& m, QuantizedRows x,
                                                    Tile<T> tile, int panel, int chunk, int units,
                                                    float* sums) {
  const int row_group = LaneOf() % 4;
  const int unit_lane = LaneOf() / 4;
  const PanelPlanes planes = PlanesOf<P>(m, panel, units);
  uint32_t table[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) table[i] = kTable ? m.table[i] : 0;
  float y[T][kLaneRows] = {};
// Unrolled, the scales' many kinds would double the code of every precision.
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    const int wanted = chunk * kNestedChunkUnits + step * kStepUnits + unit_lane;
    // All lanes walk the same way; those past the end read the last unit for nothing.
    const int unit = wanted < units ? wanted : units - 1;
    const Words<P> words = LoadWords<P>(planes, unit, row_group);
    Scales scales;
    LoadScales(m, planes, unit, row_group, &scales);
    TokenUnit input[T];
#pragma unroll
    for (int t = 0; t < T; ++t) input[t] = LoadInput(x, tile.row[t], unit, units);
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      unsigned q[8];
      Unpack<P, kTable>(words, i, table, q);
#pragma unroll
      for (int t = 0; t < T; ++t) {
        int dot[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          dot[0] = DotUnsignedSigned(q[j], input[t].codes[j], dot[0]);
          dot[1] = DotUnsignedSigned(q[4 + j], input[t].codes[4 + j], dot[1]);
        }
        const float u = UnitSum(m, scales, i, dot, input[t].sums);
        const float sum = fmaf(u, input[t].scale, y[t][i]);
        y[t][i] = wanted < units ? sum : y[t][i];
      }
    }
  }
#pragma unroll
  for (int t = 0; t < T; ++t) {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      float sum = y[t][i];
#pragma unroll
      for (int mask = 4; mask < kWarpLanes; mask *= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, mask);
      }
      if (unit_lane == 0) sums[t * kNestedRows + row_group * kLaneRows + i] = sum;
    }
  }
}

template <int T>
__device__ void AnyChunkSums(const NestedOperand& m, const QuantizedRows& x, const Tile<T>& tile,
                             int panel, int chunk, int units, float* sums) {
  if (HasCodeTable(m.scales)) {
    switch (m.precision) {
      case 2:
        return ChunkSums<2, true, T>(m, x, tile, panel, chunk, units, sums);
      case 3:
        return ChunkSums<3, true, T>(m, x, tile, panel, chunk, units, sums);
      default:
        return ChunkSums<4, true, T>(m, x, tile, panel, chunk, units, sums);
    }
  }
  switch (m.precision) {
    case 2:
      return ChunkSums<2, false, T>(m, x, tile, panel, chunk, units, sums);
    case 3:
      return ChunkSums<3, false, T>(m, x, tile, panel, chunk, units, sums);
    case 4:
      return ChunkSums<4, false, T>(m, x, tile, panel, chunk, units, sums);
    case 5:
      return ChunkSums<5, false, T>(m, x, tile, panel, chunk, units, sums);
    case 6:
      return ChunkSums<6, false, T>(m, x, tile, panel, chunk, units, sums);
    default:
      return ChunkSums<8, false, T>(m, x, tile, panel, chunk, units, sums);
  }
}

__device__ __forceinline__ float Finished(const NestedMatmulArgs& a, const float (&sum)[2],
                                          int row) {
  if (a.matrices == 2) return Silu(sum[0]) * sum[1];
  return a.bias != nullptr ? sum[0] + a.bias[row] : sum[0];
}

__device__ __forceinline__ size_t PartialAt(const MatmulLaunch& l, int matrix, int chunk,
                                            int64_t output, int row) {
  const auto slab = static_cast<size_t>(matrix * l.chunks + chunk);
  return (slab * static_cast<size_t>(l.args.outputs) + static_cast<size_t>(output)) *
             static_cast<size_t>(l.args.rows) +
         static_cast<size_t>(row);
}

// Blocks: x panels, y groups, z splits.
template <int T>
__global__ void __launch_bounds__(kWarps* kWarpLanes, kBlocksAtOnce)
    NestedMatmulKernel(MatmulLaunch l) {
  struct Sums {
    float of[kWarps][T * kNestedRows];
  };
  SLUICE_SHARED(Sums, shared);
  const NestedMatmulArgs& a = l.args;
  const NestedGroup& group = a.groups[blockIdx.y];
  const int panel = static_cast<int>(blockIdx.x);
  const int splits = static_cast<int>(gridDim.z);
  const int split = static_cast<int>(blockIdx.z);
  const int chunk_begin = l.chunks * split / splits;
  const int chunk_end = l.chunks * (split + 1) / splits;
  const int jobs = (chunk_end - chunk_begin) * a.matrices;
  // Who adds up: one thread for each token of the tile and row of the panel.
  const int my_token = static_cast<int>(threadIdx.x) / kNestedRows;
  const int my_row = panel * kNestedRows + static_cast<int>(threadIdx.x) % kNestedRows;
  for (int first = 0; first < group.count; first += T) {
    Tile<T> tile;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const int i = first + t < group.count ? first + t : group.count - 1;
      tile.row[t] =
          static_cast<size_t>(group.rows != nullptr ? group.rows[i] : group.first_row + i);
    }
    const bool mine = my_token < T && first + my_token < group.count && my_row < a.rows;
    const int64_t output = group.first_output + first + my_token;
    float sum[2] = {0, 0};
    for (int base = 0; base < jobs; base += kWarps) {
      const int job = base + WarpOf();
      if (job < jobs) {
        AnyChunkSums<T>(group.matrix[job % a.matrices], a.x, tile, panel,
                        chunk_begin + job / a.matrices, l.units, shared.of[WarpOf()]);
      }
      __syncthreads();
      if (mine) {
        for (int i = 0; i < kWarps && base + i < jobs; ++i) {
          const int matrix = (base + i) % a.matrices;
          const float part = shared.of[i][threadIdx.x];
          if (splits > 1) {
            const int chunk = chunk_begin + (base + i) / a.matrices;
            a.partials[PartialAt(l, matrix, chunk, output, my_row)] = part;
          } else if (matrix == 0) {
            sum[0] += part;
          } else {
            sum[1] += part;
          }
        }
      }
      __syncthreads();
    }
    if (mine && splits == 1) a.y[output * a.y_stride + my_row] = Finished(a, sum, my_row);
  }
}

// Blocks: x of 256 rows, y groups, z of tokens.
__global__ void NestedMergeKernel(MatmulLaunch l) {
  const NestedMatmulArgs& a = l.args;
  const NestedGroup& group = a.groups[blockIdx.y];
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= a.rows) return;
  for (int i = static_cast<int>(blockIdx.z); i < group.count; i += static_cast<int>(gridDim.z)) {
    const int64_t output = group.first_output + i;
    float sum[2] = {0, 0};
    for (int chunk = 0; chunk < l.chunks; ++chunk) {
      sum[0] += a.partials[PartialAt(l, 0, chunk, output, row)];
      if (a.matrices == 2) sum[1] += a.partials[PartialAt(l, 1, chunk, output, row)];
    }
    a.y[output * a.y_stride + row] = Finished(a, sum, row);
  }
}

// A warp per unit, a lane per column. Blocks: x of eight units, y rows.
__global__ void QuantizeKernel(QuantizeArgs a) {
  const int units = NestedUnits(a.cols);
  const int unit = static_cast<int>(blockIdx.x) * kWarps + WarpOf();
  if (unit >= units) return;
  const int lane = LaneOf();
  const int col = unit * kNestedUnitCols + lane;
  const auto row = static_cast<ptrdiff_t>(blockIdx.y);
  const float x = col < a.cols ? a.x[row * a.x_stride + col] : 0.0f;
  const float size = x < 0 ? -x : x;
  float scale = WarpMax(size == size ? size : 0.0f) / 127.0f;
  const float divisor = scale > 0 ? scale : 1.0f;
  const float rounded = RoundToEven(Clamped(x / divisor, -127.0f, 127.0f));
  const int code = rounded == rounded ? static_cast<int>(rounded) : 0;
  int sum = code;
  for (int mask = 8; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  const int other = __shfl_xor_sync(kAllLanes, sum, 16);
  // 0, or NaN where any column is not finite.
  const float poison = WarpSum(x * 0.0f);
  const auto at = static_cast<size_t>(row) * static_cast<size_t>(units) + static_cast<size_t>(unit);
  a.out.codes[at * kNestedUnitCols + static_cast<size_t>(lane)] = static_cast<int8_t>(code);
  if (lane != 0) return;
  a.out.scales[at] = scale + poison;
  a.out.sums[at] = static_cast<uint32_t>(sum & 0xffff) | static_cast<uint32_t>(other) << 16;
}

}  // namespace

NestedOperand MakeNestedOperand(NestedFormat format, NestedLevel level, int planes,
                                const std::byte* const* plane, int cols) {
  NestedOperand m;
  for (int i = 0; i < planes; ++i) m.plane[i] = plane[i];
  if (HasCodeTable(format.scales)) {
    const auto& table = kCodeTables[format.scales == ScaleKind::kE2m1E8m0 ? 1 : 0][planes - 1];
    for (int i = 0; i < 16; ++i) m.table[i / 4] |= static_cast<uint32_t>(table[i]) << (8 * (i % 4));
  }
  m.mul = level.mul;
  m.centre = level.add / level.mul;
  m.scale_offset_bytes = static_cast<uint32_t>(NestedSuperBytes(format, cols));
  m.code_offset_bytes =
      m.scale_offset_bytes + static_cast<uint32_t>(NestedScaleBytes(format, cols));
  m.scales = format.scales;
  m.unit_groups = static_cast<uint8_t>(kNestedUnitCols / format.group);
  m.precision = static_cast<uint8_t>(NestedPrecision(format.bits, planes));
  return m;
}

Status QuantizeRows(const QuantizeArgs& args, Stream stream) {
  if (args.rows == 0) return Status::kOk;
  const int units = NestedUnits(args.cols);
  const dim3 grid = {static_cast<unsigned>((units + kWarps - 1) / kWarps),
                     static_cast<unsigned>(args.rows), 1};
  return Launch(QuantizeKernel, grid, kWarps * kWarpLanes, stream, args);
}

Status NestedMatmul(const NestedMatmulArgs& args, Stream stream) {
  if (args.group_count == 0 || args.max_count == 0) return Status::kOk;
  const MatmulLaunch launch = {args, NestedUnits(args.cols), NestedChunks(args.cols)};
  const dim3 grid = {static_cast<unsigned>((args.rows + kNestedRows - 1) / kNestedRows),
                     static_cast<unsigned>(args.group_count), static_cast<unsigned>(args.splits)};
  const auto kernel = args.max_count == 1 ? NestedMatmulKernel<1> : NestedMatmulKernel<kMaxTile>;
  const Status status = Launch(kernel, grid, kWarps * kWarpLanes, stream, launch);
  if (status != Status::kOk || args.splits == 1) return status;
  constexpr int kMergeRows = 256;
  const dim3 merge = {static_cast<unsigned>((args.rows + kMergeRows - 1) / kMergeRows),
                      static_cast<unsigned>(args.group_count),
                      static_cast<unsigned>(args.max_count < 64 ? args.max_count : 64)};
  return Launch(NestedMergeKernel, merge, kMergeRows, stream, launch);
}

}  // namespace sluice::cuda
