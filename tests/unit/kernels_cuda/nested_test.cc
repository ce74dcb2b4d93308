// Bit-nested products on the device, over the cases of nested_matmul_test.cc.
#include "kernels/reference/reference.h"
#include "tests/unit/kernels/nested_fixture.h"
#include "tests/unit/kernels_cuda/cuda_fixture.h"

namespace sluice::cuda {
namespace {

using cpu::Numbers;

std::string Case(NestedFormat format, int planes, int cols, int tokens) {
  return sluice::Case(format) + " planes " + std::to_string(planes) + " cols " +
         std::to_string(cols) + " tokens " + std::to_string(tokens);
}

// The planes of a matrix in device memory; those past `planes` stay behind.
struct DeviceMatrix {
  std::vector<std::unique_ptr<DeviceArray<std::byte>>> storage;
  NestedOperand operand;

  DeviceMatrix(const NestedMatrix& matrix, int planes, NestedLevel level) {
    std::vector<const std::byte*> starts;
    for (int i = 0; i < planes; ++i) {
      const size_t bytes = NestedPlaneBytes(matrix.format, matrix.rows, matrix.cols, i);
      storage.push_back(std::make_unique<DeviceArray<std::byte>>(
          std::vector<std::byte>(matrix.planes[i], matrix.planes[i] + bytes)));
      starts.push_back(storage.back()->data());
    }
    operand = MakeNestedOperand(matrix.format, level, planes, starts.data(), matrix.cols);
  }
};

struct DeviceInputs {
  DeviceArray<float> x;
  DeviceArray<std::byte> memory;
  QuantizedRows rows;

  DeviceInputs(const std::vector<float>& values, int tokens, int cols, int stride = 0)
      : x(values), memory(QuantizedBytes(tokens, cols)) {
    rows = QuantizedAt(memory.data(), tokens, cols);
    QuantizeArgs args;
    args.x = x.data();
    args.x_stride = stride != 0 ? stride : cols;
    args.rows = tokens;
    args.cols = cols;
    args.out = rows;
    REQUIRE(QuantizeRows(args, nullptr) == Status::kOk);
  }
};

std::vector<float> Multiply(const NestedMatrix& matrix, int planes, NestedLevel level,
                            const std::vector<float>& x, int tokens, const float* bias,
                            int splits = 1, int stride = 0) {
  const int rows = matrix.rows, cols = matrix.cols;
  if (stride == 0) stride = rows;
  const DeviceMatrix device(matrix, planes, level);
  const DeviceInputs inputs(x, tokens, cols);
  NestedGroup group;
  group.matrix[0] = device.operand;
  group.count = tokens;
  const DeviceArray<NestedGroup> groups(std::vector<NestedGroup>{group});
  const DeviceArray<float> device_bias(bias != nullptr ? std::vector<float>(bias, bias + rows)
                                                       : std::vector<float>());
  const DeviceArray<float> y(static_cast<size_t>(tokens) * stride);
  const DeviceArray<float> partials(splits > 1 ? NestedPartialFloats(1, rows, cols, tokens) : 0);
  NestedMatmulArgs args;
  args.groups = groups.data();
  args.group_count = 1;
  args.max_count = tokens;
  args.x = inputs.rows;
  args.rows = rows;
  args.cols = cols;
  args.bias = bias != nullptr ? device_bias.data() : nullptr;
  args.y = y.data();
  args.y_stride = stride;
  args.splits = splits;
  args.partials = partials.data();
  args.outputs = tokens;
  REQUIRE(NestedMatmul(args, nullptr) == Status::kOk);
  return y.Values();
}

TEST_CASE("Device: nested matmul agrees with dequantized weights at every precision",
          "[cuda][nested]") {
  Numbers numbers(41);
  for (const NestedFormat format : AllNestedFormats()) {
    for (const auto& [rows, cols] : {std::pair(1, 1),
                                     {16, 15},
                                     {17, 16},
                                     {5, 17},
                                     {33, 31},
                                     {16, 32},
                                     {40, 33},
                                     {20, 255},
                                     {31, 256},
                                     {18, 257},
                                     {35, 600}}) {
      NestedMatrix matrix(format, rows, cols, numbers);
      const std::vector<float> bias = numbers.Vector(rows, 0.01f);
      for (int planes = 1; planes <= NestedPlanes(format.bits); ++planes) {
        const int tokens = 1 + (cols + planes) % 5;
        INFO(Case(format, planes, cols, tokens));
        const float* add = cols % 2 == 0 ? bias.data() : nullptr;
        const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * cols);
        NestedLevel level = DefaultNestedLevel(format, planes);
        if (rows == 35) level = {level.mul * 1.03f, level.add - 0.21f};
        const std::vector<float> y = Multiply(matrix, planes, level, x, tokens, add);
        CHECK(WorstError(matrix, planes, level, x, tokens, add, y) < 2e-6);
      }
    }
  }
}

TEST_CASE("Device: nested matmul walks many chunks and more jobs than warps", "[cuda][nested]") {
  Numbers numbers(49);
  const int rows = 19, cols = 9 * 512 + 70;
  for (const NestedFormat format :
       {NestedFormat{ScaleKind::kU8Min, 32, 4}, NestedFormat{ScaleKind::kI8, 16, 6}}) {
    NestedMatrix matrix(format, rows, cols, numbers);
    const int planes = NestedPlanes(format.bits);
    const NestedLevel level = DefaultNestedLevel(format, planes);
    const std::vector<float> x = numbers.Vector(3 * static_cast<size_t>(cols));
    const std::vector<float> y = Multiply(matrix, planes, level, x, 3, nullptr);
    CHECK(WorstError(matrix, planes, level, x, 3, nullptr, y) < 2e-6);
    for (const int splits : {2, 3, 10}) {
      CHECK(SameBytes(Multiply(matrix, planes, level, x, 3, nullptr, splits), y));
    }
  }
}

TEST_CASE("Device: nested matmul is exact in its integer dot products at the extremes",
          "[cuda][nested]") {
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    const NestedFormat format = {ScaleKind::kF16Min, 32, static_cast<uint8_t>(bits)};
    Numbers numbers(42);
    NestedMatrix matrix(format, 16, 32, numbers);
    NestedPanel panel = matrix.panels[0];
    std::fill(panel.codes.begin(), panel.codes.end(), static_cast<uint8_t>((1 << bits) - 1));
    std::fill(panel.scale.begin(), panel.scale.end(), F32ToF16(1.0f));
    std::fill(panel.min.begin(), panel.min.end(), uint16_t{0});
    EncodeNestedPanel(format, 32, panel, 0, matrix.planes);
    for (const int tokens : {1, 3, 13}) {
      for (const float x : {127.0f, -127.0f}) {
        INFO(Case(format, NestedPlanes(bits), 32, tokens));
        const std::vector<float> y =
            Multiply(matrix, NestedPlanes(bits), {1, 0},
                     std::vector<float>(static_cast<size_t>(tokens) * 32, x), tokens, nullptr);
        CHECK(y == std::vector<float>(y.size(), 32 * x * static_cast<float>((1 << bits) - 1)));
      }
    }
  }
}

TEST_CASE("Device: nested matmul gives each token the same bytes in any company, split and order",
          "[cuda][nested]") {
  Numbers numbers(43);
  const int rows = 16 + 5, cols = 1100, most = 9;
  for (const NestedFormat format : AllNestedFormats()) {
    if (format.bits == 3) continue;  // its precisions are those of 4 bits
    NestedMatrix matrix(format, rows, cols, numbers);
    const std::vector<float> bias = numbers.Vector(rows);
    const std::vector<float> x = numbers.Vector(static_cast<size_t>(most) * cols);
    const int planes = NestedPlanes(format.bits);
    const NestedLevel level = DefaultNestedLevel(format, planes);
    std::vector<float> alone;
    for (int t = 0; t < most; ++t) {
      const std::vector<float> one(x.begin() + t * cols, x.begin() + (t + 1) * cols);
      const std::vector<float> y = Multiply(matrix, planes, level, one, 1, bias.data());
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (const int tokens : {2, 4, 5, 9}) {
      INFO(Case(format, planes, cols, tokens));
      const std::vector<float> some(x.begin(), x.begin() + tokens * cols);
      const std::vector<float> expected(alone.begin(), alone.begin() + tokens * rows);
      CHECK(SameBytes(Multiply(matrix, planes, level, some, tokens, bias.data()), expected));
      CHECK(SameBytes(Multiply(matrix, planes, level, some, tokens, bias.data(), 1 + tokens % 3),
                      expected));
    }
    if (format.bits != 8 || format.group == 16) continue;
    CHECK(SameBytes(
        InEveryOrder([&] { return Multiply(matrix, planes, level, x, most, bias.data(), 2); }),
        alone));
  }
}

TEST_CASE("Device: nested matmul reads no plane beyond its precision", "[cuda][nested]") {
  Numbers numbers(45);
  for (int planes = 1; planes < 5; ++planes) {
    NestedMatrix matrix({ScaleKind::kI8, 16, 8}, 16, 64, numbers);
    INFO(Case(matrix.format, planes, 64, 2));
    const std::vector<float> x = numbers.Vector(128);
    const NestedLevel level = DefaultNestedLevel(matrix.format, planes);
    // DeviceMatrix leaves the pointers of the others null.
    const std::vector<float> y = Multiply(matrix, planes, level, x, 2, nullptr);
    CHECK(WorstError(matrix, planes, level, x, 2, nullptr, y) < 2e-6);
  }
}

TEST_CASE("Device: nested matmul passes on what no 8-bit input can hold", "[cuda][nested]") {
  Numbers numbers(47);
  const int cols = 96;
  NestedMatrix matrix({ScaleKind::kF16, 32, 4}, 16, cols, numbers);
  const NestedLevel level = DefaultNestedLevel(matrix.format, 3);
  std::vector<float> x(cols, 0.0f);
  for (const float y : Multiply(matrix, 3, level, x, 1, nullptr)) CHECK(y == 0.0f);
  // Too small for a scale of their own: zeros.
  for (int k = 0; k < cols; ++k) x[k] = k % 2 == 0 ? 1e-45f : -1e-45f;
  for (const float y : Multiply(matrix, 3, level, x, 1, nullptr)) CHECK(y == 0.0f);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int at : {0, 17, 40, 95}) {
      x = numbers.Vector(cols);
      x[at] = bad;
      for (const float y : Multiply(matrix, 3, level, x, 1, nullptr)) CHECK(std::isnan(y));
    }
  }
}

TEST_CASE("Device: nested matmul leaves the gap between output rows alone", "[cuda][nested]") {
  Numbers numbers(48);
  const int rows = 21, cols = 48, stride = 30;
  NestedMatrix matrix({ScaleKind::kU8Min, 32, 4}, rows, cols, numbers);
  for (const int tokens : {1, 2, 9}) {
    for (const int splits : {1, 2}) {
      const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * cols);
      const std::vector<float> y = Multiply(matrix, 3, DefaultNestedLevel(matrix.format, 3), x,
                                            tokens, nullptr, splits, stride);
      int touched = 0;
      for (int t = 0; t < tokens; ++t) {
        for (int i = 0; i < stride; ++i) touched += std::isnan(y[t * stride + i]) != (i >= rows);
      }
      CHECK(touched == 0);
    }
  }
}

TEST_CASE("Device: activations are quantized to the codes and scales of the CPU's words",
          "[cuda][nested]") {
  Numbers numbers(50);
  for (const int cols : {1, 15, 32, 33, 300}) {
    const int tokens = 3, stride = cols + 5, units = NestedUnits(cols);
    const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * stride, 3.0f);
    const std::vector<std::byte> bytes = InEveryOrder([&] {
      const DeviceInputs inputs(x, tokens, cols, stride);
      return inputs.memory.Values();
    });
    std::vector<std::byte> copy = bytes;
    const QuantizedRows rows = QuantizedAt(copy.data(), tokens, cols);
    int wrong = 0;
    for (int t = 0; t < tokens; ++t) {
      const std::vector<double> expected = QuantizedInputs(&x[t * stride], cols);
      for (int unit = 0; unit < units; ++unit) {
        const size_t at = static_cast<size_t>(t * units + unit);
        float scale;
        uint32_t sums;
        std::memcpy(&scale, rows.scales + at, 4);
        std::memcpy(&sums, rows.sums + at, 4);
        int sum[2] = {0, 0};
        for (int k = 0; k < 32; ++k) {
          const int8_t code = rows.codes[at * 32 + k];
          const int col = unit * 32 + k;
          wrong += static_cast<double>(scale) * code != (col < cols ? expected[col] : 0.0);
          sum[k / 16] += code;
        }
        wrong += static_cast<int16_t>(sums & 0xffff) != sum[0];
        wrong += static_cast<int16_t>(sums >> 16) != sum[1];
      }
    }
    CHECK(wrong == 0);
  }
}

// ---- Experts -----------------------------------------------------------------------------------

struct Expert {
  NestedMatrix gate, up;
  int planes;
  std::vector<int32_t> tokens;
};

// One launch over all experts against each expert computed alone by the same kernel (exact) and by
// the reference (within tolerance).
TEST_CASE("Device: all experts of a layer go through gate, up and SwiGLU in one launch",
          "[cuda][nested][experts]") {
  Numbers numbers(51);
  const int hidden = 1100, width = 37, tokens = 11;
  const std::vector<float> x = numbers.Vector(static_cast<size_t>(tokens) * hidden);
  // Formats, precisions and counts differ; one expert is idle.
  std::vector<std::unique_ptr<Expert>> experts;
  const auto add = [&](NestedFormat format, int planes, std::vector<int32_t> rows) {
    experts.push_back(std::unique_ptr<Expert>(
        new Expert{NestedMatrix(format, width, hidden, numbers),
                   NestedMatrix(format, width, hidden, numbers), planes, std::move(rows)}));
  };
  add({ScaleKind::kU8Min, 32, 4}, 3, {0, 5, 10, 3, 4});
  add({ScaleKind::kU8Min, 32, 4}, 1, {7});
  add({ScaleKind::kI8, 16, 8}, 5, {});
  add({ScaleKind::kIq4F16, 32, 4}, 2, {10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
  add({ScaleKind::kF16, 32, 5}, 4, {2, 2});
  const DeviceInputs inputs(x, tokens, hidden);
  std::vector<std::unique_ptr<DeviceMatrix>> device;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> lists;
  std::vector<NestedGroup> groups;
  int64_t outputs = 0;
  int most = 0;
  for (const auto& e : experts) {
    const NestedLevel level = DefaultNestedLevel(e->gate.format, e->planes);
    NestedGroup group;
    device.push_back(std::make_unique<DeviceMatrix>(e->gate, e->planes, level));
    group.matrix[0] = device.back()->operand;
    device.push_back(std::make_unique<DeviceMatrix>(e->up, e->planes, level));
    group.matrix[1] = device.back()->operand;
    lists.push_back(std::make_unique<DeviceArray<int32_t>>(e->tokens));
    group.rows = lists.back()->data();
    group.count = static_cast<int>(e->tokens.size());
    group.first_output = outputs;
    outputs += group.count;
    most = std::max(most, group.count);
    groups.push_back(group);
  }
  const auto run = [&](const std::vector<NestedGroup>& some, int max_count, int splits) {
    const DeviceArray<NestedGroup> device_groups(some);
    const DeviceArray<float> y(static_cast<size_t>(outputs) * width);
    const DeviceArray<float> partials(NestedPartialFloats(2, width, hidden, outputs));
    NestedMatmulArgs args;
    args.groups = device_groups.data();
    args.group_count = static_cast<int>(some.size());
    args.max_count = max_count;
    args.matrices = 2;
    args.x = inputs.rows;
    args.rows = width;
    args.cols = hidden;
    args.y = y.data();
    args.y_stride = width;
    args.splits = splits;
    args.partials = partials.data();
    args.outputs = outputs;
    REQUIRE(NestedMatmul(args, nullptr) == Status::kOk);
    return y.Values();
  };
  const std::vector<float> together = InEveryOrder([&] { return run(groups, most, 1); });
  CHECK(SameBytes(InEveryOrder([&] { return run(groups, most, 2); }), together));
  for (size_t e = 0; e < experts.size(); ++e) {
    INFO("expert " << e);
    const Expert& expert = *experts[e];
    const int count = groups[e].count;
    const NestedLevel level = DefaultNestedLevel(expert.gate.format, expert.planes);
    for (int i = 0; i < count; ++i) {
      // Alone, through a list of one.
      NestedGroup one = groups[e];
      one.rows = nullptr;
      one.first_row = expert.tokens[i];
      one.count = 1;
      one.first_output = groups[e].first_output + i;
      const std::vector<float> alone = run({one}, 1, 1);
      const auto at = static_cast<size_t>(one.first_output) * width;
      CHECK(std::memcmp(&alone[at], &together[at], width * sizeof(float)) == 0);
    }
    // By the reference: the products by dequantized weights, then SwiGLU.
    for (int i = 0; i < count; ++i) {
      const std::vector<double> q = QuantizedInputs(&x[expert.tokens[i] * hidden], hidden);
      double sums[2][37];
      double sizes[2][37];
      for (int m = 0; m < 2; ++m) {
        const NestedMatrix& matrix = m == 0 ? expert.gate : expert.up;
        std::vector<float> w(static_cast<size_t>(width) * hidden);
        DequantizeNested(matrix.format, hidden, matrix.planes, expert.planes, level, 0, width,
                         w.data());
        for (int r = 0; r < width; ++r) {
          sums[m][r] = 0;
          sizes[m][r] = 0;
          for (int k = 0; k < hidden; ++k) {
            const double term = w[static_cast<size_t>(r) * hidden + k] * q[k];
            sums[m][r] += term;
            sizes[m][r] += std::fabs(term);
          }
        }
      }
      double worst = 0;
      for (int r = 0; r < width; ++r) {
        const double g = sums[0][r];
        const double expected = g / (1 + std::exp(-g)) * sums[1][r];
        const float y = together[(static_cast<size_t>(groups[e].first_output) + i) * width + r];
        // Silu grows no faster than 1.1 of its input.
        const double size =
            1.1 * sizes[0][r] * std::fabs(sums[1][r]) + std::fabs(g) * sizes[1][r] + 1e-20;
        worst = std::max(worst, std::fabs(y - expected) / size);
      }
      CHECK(worst < 5e-6);
    }
  }
}

}  // namespace
}  // namespace sluice::cuda
