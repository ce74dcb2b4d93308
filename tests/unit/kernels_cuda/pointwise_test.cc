// Ops over rows on the device, over the cases of pointwise_test.cc and of the CPU backend's router.
#include <algorithm>
#include <numeric>

#include "kernels/reference/reference.h"
#include "tests/unit/kernels_cuda/cuda_fixture.h"

namespace sluice::cuda {
namespace {

using cpu::Numbers;

std::vector<int> Lengths() {
  std::vector<int> lengths;
  for (int n = 1; n <= 70; ++n) lengths.push_back(n);
  for (const int n : {127, 128, 255, 256, 257, 1000, 2048}) lengths.push_back(n);
  return lengths;
}

TEST_CASE("Device: RMS norm agrees with the reference at every length, also in place",
          "[cuda][pointwise]") {
  Numbers numbers(31);
  for (const int n : Lengths()) {
    INFO("length " << n);
    const int rows = 1 + n % 3, stride = n + n % 4;
    const std::vector<float> x = numbers.Vector(static_cast<size_t>(rows) * stride, 3.0f);
    const std::vector<float> w = numbers.Vector(n, 2.0f);
    const DeviceArray<float> weight(w);
    const auto run = [&](bool in_place) {
      const DeviceArray<float> in(x), out(x);
      RmsNormArgs args;
      args.x = in_place ? out.data() : in.data();
      args.x_stride = args.out_stride = stride;
      args.weight = weight.data();
      args.eps = 1e-6f;
      args.rows = rows;
      args.cols = n;
      args.out = out.data();
      REQUIRE(RmsNorm(args, nullptr) == Status::kOk);
      return out.Values();
    };
    const std::vector<float> out =
        n % 16 == 1 ? InEveryOrder([&] { return run(false); }) : run(false);
    std::vector<float> expected = x;
    for (int row = 0; row < rows; ++row) {
      reference::RmsNorm(&x[row * stride], w.data(), n, 1e-6f, &expected[row * stride]);
    }
    CHECK(WorstRelative(out, expected, 1e-6) < 1e-6);
    CHECK(SameBytes(run(true), out));
  }
}

TEST_CASE("Device: SwiGLU's product agrees with the reference, also at the ends of the range",
          "[cuda][pointwise]") {
  Numbers numbers(38);
  for (const int n : {1, 31, 255, 256, 257, 1000}) {
    const std::vector<float> gate = numbers.Vector(n, 3.0f), up = numbers.Vector(n, 2.0f);
    const DeviceArray<float> device_gate(gate), device_up(up), out(n);
    REQUIRE(SiluMul({device_gate.data(), device_up.data(), n, out.data()}, nullptr) == Status::kOk);
    std::vector<float> expected(n);
    reference::SiluMul(gate.data(), up.data(), n, expected.data());
    CHECK(WorstRelative(out.Values(), expected, 1e-6) < 1e-6);
  }
  const DeviceArray<float> gate(std::vector<float>{-1000, -90, 0, 90, 1000, NAN});
  const DeviceArray<float> up(std::vector<float>(6, 1.0f));
  REQUIRE(SiluMul({gate.data(), up.data(), 6, gate.data()}, nullptr) == Status::kOk);
  const std::vector<float> out = gate.Values();
  CHECK(std::fabs(out[0]) < 1e-30f);
  CHECK(std::fabs(out[1]) < 1e-30f);
  CHECK(out[2] == 0.0f);
  CHECK(out[3] == 90.0f);
  CHECK(out[4] == 1000.0f);
  CHECK(std::isnan(out[5]));
}

TEST_CASE("Device: rotary embedding agrees with the reference for every size",
          "[cuda][pointwise]") {
  Numbers numbers(32);
  for (int dim = 2; dim <= 140; dim += 2) {
    INFO("rotary_dim " << dim);
    const int tokens = 3, heads = 1 + dim % 3, head_dim = dim + dim % 8, half = dim / 2;
    const std::vector<float> cos = numbers.Vector(8 * half), sin = numbers.Vector(8 * half);
    const std::vector<int32_t> positions = {5, 0, 7};
    const std::vector<float> values = numbers.Vector(tokens * heads * head_dim);
    std::vector<float> expected = values;
    for (int i = 0; i < tokens * heads; ++i) {
      const int at = positions[i / heads] * half;
      reference::Rope(&expected[i * head_dim], &cos[at], &sin[at], dim);
    }
    const DeviceArray<float> device_cos(cos), device_sin(sin), x(values);
    const DeviceArray<int32_t> device_positions(positions);
    RopeArgs args;
    args.x = x.data();
    args.tokens = tokens;
    args.heads = heads;
    args.head_dim = head_dim;
    args.rotary_dim = dim;
    args.cos = device_cos.data();
    args.sin = device_sin.data();
    args.table_stride = half;
    args.positions = device_positions.data();
    REQUIRE(Rope(args, nullptr) == Status::kOk);
    CHECK(WorstRelative(x.Values(), expected, 1.0) < 3e-7);
  }
}

TEST_CASE("Device: experts' outputs are added up by weight in the order of their slots",
          "[cuda][pointwise]") {
  Numbers numbers(39);
  const int tokens = 5, slots = 4, cols = 77, outputs = 13;
  const std::vector<float> y = numbers.Vector(outputs * cols), out = numbers.Vector(tokens * cols);
  const std::vector<float> weights = numbers.Vector(tokens * slots);
  std::vector<int32_t> index(tokens * slots);
  for (int32_t& i : index) i = numbers.Below(outputs);
  std::vector<float> expected = out;
  for (int t = 0; t < tokens; ++t) {
    for (int c = 0; c < cols; ++c) {
      float sum = 0;
      for (int s = 0; s < slots; ++s) {
        sum = std::fmaf(y[index[t * slots + s] * cols + c], weights[t * slots + s], sum);
      }
      expected[t * cols + c] += sum;
    }
  }
  const DeviceArray<float> device_y(y), device_out(out), device_weights(weights);
  const DeviceArray<int32_t> device_index(index);
  CombineArgs args;
  args.y = device_y.data();
  args.tokens = tokens;
  args.slots = slots;
  args.cols = cols;
  args.index = device_index.data();
  args.weights = device_weights.data();
  args.out = device_out.data();
  REQUIRE(Combine(args, nullptr) == Status::kOk);
  CHECK(SameBytes(device_out.Values(), expected));
}

struct Routed {
  std::vector<float> probabilities;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// Tokens' logits [tokens, n]; gates empty or one per token.
Routed RouteAll(const std::vector<float>& logits, int n, int k, bool renormalize,
                const std::vector<float>& gates = {}) {
  const int tokens = static_cast<int>(logits.size()) / n;
  const DeviceArray<float> p(logits), gate(gates), weights(static_cast<size_t>(tokens) * (k + 1));
  const DeviceArray<int32_t> ids(static_cast<size_t>(tokens) * k);
  RouteArgs args;
  args.logits = p.data();
  args.stride = n;
  args.tokens = tokens;
  args.n = n;
  args.k = k;
  args.renormalize = renormalize;
  args.ids = ids.data();
  args.ids_stride = k;
  args.weights = weights.data();
  args.weights_stride = k + 1;
  args.gate = gates.empty() ? nullptr : gate.data();
  args.gate_stride = 1;
  REQUIRE(Route(args, nullptr) == Status::kOk);
  return {p.Values(), ids.Values(), weights.Values()};
}

TEST_CASE("Device: the router takes the largest probabilities, of equal ones the lower index",
          "[cuda][router]") {
  Numbers numbers(60);
  for (const int n : {1, 2, 8, 31, 32, 33, 60, 128, 300}) {
    for (const int k : {1, 2, 8, 40}) {
      if (k > n) continue;
      INFO("experts " << n << " chosen " << k);
      const int tokens = 6;
      std::vector<float> logits = numbers.Vector(static_cast<size_t>(tokens) * n, 4.0f);
      // Few distinct values: ties everywhere.
      for (int i = 0; i < 3 * n; ++i) logits[i] = std::nearbyint(logits[i]) * 0.5f;
      for (const bool renormalize : {false, true}) {
        const Routed routed = RouteAll(logits, n, k, renormalize);
        for (int t = 0; t < tokens; ++t) {
          const float* row = &logits[static_cast<size_t>(t) * n];
          std::vector<float> p(row, row + n);
          reference::Softmax(p.data(), n);
          const std::vector<float> got(&routed.probabilities[static_cast<size_t>(t) * n],
                                       &routed.probabilities[static_cast<size_t>(t) * n] + n);
          CHECK(WorstRelative(got, p, 1e-9) < 2e-6);
          std::vector<int> order(n);
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(),
                           [&](int a, int b) { return row[a] > row[b]; });
          double sum = 0;
          for (int s = 0; s < k; ++s) sum += p[order[s]];
          for (int s = 0; s < k; ++s) {
            CHECK(routed.ids[t * k + s] == order[s]);
            const double expected = renormalize ? p[order[s]] / sum : p[order[s]];
            CHECK(std::fabs(routed.weights[t * (k + 1) + s] - expected) < 2e-6 * expected + 1e-12);
          }
          // Nothing is written past the chosen ones without a gate.
          CHECK(std::isnan(routed.weights[t * (k + 1) + k]));
        }
      }
    }
  }
}

TEST_CASE("Device: the router gives a token the same bytes in any company and order",
          "[cuda][router]") {
  Numbers numbers(61);
  const int n = 77, k = 6, tokens = 9;
  const std::vector<float> logits = numbers.Vector(tokens * n, 5.0f);
  const std::vector<float> gates = numbers.Vector(tokens, 4.0f);
  Routed all;
  const std::vector<float> weights = InEveryOrder([&] {
    all = RouteAll(logits, n, k, true, gates);
    return all.weights;
  });
  for (int t = 0; t < tokens; ++t) {
    const std::vector<float> row(&logits[t * n], &logits[t * n] + n);
    const Routed one = RouteAll(row, n, k, true, {gates[t]});
    CHECK(std::memcmp(one.weights.data(), &weights[t * (k + 1)], (k + 1) * 4) == 0);
    CHECK(std::memcmp(one.ids.data(), &all.ids[t * k], k * 4) == 0);
    const double expected = 1 / (1 + std::exp(-static_cast<double>(gates[t])));
    CHECK(std::fabs(weights[t * (k + 1) + k] - expected) < 1e-6 * expected);
  }
}

TEST_CASE("Device: logits that are not numbers still choose experts that exist", "[cuda][router]") {
  const int n = 40, k = 3;
  std::vector<float> logits(n, 1.0f);
  logits[20] = NAN;
  CHECK(RouteAll(logits, n, k, false).ids == std::vector<int32_t>{0, 1, 2});
  logits[20] = INFINITY;
  CHECK(RouteAll(logits, n, k, true).ids == std::vector<int32_t>{0, 1, 2});
  logits.assign(n, -INFINITY);
  CHECK(RouteAll(logits, n, k, false).ids == std::vector<int32_t>{0, 1, 2});
  logits[33] = 0.0f;
  const Routed one = RouteAll(logits, n, k, false);
  CHECK(one.ids == std::vector<int32_t>{33, 0, 1});
  CHECK(one.weights[0] == 1.0f);
  CHECK(one.weights[1] == 0.0f);
}

}  // namespace
}  // namespace sluice::cuda
