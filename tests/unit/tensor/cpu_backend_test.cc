// The CPU backend's ops against plain loops, at sizes that cut work into one piece and into many.
#include "engine/tensor/cpu_backend.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/support/catch.h"

namespace sluice {
namespace {

// Values in [-1, 1), the same on every run.
std::vector<float> Values(size_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

struct Matrix {
  std::vector<float> values;  // row-major
  DeviceBuffer memory;
  PackedMatrix packed;
};

Matrix MakeMatrix(Backend& backend, int rows, int cols, uint32_t seed) {
  Matrix matrix;
  matrix.values = Values(static_cast<size_t>(rows) * cols, seed);
  auto memory = backend.Allocate(cpu::PackedMatrixBytes(DType::kF32, rows, cols), "a test");
  REQUIRE(memory.has_value());
  matrix.memory = std::move(*memory);
  backend.Pack(DType::kF32, matrix.values.data(), rows, cols, matrix.memory.data());
  matrix.packed = {DType::kF32, matrix.memory.data(), rows, cols};
  return matrix;
}

double Dot(const float* a, const float* b, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += double{a[i]} * b[i];
  return sum;
}

std::unique_ptr<CpuBackend> MakeBackend(int threads) {
  auto backend = std::make_unique<CpuBackend>(cpu::SelectOps(cpu::Isa::kAuto), threads, false);
  WorkspaceLimits limits;
  limits.max_tokens = 200;
  limits.max_cols = 320;
  limits.max_mlp_groups = 9;
  limits.max_mlp_rows = 600;
  limits.max_mlp_width = 400;
  limits.max_mlp_values = 600 * 400;
  REQUIRE(backend->Prepare(limits).has_value());
  CHECK(backend->workspace_bytes() > 600 * 400 * sizeof(float));
  return backend;
}

}  // namespace

TEST_CASE("Linear computes several matrices of one input, with norm, bias and addition",
          "[tensor]") {
  constexpr int kCols = 320;
  for (const int threads : {1, 3}) {
    auto backend = MakeBackend(threads);
    const Matrix a = MakeMatrix(*backend, 1000, kCols, 1);
    const Matrix b = MakeMatrix(*backend, 37, kCols, 2);
    const std::vector<float> bias = Values(1000, 3);
    const std::vector<float> norm = Values(kCols, 4);
    for (const int tokens : {1, 5, 64, 65, 200}) {
      INFO(threads << " threads, " << tokens << " tokens");
      const std::vector<float> x = Values(static_cast<size_t>(tokens) * kCols, 5);
      const std::vector<float> before = Values(static_cast<size_t>(tokens) * 37, 6);
      std::vector<float> y_a(static_cast<size_t>(tokens) * 1000);
      std::vector<float> y_b = before;
      std::vector<float> normed(x.size());
      const LinearOutput outputs[] = {
          {.weight = a.packed, .bias = bias.data(), .y = y_a.data(), .y_stride = 1000},
          {.weight = b.packed, .y = y_b.data(), .y_stride = 37, .add = true}};
      backend->Linear({.x = x.data(),
                       .x_stride = kCols,
                       .tokens = tokens,
                       .cols = kCols,
                       .norm_weight = norm.data(),
                       .norm_eps = 1e-5f,
                       .normed = normed.data(),
                       .outputs = outputs});
      double worst = 0;
      for (int t = 0; t < tokens; ++t) {
        const float* row = x.data() + static_cast<size_t>(t) * kCols;
        std::vector<float> f(kCols);
        const double scale = 1.0 / std::sqrt(Dot(row, row, kCols) / kCols + 1e-5);
        for (int i = 0; i < kCols; ++i) f[i] = static_cast<float>(row[i] * scale * norm[i]);
        for (int i = 0; i < kCols; ++i) {
          worst =
              std::max(worst, std::abs(double{f[i]} - normed[static_cast<size_t>(t) * kCols + i]));
        }
        for (int r = 0; r < 1000; ++r) {
          const double y = Dot(f.data(), a.values.data() + static_cast<size_t>(r) * kCols, kCols);
          worst = std::max(worst, std::abs(y + bias[r] - y_a[static_cast<size_t>(t) * 1000 + r]));
        }
        for (int r = 0; r < 37; ++r) {
          const size_t i = static_cast<size_t>(t) * 37 + r;
          const double y = Dot(f.data(), b.values.data() + static_cast<size_t>(r) * kCols, kCols);
          worst = std::max(worst, std::abs(y + before[i] - y_b[i]));
        }
      }
      CHECK(worst < 1e-4);
    }
  }
}

TEST_CASE("Mlp runs every group on its own rows and writes them group after group", "[tensor]") {
  constexpr int kHidden = 64;
  for (const int threads : {1, 2}) {
    auto backend = MakeBackend(threads);
    const Matrix gate0 = MakeMatrix(*backend, 40, kHidden, 11);
    const Matrix up0 = MakeMatrix(*backend, 40, kHidden, 12);
    const Matrix down0 = MakeMatrix(*backend, kHidden, 40, 13);
    const Matrix gate1 = MakeMatrix(*backend, 400, kHidden, 14);
    const Matrix up1 = MakeMatrix(*backend, 400, kHidden, 15);
    const Matrix down1 = MakeMatrix(*backend, kHidden, 400, 16);
    const std::vector<float> x = Values(200 * kHidden, 17);
    for (const int count : {1, 3, 130}) {
      INFO(threads << " threads, " << count << " rows");
      std::vector<int32_t> rows(count);
      for (int i = 0; i < count; ++i) rows[i] = (i * 7 + 3) % 200;
      // The last group repeats the middle one's single row where count is 1.
      const MlpGroup groups[] = {{gate1.packed, up1.packed, down1.packed, nullptr, count},
                                 {gate0.packed, up0.packed, down0.packed, rows.data(), count},
                                 {gate1.packed, up1.packed, down1.packed, rows.data(), count}};
      std::vector<float> y(static_cast<size_t>(3 * count) * kHidden);
      backend->Mlp(
          {.x = x.data(), .x_stride = kHidden, .hidden = kHidden, .groups = groups, .y = y.data()});
      double worst = 0;
      for (int n = 0; n < 3 * count; ++n) {
        const int group = n / count;
        const int row = group == 0 ? n : rows[n % count];
        const Matrix& gate = group == 1 ? gate0 : gate1;
        const Matrix& up = group == 1 ? up0 : up1;
        const Matrix& down = group == 1 ? down0 : down1;
        const int width = gate.packed.rows;
        std::vector<float> inner(width);
        for (int i = 0; i < width; ++i) {
          const double g = Dot(x.data() + row * kHidden, gate.values.data() + i * kHidden, kHidden);
          const double u = Dot(x.data() + row * kHidden, up.values.data() + i * kHidden, kHidden);
          inner[i] = static_cast<float>(g / (1 + std::exp(-g)) * u);
        }
        for (int r = 0; r < kHidden; ++r) {
          const double expected = Dot(inner.data(), down.values.data() + r * width, width);
          worst = std::max(worst, std::abs(expected - y[static_cast<size_t>(n) * kHidden + r]));
        }
      }
      CHECK(worst < 5e-3);  // inner values reach about 100
    }
  }
}

TEST_CASE("Embedding rows are the same from the table and from the packed head", "[tensor]") {
  auto backend = MakeBackend(2);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int cols : {33, 64, 200}) {
      const int rows = 50;
      // Bit patterns of finite halves (0x0001 ...) or floats, all different.
      const size_t bytes = static_cast<size_t>(rows) * cols * DTypeBytes(dtype);
      std::vector<std::byte> table(bytes);
      if (dtype == DType::kF32) {
        const auto values = Values(static_cast<size_t>(rows) * cols, 21);
        std::memcpy(table.data(), values.data(), bytes);
      } else {
        std::vector<uint16_t> values(static_cast<size_t>(rows) * cols);
        for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(0x3000 + i);
        std::memcpy(table.data(), values.data(), bytes);
      }
      auto memory = backend->Allocate(cpu::PackedMatrixBytes(dtype, rows, cols), "a test");
      REQUIRE(memory.has_value());
      backend->Pack(dtype, table.data(), rows, cols, memory->data());
      const std::vector<int32_t> ids = {0, 49, 15, 16, 17, 0};
      std::vector<float> plain(ids.size() * cols), packed(ids.size() * cols);
      backend->Embed({.rows = {dtype, table.data(), rows, cols}, .packed = {}}, ids, plain.data());
      backend->Embed({.rows = {}, .packed = {dtype, memory->data(), rows, cols}}, ids,
                     packed.data());
      CHECK(std::memcmp(plain.data(), packed.data(), plain.size() * sizeof(float)) == 0);
      CHECK(std::memcmp(plain.data(), plain.data() + 5 * cols, cols * sizeof(float)) == 0);
      CHECK(std::memcmp(plain.data(), plain.data() + cols, cols * sizeof(float)) != 0);
    }
  }
}

TEST_CASE("Top-k is descending, breaks ties by the lowest index and survives not-a-number",
          "[tensor]") {
  auto backend = MakeBackend(2);
  const auto top = [&](std::vector<float> logits, int k, bool renormalize,
                       std::vector<float>* weights) {
    std::vector<int32_t> ids(k, -1);
    weights->assign(k, -1);
    backend->TopK({.logits = logits.data(),
                   .stride = static_cast<ptrdiff_t>(logits.size()),
                   .tokens = 1,
                   .n = static_cast<int>(logits.size()),
                   .k = k,
                   .renormalize = renormalize,
                   .ids = ids.data(),
                   .ids_stride = k,
                   .weights = weights->data(),
                   .weights_stride = k});
    return ids;
  };
  std::vector<float> weights;
  CHECK(top({1, 3, 2, 3, 3, 0}, 4, false, &weights) == std::vector<int32_t>{1, 3, 4, 2});
  const double total = 3 * std::exp(3.0) + std::exp(2.0) + std::exp(1.0) + 1;
  CHECK(weights[0] == Approx(std::exp(3.0) / total));
  CHECK(weights[3] == Approx(std::exp(2.0) / total));
  CHECK(top({5, 5, 5}, 2, true, &weights) == std::vector<int32_t>{0, 1});
  CHECK(weights[0] == 0.5f);
  CHECK(top({0, 1, 2}, 3, true, &weights) == std::vector<int32_t>{2, 1, 0});
  CHECK(weights[0] + weights[1] + weights[2] == Approx(1.0));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto ids = top({nan, nan, nan, nan}, 2, false, &weights);
  CHECK(ids == std::vector<int32_t>{0, 1});
}

TEST_CASE("Top-k gives the shared expert the sigmoid of its gate", "[tensor]") {
  auto backend = MakeBackend(1);
  std::vector<float> logits = {0, 1, 0, 1};
  const std::vector<float> gate = {0.0f, 2.0f};
  std::vector<int32_t> ids(2);
  std::vector<float> weights(4);
  backend->TopK({.logits = logits.data(),
                 .stride = 2,
                 .tokens = 2,
                 .n = 2,
                 .k = 1,
                 .renormalize = true,
                 .ids = ids.data(),
                 .ids_stride = 1,
                 .weights = weights.data(),
                 .weights_stride = 2,
                 .gate = gate.data(),
                 .gate_stride = 1});
  CHECK(weights[0] == 1.0f);
  CHECK(weights[1] == Approx(0.5));
  CHECK(weights[2] == 1.0f);
  CHECK(weights[3] == Approx(1 / (1 + std::exp(-2.0))));
}

TEST_CASE("Combine adds each token's weighted rows to what was there", "[tensor]") {
  auto backend = MakeBackend(3);
  const std::vector<float> y = {1, 2, 10, 20, 100, 200};
  const std::vector<int32_t> index = {2, 0, 1, 1};
  const std::vector<float> weights = {0.5f, 2.0f, 1.0f, -1.0f};
  std::vector<float> out = {7, 8, 9, 10};
  backend->Combine({.y = y.data(),
                    .tokens = 2,
                    .slots = 2,
                    .hidden = 2,
                    .index = index.data(),
                    .weights = weights.data(),
                    .out = out.data()});
  CHECK(out == std::vector<float>{7 + 50 + 2, 8 + 100 + 4, 9, 10});
}

TEST_CASE("Attention over long contexts is the same for every number of threads", "[tensor]") {
  constexpr int kHeadDim = 32, kHeads = 4, kBlocks = 200;
  constexpr int kTokens = kBlocks * cpu::kKvBlockTokens;
  const std::vector<float> q = Values(size_t{3} * kHeads * kHeadDim, 3);
  const int32_t first[3] = {0, 0, 1500};
  const int32_t context[3] = {kTokens - 5, kTokens, 2900};
  for (const int kv_heads : {1, 2}) {
    const size_t stride = size_t{cpu::kKvBlockTokens} * kHeadDim * kv_heads;
    std::vector<float> k = Values(stride * kBlocks, 1), v = Values(stride * kBlocks, 2);
    std::vector<int32_t> blocks(kBlocks);
    for (int i = 0; i < kBlocks; ++i) blocks[i] = i * 7 % kBlocks;
    const int head_group = kHeads / kv_heads;
    std::vector<ptrdiff_t> offsets;
    std::vector<int32_t> row_first, row_context;
    for (int token = 0; token < 3; ++token) {
      for (int head = 0; head < head_group; ++head) {
        offsets.push_back((ptrdiff_t{token} * kHeads + head) * kHeadDim);
        row_first.push_back(first[token]);
        row_context.push_back(context[token]);
      }
    }
    std::vector<AttentionGroup> groups;
    for (const auto& [begin, tokens] : {std::pair(0, 2), std::pair(2, 1)}) {
      const int row = begin * head_group;
      groups.push_back({.blocks = blocks.data(),
                        .rows = tokens * head_group,
                        .offsets = offsets.data() + row,
                        .first_visible = row_first.data() + row,
                        .context = row_context.data() + row});
    }
    std::vector<float> expected;
    for (const int threads : {1, 2, 3, 7}) {
      const auto backend = MakeBackend(threads);
      std::vector<float> out(q.size(), -1.0f);
      PagedAttentionArgs args;
      const size_t block_bytes = stride * sizeof(float);
      args.kv = {KvDType::kF32, k.data(), v.data(), block_bytes, block_bytes, kv_heads, kHeadDim};
      args.heads = kHeads;
      args.q = q.data();
      args.out = out.data();
      args.scale = 0.5f;
      args.groups = groups;
      backend->Attention(args);
      if (threads == 1) expected = out;
      REQUIRE(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0);
    }
    for (const float value : expected) CHECK((value > -1.0f && value < 1.0f));
  }
}

}  // namespace sluice
