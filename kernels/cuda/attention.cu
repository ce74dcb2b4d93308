// Attention of query rows over a paged K/V cache (kernels/common/kv_format.h), split over the
// context; and the writes to that cache.
//
// A block has one part of the context (kAttentionPartTokens at an absolute position) of one kv head
// and one group, and walks the group's rows a few at a time. Scores: a warp per KV block; K is read
// 16 bytes at a time, so a lane has a few tokens of some dimensions, and lanes exchange halves
// until each has the whole sum of one token. Softmax: a warp per row, over the part. Values:
// threads are spread over pieces of 16 bytes of V and over tokens, each walks its tokens upwards,
// and the threads of a piece are added upwards. Sums, maximum and total of a part go to `partials`;
// a second kernel merges them.
//
// Which lane has what follows from absolute positions and head_dim alone, and tokens that a row
// does not see are passed over: a row's result is the same in any company.
//
// Q8: a query is one scale and integers of 14 bits, 128 * high + low, as on the CPU
// (kernels/cpu/attention_q8-inl.h): dot products with K's codes are exact. V's codes are weighed in
// floats.
//
// Bound: the bytes of K and V, once per kRows rows of a group.
#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kKvBlockTokens = 16;
constexpr int kLaneTokens = kAttentionPartTokens / kWarpLanes;
constexpr int kMaxHeadDim = 256;
constexpr float kLog2E = 1.44269504f;
constexpr float kQ8Levels = 16319.0f;       // 128 * 127 + 63
constexpr float kQ8Negligible = 0x1p-100f;  // queries below count as 0

__device__ __forceinline__ float MinusInfinity() { return __uint_as_float(0xff800000u); }

// ---- Formats -----------------------------------------------------------------------------------

// 8 consecutive values, 16-byte aligned.
struct F32Kv {
  static constexpr int kBytes = 4;
  static __device__ __forceinline__ void Load8(const std::byte* from, float (&to)[8]) {
    const uint4 a = LoadConst<uint4>(from);
    const uint4 b = LoadConst<uint4>(from + 16);
    const unsigned bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = __uint_as_float(bits[i]);
  }
};
struct F16Kv {
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ void Load8(const std::byte* from, float (&to)[8]) {
    const uint4 v = LoadConst<uint4>(from);
    const unsigned bits[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = HalfToFloat(bits[i / 2] >> (16 * (i % 2)) & 0xffff);
  }
};
struct Bf16Kv {
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ void Load8(const std::byte* from, float (&to)[8]) {
    const uint4 v = LoadConst<uint4>(from);
    const unsigned bits[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = Bf16ToFloat(bits[i / 2] >> (16 * (i % 2)) & 0xffff);
  }
};
struct Q8Kv {};

template <class Kv>
constexpr bool kIsQ8 = false;
template <>
constexpr bool kIsQ8<Q8Kv> = true;

// ---- One part ----------------------------------------------------------------------------------

template <int R>
struct PartShared {
  float q[R][kMaxHeadDim];           // scaled queries
  float p[R][kAttentionPartTokens];  // scores in units of ln 2, then their exponentials
  float top[R];
  float total[R];
  // Q8 queries: bytes of four dimensions, high and low; the integers' sums by key group; the scale.
  uint32_t high[R][kMaxHeadDim / 4];
  uint32_t low[R][kMaxHeadDim / 4];
  int sum[R][kMaxHeadDim / kKvKeyGroup];
  float q_scale[R];
  float v[R * 8 * kThreads];  // threads' sums of their pieces
};

// What a block works on.
struct PartPlace {
  const std::byte* k;  // of the kv head, block 0
  const std::byte* v;
  const int32_t* blocks;
  int start;  // absolute token of the part
  int begin;  // tokens that any row of the tile sees, in the part
  int end;
};

__device__ __forceinline__ const std::byte* KeysOf(const AttentionArgs& a, const PartPlace& place,
                                                   int block) {
  const auto physical = static_cast<size_t>(place.blocks[place.start / kKvBlockTokens + block]);
  return place.k + physical * a.cache.k_block_bytes;
}
__device__ __forceinline__ const std::byte* ValuesOf(const AttentionArgs& a, const PartPlace& place,
                                                     int block) {
  const auto physical = static_cast<size_t>(place.blocks[place.start / kKvBlockTokens + block]);
  return place.v + physical * a.cache.v_block_bytes;
}

// Adds the sums of lanes that differ in `mask`, each keeping half of its n: those of the lane
// without the bit the first half.
template <int n>
__device__ __forceinline__ void ShareHalves(float (&x)[n], int mask) {
  const bool upper = (LaneOf() & mask) != 0;
#pragma unroll
  for (int i = 0; i < n / 2; ++i) {
    const float sent = upper ? x[i] : x[n / 2 + i];
    const float kept = upper ? x[n / 2 + i] : x[i];
    x[i] = kept + __shfl_xor_sync(kAllLanes, sent, mask);
  }
}
template <int n>
__device__ __forceinline__ void ShareHalves(int (&x)[n], int mask) {
  const bool upper = (LaneOf() & mask) != 0;
#pragma unroll
  for (int i = 0; i < n / 2; ++i) {
    const int sent = upper ? x[i] : x[n / 2 + i];
    const int kept = upper ? x[n / 2 + i] : x[i];
    x[i] = kept + __shfl_xor_sync(kAllLanes, sent, mask);
  }
}

// Scores of one KV block by a warp. Lane bit 0: which 8 tokens; the others: dimensions.
template <class Kv, int R>
__device__ __forceinline__ void BlockScores(const AttentionArgs& a, const std::byte* keys,
                                            int block, PartShared<R>& s) {
  const int half = LaneOf() % 2;
  float sum[R][8] = {};
  for (int d = LaneOf() / 2; d < a.cache.head_dim; d += 16) {
    float k[8];
    Kv::Load8(keys + (d * kKvBlockTokens + half * 8) * Kv::kBytes, k);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float q = s.q[r][d];
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[r][i] = fmaf(q, k[i], sum[r][i]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < R; ++r) {
    float four[4], two[2];
    ShareHalves(sum[r], 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = sum[r][i];
    ShareHalves(four, 8);
    two[0] = four[0];
    two[1] = four[1];
    ShareHalves(two, 4);
    const float score = two[0] + __shfl_xor_sync(kAllLanes, two[0], 2);
    const int lane = LaneOf();
    const int token = half * 8 + (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    if ((lane & 2) == 0) s.p[r][block * kKvBlockTokens + token] = score;
  }
}

// The same for Q8. Lane bits 0 and 1: which 4 tokens; the others: four dimensions of a group of 32.
template <int R>
__device__ __forceinline__ void BlockScoresQ8(const AttentionArgs& a, const std::byte* keys,
                                              int block, PartShared<R>& s) {
  const int lane = LaneOf();
  const int quads = a.cache.head_dim / 4;
  const std::byte* scales = keys + quads * 64;
  const int token = lane % 4 * 4 + (lane >> 4 & 1) * 2 + (lane >> 3 & 1);
  float score[R] = {};
  for (int g = 0; g * 8 < quads; ++g) {
    const int quad = g * 8 + lane / 4;
    unsigned codes[4] = {};
    if (quad < quads) {
      const uint4 v = LoadConst<uint4>(keys + quad * 64 + lane % 4 * 16);
      codes[0] = v.x;
      codes[1] = v.y;
      codes[2] = v.z;
      codes[3] = v.w;
    }
    const unsigned pair = LoadConst<uint32_t>(scales + (g * kKvBlockTokens + token / 2 * 2) * 2);
    const float scale = HalfToFloat(pair >> (16 * (token % 2)) & 0xffff);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      int dots[4], two[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Dimensions past the end have zeros in the query.
        dots[i] = 128 * DotUnsignedSigned(codes[i], s.high[r][quad], 0) +
                  DotUnsignedSigned(codes[i], s.low[r][quad], 0);
      }
      ShareHalves(dots, 16);
      two[0] = dots[0];
      two[1] = dots[1];
      ShareHalves(two, 8);
      const int dot = two[0] + __shfl_xor_sync(kAllLanes, two[0], 4);
      score[r] = fmaf(static_cast<float>(dot - 128 * s.sum[r][g]), scale, score[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if ((lane & 4) == 0) s.p[r][block * kKvBlockTokens + token] = score[r] * s.q_scale[r];
  }
}

// A row's query in integers, by a warp.
template <int R>
__device__ __forceinline__ void QuantizeQuery(int head_dim, int r, PartShared<R>& s) {
  float largest = 0;
  float poison = 0;  // stays 0 unless a value is a NaN or infinite
  for (int d = LaneOf(); d < head_dim; d += kWarpLanes) {
    const float x = s.q[r][d];
    const float size = x < 0 ? -x : x;
    largest = size > largest ? size : largest;
    poison = fmaf(x, 0.0f, poison);
  }
  largest = WarpMax(largest);
  poison = WarpSum(poison);
  const float inverse = largest > kQ8Negligible ? kQ8Levels / largest : 0.0f;
  auto* high = reinterpret_cast<int8_t*>(s.high[r]);
  auto* low = reinterpret_cast<int8_t*>(s.low[r]);
  for (int g = 0; g * kKvKeyGroup < kMaxHeadDim; ++g) {
    const int d = g * kKvKeyGroup + LaneOf();
    int code = 0;
    if (d < head_dim) {
      const float rounded = RoundToEven(Clamped(s.q[r][d] * inverse, -kQ8Levels, kQ8Levels));
      code = rounded == rounded ? static_cast<int>(rounded) : 0;
    }
    const int top = (code + 64) >> 7;
    high[d] = static_cast<int8_t>(top);
    low[d] = static_cast<int8_t>(code - 128 * top);
    int sum = code;
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
    if (LaneOf() == 0) s.sum[r][g] = sum;
  }
  if (LaneOf() == 0) s.q_scale[r] = largest / kQ8Levels + poison;
}

// Scores of a row's tokens [begin, end) of the part become exponentials, by a warp; of the others,
// 0.
template <int R>
__device__ __forceinline__ void SoftmaxRow(const AttentionArgs& a, int r, int begin, int end,
                                           PartShared<R>& s) {
  float score[kLaneTokens];
  float top = MinusInfinity();
#pragma unroll
  for (int i = 0; i < kLaneTokens; ++i) {
    const int token = LaneOf() + i * kWarpLanes;
    score[i] = MinusInfinity();
    if (token < begin || token >= end) continue;
    float x = s.p[r][token];
    if (a.softcap != 0.0f) {
      const float e = ExpOrZero(2.0f * (x / a.softcap));
      x = a.softcap * kLog2E * (1.0f - 2.0f / (e + 1.0f));
    }
    score[i] = x;
    top = x > top ? x : top;
  }
  top = WarpMax(top);
  float total = 0;
#pragma unroll
  for (int i = 0; i < kLaneTokens; ++i) {
    const int token = LaneOf() + i * kWarpLanes;
    const bool seen = token >= begin && token < end;
    const float e = seen ? Exp2OfNegative(score[i] - top) : 0.0f;
    total += e;
    s.p[r][token] = e;
  }
  total = WarpSum(total);
  if (LaneOf() == 0) {
    s.top[r] = top;
    s.total[r] = total;
  }
}

// How V is spread over threads: pieces of kDims dimensions of a token, or of four tokens for Q8.
struct ValueShape {
  int pieces;
  int slots;  // threads of a piece
  int piece;  // of this thread; it is idle when slot == slots
  int slot;
};
__device__ __forceinline__ ValueShape ShapeOf(int pieces) {
  ValueShape shape;
  shape.pieces = pieces;
  shape.slots = kThreads / pieces;
  shape.piece = static_cast<int>(threadIdx.x) % pieces;
  shape.slot = static_cast<int>(threadIdx.x) / pieces;
  return shape;
}

// Each thread's sums of its piece to s.v[slot][r][dimension].
template <class Kv, int R>
__device__ __forceinline__ void WeighValues(const AttentionArgs& a, const PartPlace& place,
                                            PartShared<R>& s) {
  constexpr int kDims = 8;
  const ValueShape shape = ShapeOf(a.cache.head_dim / kDims);
  if (shape.slot >= shape.slots) return;
  float sum[R][kDims] = {};
  for (int token = shape.slot; token < place.end; token += shape.slots) {
    if (token < place.begin) continue;
    float v[kDims];
    const int at = token % kKvBlockTokens * a.cache.head_dim + shape.piece * kDims;
    Kv::Load8(ValuesOf(a, place, token / kKvBlockTokens) + at * Kv::kBytes, v);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float p = s.p[r][token];
      if (p == 0.0f) continue;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sum[r][i] = fmaf(p, v[i], sum[r][i]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      s.v[(shape.slot * R + r) * a.cache.head_dim + shape.piece * kDims + i] = sum[r][i];
    }
  }
}

template <int R>
__device__ __forceinline__ void WeighValuesQ8(const AttentionArgs& a, const PartPlace& place,
                                              PartShared<R>& s) {
  constexpr int kDims = 4;
  const int padded = (a.cache.head_dim + 15) / 16 * 16;
  const ValueShape shape = ShapeOf(a.cache.head_dim / kDims);
  if (shape.slot >= shape.slots) return;
  const int group = shape.piece * kDims / kKvValueGroup;
  float sum[R][kDims] = {};
  for (int quad = shape.slot; quad * 4 < place.end; quad += shape.slots) {
    if (quad * 4 + 4 <= place.begin) continue;
    const std::byte* values = ValuesOf(a, place, quad / 4);
    const int token_quad = quad % 4;
    const uint4 codes = LoadConst<uint4>(values + (token_quad * padded + shape.piece * kDims) * 4);
    const unsigned words[kDims] = {codes.x, codes.y, codes.z, codes.w};
    const uint2 halves =
        LoadConst<uint2>(values + padded * 16 + (group * kKvBlockTokens + token_quad * 4) * 2);
    const unsigned scales[2] = {halves.x, halves.y};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float scale = HalfToFloat(scales[t / 2] >> (16 * (t % 2)) & 0xffff);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float p = s.p[r][quad * 4 + t];
        if (p == 0.0f) continue;
        const float weight = p * scale;
#pragma unroll
        for (int i = 0; i < kDims; ++i) {
          // 2^23 + code, exactly, less 2^23 + 128.
          const float code = __uint_as_float(0x4b000000u | (words[i] >> (8 * t) & 0xff));
          sum[r][i] = fmaf(weight, code - 8388736.0f, sum[r][i]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      s.v[(shape.slot * R + r) * a.cache.head_dim + shape.piece * kDims + i] = sum[r][i];
    }
  }
}

__device__ __forceinline__ float* PartialOf(const AttentionArgs& a, const AttentionGroup& group,
                                            int kv_head, int row, int part) {
  const int64_t rows = static_cast<int64_t>(kv_head) * a.total_rows + group.first_partial + row;
  return a.partials + (rows * a.parts + part) * AttentionPartialFloats(a.cache.head_dim);
}

// Blocks: x parts, y kv heads, z groups.
template <class Kv, int R>
__global__ void __launch_bounds__(kThreads) AttentionKernel(AttentionArgs a) {
  SLUICE_SHARED(PartShared<R>, s);
  const AttentionGroup& group = a.groups[blockIdx.z];
  const int part = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int head_dim = a.cache.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  const auto head = static_cast<size_t>(kv_head);
  const float scale = a.softcap != 0.0f ? a.scale : a.scale * kLog2E;
  PartPlace place;
  place.k = a.cache.k + head * KvKeyBytes(a.cache.dtype, head_dim);
  place.v = a.cache.v + head * KvValueBytes(a.cache.dtype, head_dim);
  place.blocks = group.blocks;
  place.start = part * kAttentionPartTokens;
  for (int first = 0; first < group.rows; first += R) {
    const int rows = group.rows - first < R ? group.rows - first : R;
    // Ascending: the first row sees furthest back, the last furthest on.
    place.begin = group.first_visible[first] - place.start;
    place.end = group.context[first + rows - 1] - place.start;
    if (place.begin < 0) place.begin = 0;
    if (place.end > kAttentionPartTokens) place.end = kAttentionPartTokens;
    if (place.begin >= place.end) continue;
    // Of what the tile before may still read, `s.v` and `s.top`, nothing is written before the
    // barrier below.

    for (int i = thread; i < R * head_dim; i += kThreads) {
      // Rows past the last repeat it, and are not written.
      const int r = i / head_dim, d = i % head_dim;
      const int row = first + (r < rows ? r : rows - 1);
      const int64_t at =
          group.offsets[row] + static_cast<int64_t>(kv_head) * a.group_heads * head_dim;
      s.q[r][d] = a.q[at + d] * scale;
    }
    __syncthreads();
    if constexpr (kIsQ8<Kv>) {
      for (int r = WarpOf(); r < R; r += kWarps) QuantizeQuery(head_dim, r, s);
      __syncthreads();
    }
    const int last_block = (place.end - 1) / kKvBlockTokens;
    for (int block = place.begin / kKvBlockTokens + WarpOf(); block <= last_block;
         block += kWarps) {
      if constexpr (kIsQ8<Kv>) {
        BlockScoresQ8(a, KeysOf(a, place, block), block, s);
      } else {
        BlockScores<Kv>(a, KeysOf(a, place, block), block, s);
      }
    }
    __syncthreads();
    for (int r = WarpOf(); r < R; r += kWarps) {
      const int row = first + (r < rows ? r : rows - 1);
      SoftmaxRow(a, r, group.first_visible[row] - place.start, group.context[row] - place.start, s);
    }
    __syncthreads();
    int slots;
    if constexpr (kIsQ8<Kv>) {
      WeighValuesQ8(a, place, s);
      slots = kThreads / (head_dim / 4);
    } else {
      WeighValues<Kv>(a, place, s);
      slots = kThreads / (head_dim / 8);
    }
    __syncthreads();
    for (int i = thread; i < rows * head_dim; i += kThreads) {
      const int r = i / head_dim, d = i % head_dim;
      const int row = first + r;
      if (group.context[row] <= place.start ||
          group.first_visible[row] >= place.start + kAttentionPartTokens) {
        continue;
      }
      float sum = 0;
      for (int slot = 0; slot < slots; ++slot) sum += s.v[(slot * R + r) * head_dim + d];
      float* partial = PartialOf(a, group, kv_head, row, part);
      partial[d] = sum;
      if (d == 0) {
        partial[head_dim] = s.top[r];
        partial[head_dim + 1] = s.total[r];
      }
    }
  }
}

// A row's parts, merged upwards, normalized and written. Blocks: x rows, y kv heads, z groups; a
// thread per dimension.
__global__ void MergeKernel(AttentionArgs a) {
  const AttentionGroup& group = a.groups[blockIdx.z];
  const int row = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int head_dim = a.cache.head_dim;
  const int d = static_cast<int>(threadIdx.x);
  if (row >= group.rows || d >= head_dim) return;
  const int first = group.first_visible[row] / kAttentionPartTokens;
  const int last = (group.context[row] - 1) / kAttentionPartTokens;
  const float* partial = PartialOf(a, group, kv_head, row, first);
  float sum = partial[d];
  float top = partial[head_dim];
  float total = partial[head_dim + 1];
  for (int part = first + 1; part <= last; ++part) {
    partial = PartialOf(a, group, kv_head, row, part);
    const float part_top = partial[head_dim];
    const float new_top = part_top > top ? part_top : top;
    const float old_scale = Exp2OfNegative(top - new_top);
    const float part_scale = Exp2OfNegative(part_top - new_top);
    sum = fmaf(partial[d], part_scale, sum * old_scale);
    total = fmaf(partial[head_dim + 1], part_scale, total * old_scale);
    top = new_top;
  }
  float out_scale = 1.0f;
  if (a.has_sink) {
    const float sink = a.sink_logit * kLog2E;
    const float new_top = top > sink ? top : sink;
    out_scale = Exp2OfNegative(top - new_top);
    total = total * out_scale + Exp2OfNegative(sink - new_top);
  }
  const int64_t at = group.offsets[row] + static_cast<int64_t>(kv_head) * a.group_heads * head_dim;
  a.out[at + d] = sum * (out_scale / total);
}

// ---- Writes ------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned FloatToBf16(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

__device__ __forceinline__ void PutValue(KvDType dtype, std::byte* array, int at, float value) {
  if (dtype == KvDType::kF32) {
    reinterpret_cast<float*>(array)[at] = value;
    return;
  }
  reinterpret_cast<uint16_t*>(array)[at] =
      static_cast<uint16_t>(dtype == KvDType::kF16 ? FloatToHalf(value) : FloatToBf16(value));
}

// The group's scale, from a warp's largest magnitude.
__device__ __forceinline__ unsigned ScaleOfGroup(float largest) {
  const float wanted = largest * (1.0f / 127.0f);
  unsigned half = FloatToHalf(wanted);
  if (HalfToFloat(half) < wanted) ++half;
  return half > 0x7bff ? 0x7bff : half;
}
__device__ __forceinline__ uint8_t CodeOf(float x, float inverse) {
  return static_cast<uint8_t>(static_cast<int>(RoundToEven(Clamped(x * inverse, -127.0f, 127.0f))) +
                              128);
}

// A head's row of n values in groups of `group`, by a warp; put(d, code) and put_scale(g, half).
template <class Put, class PutScale>
__device__ __forceinline__ void QuantizeHead(const float* x, int n, int group, Put put,
                                             PutScale put_scale) {
  for (int begin = 0; begin < n; begin += group) {
    const int end = begin + group < n ? begin + group : n;
    float largest = 0;
    for (int d = begin + LaneOf(); d < end; d += kWarpLanes) {
      const float size = x[d] < 0 ? -x[d] : x[d];
      largest = size > largest ? size : largest;
    }
    const unsigned half = ScaleOfGroup(WarpMax(largest));
    const float scale = HalfToFloat(half);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int d = begin + LaneOf(); d < end; d += kWarpLanes) put(d, CodeOf(x[d], inverse));
    if (LaneOf() == 0) put_scale(begin / group, half);
  }
}

// Blocks: x tokens; a warp per kv head.
__global__ void KvWriteKernel(KvWriteArgs a) {
  const KvCache& c = a.cache;
  const int head_dim = c.head_dim;
  const auto token = static_cast<int64_t>(blockIdx.x);
  const int place = a.slots[token];
  const int slot = place % kKvBlockTokens;
  const auto block = static_cast<size_t>(place / kKvBlockTokens);
  for (int head = WarpOf(); head < c.kv_heads; head += kWarps) {
    const float* k = a.k + (token * c.kv_heads + head) * head_dim;
    const float* v = a.v + (token * c.kv_heads + head) * head_dim;
    std::byte* keys =
        c.k + block * c.k_block_bytes + static_cast<size_t>(head) * KvKeyBytes(c.dtype, head_dim);
    std::byte* values =
        c.v + block * c.v_block_bytes + static_cast<size_t>(head) * KvValueBytes(c.dtype, head_dim);
    if (c.dtype != KvDType::kQ8) {
      for (int d = LaneOf(); d < head_dim; d += kWarpLanes) {
        PutValue(c.dtype, keys, d * kKvBlockTokens + slot, k[d]);
        PutValue(c.dtype, values, slot * head_dim + d, v[d]);
      }
      continue;
    }
    const int padded = (head_dim + 15) / 16 * 16;
    auto* key_scales = reinterpret_cast<uint16_t*>(keys + (head_dim + 3) / 4 * 64) + slot;
    auto* value_scales = reinterpret_cast<uint16_t*>(values + padded * 16) + slot;
    float poison = 0;
    for (int d = LaneOf(); d < head_dim; d += kWarpLanes) {
      poison = fmaf(k[d], 0.0f, fmaf(v[d], 0.0f, poison));
    }
    if (WarpSum(poison) != 0.0f) {
      if (LaneOf() == 0) {
        for (int g = 0; g * kKvKeyGroup < head_dim; ++g) key_scales[g * kKvBlockTokens] = 0x7e00;
        for (int g = 0; g * kKvValueGroup < head_dim; ++g) value_scales[g * kKvBlockTokens] = 0;
      }
      continue;
    }
    QuantizeHead(
        k, head_dim, kKvKeyGroup,
        [&](int d, uint8_t code) {
          keys[d / 4 * 64 + slot * 4 + d % 4] = static_cast<std::byte>(code);
        },
        [&](int g, unsigned half) {
          key_scales[g * kKvBlockTokens] = static_cast<uint16_t>(half);
        });
    QuantizeHead(
        v, head_dim, kKvValueGroup,
        [&](int d, uint8_t code) {
          values[(slot / 4 * padded + d) * 4 + slot % 4] = static_cast<std::byte>(code);
        },
        [&](int g, unsigned half) {
          value_scales[g * kKvBlockTokens] = static_cast<uint16_t>(half);
        });
  }
}

template <int R>
Status LaunchParts(const AttentionArgs& args, Stream stream) {
  const dim3 grid = {static_cast<unsigned>(args.parts), static_cast<unsigned>(args.cache.kv_heads),
                     static_cast<unsigned>(args.group_count)};
  switch (args.cache.dtype) {
    case KvDType::kF32:
      return Launch(AttentionKernel<F32Kv, R>, grid, kThreads, stream, args);
    case KvDType::kF16:
      return Launch(AttentionKernel<F16Kv, R>, grid, kThreads, stream, args);
    case KvDType::kBF16:
      return Launch(AttentionKernel<Bf16Kv, R>, grid, kThreads, stream, args);
    case KvDType::kQ8:
      break;
  }
  return Launch(AttentionKernel<Q8Kv, R>, grid, kThreads, stream, args);
}

}  // namespace

Status KvWrite(const KvWriteArgs& args, Stream stream) {
  if (args.tokens == 0) return Status::kOk;
  return Launch(KvWriteKernel, {static_cast<unsigned>(args.tokens), 1, 1}, kThreads, stream, args);
}

Status Attention(const AttentionArgs& args, Stream stream) {
  if (args.group_count == 0 || args.max_rows == 0) return Status::kOk;
  const Status status =
      args.max_rows == 1 ? LaunchParts<1>(args, stream) : LaunchParts<4>(args, stream);
  if (status != Status::kOk) return status;
  const dim3 grid = {static_cast<unsigned>(args.max_rows),
                     static_cast<unsigned>(args.cache.kv_heads),
                     static_cast<unsigned>(args.group_count)};
  const int threads = (args.cache.head_dim + kWarpLanes - 1) / kWarpLanes * kWarpLanes;
  return Launch(MergeKernel, grid, threads, stream, args);
}

}  // namespace sluice::cuda
