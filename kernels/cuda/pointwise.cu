// Norm, rotation, SwiGLU's product, the weighted sum of experts, and the router. All are bound by
// the bytes that they touch.
#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kRouteWarps = 4;

unsigned BlocksFor(int64_t items) {
  return static_cast<unsigned>((items + kBlockThreads - 1) / kBlockThreads);
}

// The thread's number in the launch.
__device__ __forceinline__ int64_t ItemOf() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// A block per row. Thread t sums columns t, t + threads, ...; warps' butterflies are added upwards.
__global__ void RmsNormKernel(RmsNormArgs a) {
  struct Sums {
    float of[kBlockThreads / kWarpLanes];
  };
  SLUICE_SHARED(Sums, shared);
  const auto row = static_cast<ptrdiff_t>(blockIdx.x);
  const float* x = a.x + row * a.x_stride;
  float* out = a.out + row * a.out_stride;
  const int threads = static_cast<int>(blockDim.x);
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.cols; i += threads) {
    squares = fmaf(x[i], x[i], squares);
  }
  squares = WarpSum(squares);
  if (LaneOf() == 0) shared.of[WarpOf()] = squares;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < threads / kWarpLanes; ++warp) sum += shared.of[warp];
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(a.cols) + a.eps);
  for (int i = static_cast<int>(threadIdx.x); i < a.cols; i += threads) {
    out[i] = x[i] * scale * a.weight[i];
  }
}

// A thread per pair.
__global__ void RopeKernel(RopeArgs a) {
  const int half = a.rotary_dim / 2;
  const int64_t item = ItemOf();
  if (item >= static_cast<int64_t>(a.tokens) * a.heads * half) return;
  const int64_t head = item / half;  // of all tokens
  const int i = static_cast<int>(item % half);
  const auto at = a.positions[head / a.heads] * a.table_stride + i;
  const float cos = a.cos[at];
  const float sin = a.sin[at];
  float* x = a.x + head * a.head_dim + i;
  const float first = x[0];
  const float second = x[half];
  x[0] = first * cos - second * sin;
  x[half] = second * cos + first * sin;
}

__global__ void SiluMulKernel(SiluMulArgs a) {
  const int64_t i = ItemOf();
  if (i < a.n) a.out[i] = Silu(a.gate[i]) * a.up[i];
}

// A thread per token and column.
__global__ void CombineKernel(CombineArgs a) {
  const int64_t item = ItemOf();
  if (item >= static_cast<int64_t>(a.tokens) * a.cols) return;
  const int64_t token = item / a.cols;
  const int64_t col = item % a.cols;
  float sum = 0;
  for (int s = 0; s < a.slots; ++s) {
    const int64_t slot = token * a.slots + s;
    sum = fmaf(a.y[static_cast<int64_t>(a.index[slot]) * a.cols + col], a.weights[slot], sum);
  }
  a.out[item] += sum;
}

// An expert and its probability, in the order in which experts are taken. NaN comes after all
// numbers.
struct Choice {
  float key;
  float p;
  int id;
};
__device__ __forceinline__ bool Before(const Choice& a, const Choice& b) {
  return a.key > b.key || (a.key == b.key && a.id < b.id);
}

// A warp per token; lane l has experts l, l + 32, ...
__global__ void RouteKernel(RouteArgs a) {
  const int token = static_cast<int>(blockIdx.x) * kRouteWarps + WarpOf();
  if (token >= a.tokens) return;
  const int lane = LaneOf();
  float* p = a.logits + token * a.stride;
  int32_t* ids = a.ids + token * a.ids_stride;
  float* weights = a.weights + token * a.weights_stride;
  const float minus_infinity = __uint_as_float(0xff800000u);
  float top = minus_infinity;
  for (int e = lane; e < a.n; e += kWarpLanes) top = p[e] > top ? p[e] : top;
  top = WarpMax(top);
  float total = 0;
  for (int e = lane; e < a.n; e += kWarpLanes) {
    p[e] = ExpOrZero(p[e] - top);
    total += p[e];
  }
  const float scale = 1.0f / WarpSum(total);
  for (int e = lane; e < a.n; e += kWarpLanes) p[e] *= scale;

  Choice last = {__uint_as_float(0x7f800000u), 0, -1};
  float sum = 0;
  for (int slot = 0; slot < a.k; ++slot) {
    Choice best = {minus_infinity, 0, a.n};
    for (int e = lane; e < a.n; e += kWarpLanes) {
      const Choice choice = {p[e] == p[e] ? p[e] : -1.0f, p[e], e};
      if (Before(last, choice) && Before(choice, best)) best = choice;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
      const Choice other = {__shfl_xor_sync(kAllLanes, best.key, mask),
                            __shfl_xor_sync(kAllLanes, best.p, mask),
                            __shfl_xor_sync(kAllLanes, best.id, mask)};
      if (Before(other, best)) best = other;
    }
    last = best;
    sum += best.p;
    if (lane == 0) {
      ids[slot] = best.id;
      weights[slot] = best.p;
    }
  }
  if (a.gate != nullptr && lane == 0) {
    weights[a.k] = 1.0f / (1.0f + ExpOrZero(-a.gate[token * a.gate_stride]));
  }
  if (!a.renormalize) return;
  __syncwarp();
  for (int slot = lane; slot < a.k; slot += kWarpLanes) weights[slot] /= sum;
}

}  // namespace

Status RmsNorm(const RmsNormArgs& args, Stream stream) {
  if (args.rows == 0) return Status::kOk;
  // Of the length alone, as all that decides the order of a sum. Heads are a warp's work.
  const int threads = args.cols <= 256 ? kWarpLanes : kBlockThreads;
  return Launch(RmsNormKernel, {static_cast<unsigned>(args.rows), 1, 1}, threads, stream, args);
}

Status Rope(const RopeArgs& args, Stream stream) {
  const int64_t pairs = static_cast<int64_t>(args.tokens) * args.heads * (args.rotary_dim / 2);
  if (pairs == 0) return Status::kOk;
  return Launch(RopeKernel, {BlocksFor(pairs), 1, 1}, kBlockThreads, stream, args);
}

Status SiluMul(const SiluMulArgs& args, Stream stream) {
  if (args.n == 0) return Status::kOk;
  return Launch(SiluMulKernel, {BlocksFor(args.n), 1, 1}, kBlockThreads, stream, args);
}

Status Combine(const CombineArgs& args, Stream stream) {
  const int64_t items = static_cast<int64_t>(args.tokens) * args.cols;
  if (items == 0) return Status::kOk;
  return Launch(CombineKernel, {BlocksFor(items), 1, 1}, kBlockThreads, stream, args);
}

Status Route(const RouteArgs& args, Stream stream) {
  if (args.tokens == 0) return Status::kOk;
  const auto blocks = static_cast<unsigned>((args.tokens + kRouteWarps - 1) / kRouteWarps);
  return Launch(RouteKernel, {blocks, 1, 1}, kRouteWarps * kWarpLanes, stream, args);
}

}  // namespace sluice::cuda
