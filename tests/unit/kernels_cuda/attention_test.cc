// Paged attention and K/V writes on the device, over the cases of attention_test.cc and
// kv_write_test.cc.
#include <algorithm>
#include <optional>

#include "kernels/reference/reference.h"
#include "tests/unit/kernels_cuda/cuda_fixture.h"

namespace sluice::cuda {
namespace {

using cpu::kAllKvDTypes;
using cpu::Numbers;

struct Row {
  int first_visible;
  int context;
};

// What of attention the tests vary.
struct Settings {
  float scale = 1;
  float softcap = 0;
  std::optional<float> sink;
};

// A cache of one layer whose blocks are scattered, filled through KvWrite, every other slot NaN.
class Cache {
 public:
  Cache(KvDType dtype, int kv_heads, int head_dim, int tokens, Numbers& numbers)
      : k_(numbers.Vector(static_cast<size_t>(tokens) * kv_heads * head_dim)),
        v_(numbers.Vector(static_cast<size_t>(tokens) * kv_heads * head_dim)),
        blocks_((tokens + 15) / 16),
        k_cache_(static_cast<size_t>(2 * blocks_ + 1) * kv_heads * KvKeyBytes(dtype, head_dim)),
        v_cache_(static_cast<size_t>(2 * blocks_ + 1) * kv_heads * KvValueBytes(dtype, head_dim)) {
    kv_.dtype = dtype;
    kv_.k = k_cache_.data();
    kv_.v = v_cache_.data();
    kv_.k_block_bytes = kv_heads * KvKeyBytes(dtype, head_dim);
    kv_.v_block_bytes = kv_heads * KvValueBytes(dtype, head_dim);
    kv_.kv_heads = kv_heads;
    kv_.head_dim = head_dim;
    // Physical order is reversed with gaps, so that a kernel that ignores the table fails.
    for (int b = 0; b < blocks_; ++b) table_.push_back(2 * (blocks_ - b) - 1);
    std::vector<int32_t> slots;
    for (int t = 0; t < tokens; ++t) slots.push_back(table_[t / 16] * 16 + t % 16);
    const DeviceArray<float> k(k_), v(v_);
    const DeviceArray<int32_t> device_slots(slots);
    REQUIRE(KvWrite({kv_, k.data(), v.data(), tokens, device_slots.data()}, nullptr) ==
            Status::kOk);
  }

  int head_dim() const { return kv_.head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(kv_.head_dim)); }

  // Groups of rows of one kv head each see the same sequence; row i of all has its query at
  // i * heads * stride, head h of it h * stride further.
  std::vector<float> Attend(const Settings& settings, const std::vector<float>& q,
                            const std::vector<std::vector<Row>>& groups) const {
    const DeviceArray<float> device_q(q), out(q.size());
    const DeviceArray<int32_t> table(table_);
    std::vector<std::unique_ptr<DeviceArray<int64_t>>> offsets;
    std::vector<std::unique_ptr<DeviceArray<int32_t>>> bounds;
    std::vector<AttentionGroup> all;
    AttentionArgs args;
    int64_t row = 0;
    int longest = 0;
    for (const std::vector<Row>& rows : groups) {
      AttentionGroup group;
      std::vector<int64_t> at;
      std::vector<int32_t> first, context;
      group.first_partial = row;
      for (const Row& r : rows) {
        at.push_back(row++ * kv_.kv_heads * kv_.head_dim);
        first.push_back(r.first_visible);
        context.push_back(r.context);
        longest = std::max(longest, r.context);
      }
      group.blocks = table.data();
      group.rows = static_cast<int>(rows.size());
      args.max_rows = std::max(args.max_rows, group.rows);
      offsets.push_back(std::make_unique<DeviceArray<int64_t>>(at));
      group.offsets = offsets.back()->data();
      bounds.push_back(std::make_unique<DeviceArray<int32_t>>(first));
      group.first_visible = bounds.back()->data();
      bounds.push_back(std::make_unique<DeviceArray<int32_t>>(context));
      group.context = bounds.back()->data();
      all.push_back(group);
    }
    const DeviceArray<AttentionGroup> device_groups(all);
    args.cache = kv_;
    args.groups = device_groups.data();
    args.group_count = static_cast<int>(all.size());
    args.parts = AttentionParts(longest);
    args.group_heads = 1;
    args.q = device_q.data();
    args.out = out.data();
    args.scale = settings.scale;
    args.softcap = settings.softcap;
    args.has_sink = settings.sink.has_value();
    args.sink_logit = settings.sink.value_or(0);
    args.total_rows = row;
    const DeviceArray<float> partials(static_cast<size_t>(kv_.kv_heads * row * args.parts) *
                                      AttentionPartialFloats(kv_.head_dim));
    args.partials = partials.data();
    REQUIRE(Attention(args, nullptr) == Status::kOk);
    return out.Values();
  }

  // Largest error over all rows and heads.
  double WorstError(const Settings& settings, const std::vector<float>& q,
                    const std::vector<std::vector<Row>>& groups) const {
    const std::vector<float> out = Attend(settings, q, groups);
    const int head_dim = kv_.head_dim, heads = kv_.kv_heads;
    double worst = 0;
    size_t at = 0;
    for (const std::vector<Row>& rows : groups) {
      for (const Row& row : rows) {
        for (int head = 0; head < heads; ++head, at += head_dim) {
          std::vector<float> k(static_cast<size_t>(row.context) * head_dim), v(k.size());
          std::vector<float> expected(head_dim);
          for (int t = 0; t < row.context; ++t) {
            const size_t from = (static_cast<size_t>(t) * heads + head) * head_dim;
            const size_t to = static_cast<size_t>(t) * head_dim;
            reference::KvRounded(kv_.dtype, kKvKeyGroup, &k_[from], head_dim, &k[to]);
            reference::KvRounded(kv_.dtype, kKvValueGroup, &v_[from], head_dim, &v[to]);
          }
          reference::Attention(
              {&q[at], k.data(), v.data(), head_dim, row.first_visible, row.context, settings.scale,
               settings.softcap, settings.sink.value_or(0), settings.sink.has_value()},
              expected.data());
          for (int d = 0; d < head_dim; ++d) {
            const double error = std::fabs(static_cast<double>(out[at + d]) - expected[d]);
            worst = std::isnan(error) ? std::numeric_limits<double>::infinity()
                                      : std::max(worst, error);
          }
        }
      }
    }
    return worst;
  }

  void ForgetBlocksBefore(int token) {
    for (int b = 0; b < token / 16; ++b) table_[b] = -1;
  }

 private:
  std::vector<float> k_, v_;
  int blocks_;
  DeviceArray<std::byte> k_cache_, v_cache_;
  KvCache kv_;
  std::vector<int32_t> table_;
};

// Q8 rounds queries to 14 bits too.
double Tolerance(KvDType dtype) { return dtype == KvDType::kQ8 ? 5e-4 : 3e-6; }

TEST_CASE("Device: attention agrees with the reference and ignores what unused slots hold",
          "[cuda][attention]") {
  Numbers numbers(21);
  for (const KvDType dtype : kAllKvDTypes) {
    for (const int head_dim : {8, 16, 24, 32, 64, 72, 128, 256}) {
      for (const int context : {1, 2, 15, 16, 17, 47, 127, 128, 129, 300}) {
        INFO(KvDTypeName(dtype) << " head_dim " << head_dim << " context " << context);
        const Cache cache(dtype, 2, head_dim, context, numbers);
        const int rows = 1 + (head_dim / 8 + context) % 7;
        const std::vector<float> q = numbers.Vector(rows * 2 * head_dim, 4.0f);
        CHECK(cache.WorstError({cache.scale(), 0, {}}, q,
                               {std::vector<Row>(rows, Row{0, context})}) < Tolerance(dtype));
      }
    }
  }
}

TEST_CASE("Device: attention honours causal chunks, windows, softcap and sinks",
          "[cuda][attention]") {
  Numbers numbers(22);
  const int head_dim = 48, context = 333;
  for (const KvDType dtype : kAllKvDTypes) {
    INFO(KvDTypeName(dtype));
    Cache cache(dtype, 1, head_dim, context, numbers);
    std::vector<Row> causal, window;
    for (int i = 0; i < 37; ++i) {
      causal.push_back({0, context - 36 + i});
      window.push_back({context - 36 + i - 70, context - 36 + i});
    }
    const std::vector<float> q = numbers.Vector(37 * head_dim, 6.0f);
    Settings settings = {cache.scale(), 0, {}};
    CHECK(cache.WorstError(settings, q, {causal}) < Tolerance(dtype));
    CHECK(cache.WorstError(settings, q, {window}) < Tolerance(dtype));
    settings.softcap = 2.5f;
    CHECK(cache.WorstError(settings, q, {causal}) < Tolerance(dtype));
    for (const float sink : {-4.0f, 0.5f, 30.0f}) {
      settings.sink = sink;
      CHECK(cache.WorstError(settings, q, {causal}) < Tolerance(dtype));
      CHECK(cache.WorstError(settings, q, {window}) < Tolerance(dtype));
    }
    // The pool may have given away the blocks that no window reaches any more.
    const std::vector<float> before = cache.Attend(settings, q, {window});
    cache.ForgetBlocksBefore(context - 36 - 70);
    CHECK(SameBytes(cache.Attend(settings, q, {window}), before));
  }
}

TEST_CASE("Device: a query row gets the same bytes in any group, any number of parts and any order",
          "[cuda][attention]") {
  Numbers numbers(23);
  for (const KvDType dtype : kAllKvDTypes) {
    for (const int head_dim : {40, 128}) {
      INFO(KvDTypeName(dtype) << " head_dim " << head_dim);
      const int context = 3 * kAttentionPartTokens + 40;
      const Cache cache(dtype, 1, head_dim, context, numbers);
      const Settings settings = {cache.scale(), 0, {}};
      // Starts and ends at the edges of parts among them, in ascending order.
      std::vector<Row> rows = {{0, 1},
                               {0, kAttentionPartTokens},
                               {3, kAttentionPartTokens + 1},
                               {200, 2 * kAttentionPartTokens},
                               {kAttentionPartTokens - 1, 2 * kAttentionPartTokens + 1},
                               {kAttentionPartTokens, 600},
                               {kAttentionPartTokens, 601},
                               {300, context}};
      const std::vector<float> q = numbers.Vector(rows.size() * head_dim, 4.0f);
      std::vector<float> alone;
      for (size_t i = 0; i < rows.size(); ++i) {
        const std::vector<float> one(q.begin() + i * head_dim, q.begin() + (i + 1) * head_dim);
        const std::vector<float> out = cache.Attend(settings, one, {{rows[i]}});
        alone.insert(alone.end(), out.begin(), out.end());
      }
      CHECK(SameBytes(InEveryOrder([&] { return cache.Attend(settings, q, {rows}); }), alone));
      const std::vector<std::vector<Row>> groups = {
          {rows[0], rows[1], rows[2]}, {rows[3]}, {rows.begin() + 4, rows.end()}};
      CHECK(SameBytes(cache.Attend(settings, q, groups), alone));
      CHECK(cache.WorstError(settings, q, groups) < Tolerance(dtype));
    }
  }
}

TEST_CASE("Device: attention stays finite when scores are far apart", "[cuda][attention]") {
  Numbers numbers(24);
  const Cache cache(KvDType::kF32, 1, 64, 200, numbers);
  const std::vector<float> q = numbers.Vector(5 * 64, 3.0f);
  CHECK(cache.WorstError({300.0f, 0, {}}, q, {std::vector<Row>(5, Row{0, 200})}) < 2e-3);
}

TEST_CASE("Device: query heads read the kv head of their group", "[cuda][attention]") {
  // Two kv heads, three query heads each: as rows of groups, offsets a head apart.
  Numbers numbers(26);
  const int head_dim = 32, context = 50, kv_heads = 2, group_heads = 3;
  std::vector<float> k = numbers.Vector(context * kv_heads * head_dim), v = k;
  for (float& x : v) x = numbers.Next();
  std::vector<int32_t> slots(context), table = {0, 1, 2, 3};
  for (int t = 0; t < context; ++t) slots[t] = t;
  const size_t k_bytes = kv_heads * KvKeyBytes(KvDType::kF32, head_dim);
  const DeviceArray<std::byte> k_cache(4 * k_bytes), v_cache(4 * k_bytes);
  KvCache cache = {KvDType::kF32, k_cache.data(), v_cache.data(), k_bytes,
                   k_bytes,       kv_heads,       head_dim};
  const DeviceArray<float> device_k(k), device_v(v);
  const DeviceArray<int32_t> device_slots(slots), device_table(table);
  REQUIRE(KvWrite({cache, device_k.data(), device_v.data(), context, device_slots.data()},
                  nullptr) == Status::kOk);
  const std::vector<float> q = numbers.Vector(kv_heads * group_heads * head_dim, 4.0f);
  const DeviceArray<float> device_q(q), out(q.size());
  const DeviceArray<int64_t> offsets(std::vector<int64_t>{0, head_dim, 2 * head_dim});
  const DeviceArray<int32_t> first(std::vector<int32_t>(3, 0));
  const DeviceArray<int32_t> contexts(std::vector<int32_t>(3, context));
  AttentionGroup group;
  group.blocks = device_table.data();
  group.rows = group_heads;
  group.offsets = offsets.data();
  group.first_visible = first.data();
  group.context = contexts.data();
  const DeviceArray<AttentionGroup> groups(std::vector<AttentionGroup>{group});
  const DeviceArray<float> partials(kv_heads * 3 * AttentionPartialFloats(head_dim));
  AttentionArgs args;
  args.cache = cache;
  args.groups = groups.data();
  args.group_count = 1;
  args.max_rows = 3;
  args.parts = 1;
  args.group_heads = group_heads;
  args.q = device_q.data();
  args.out = out.data();
  args.scale = 0.2f;
  args.partials = partials.data();
  args.total_rows = 3;
  REQUIRE(Attention(args, nullptr) == Status::kOk);
  const std::vector<float> got = out.Values();
  for (int head = 0; head < kv_heads * group_heads; ++head) {
    std::vector<float> head_k, head_v, expected(head_dim);
    for (int t = 0; t < context; ++t) {
      const int at = (t * kv_heads + head / group_heads) * head_dim;
      head_k.insert(head_k.end(), &k[at], &k[at] + head_dim);
      head_v.insert(head_v.end(), &v[at], &v[at] + head_dim);
    }
    reference::Attention({&q[head * head_dim], head_k.data(), head_v.data(), head_dim, 0, context,
                          0.2f, 0, 0, false},
                         expected.data());
    const std::vector<float> of_head(&got[head * head_dim], &got[head * head_dim] + head_dim);
    CHECK(WorstRelative(of_head, expected, 1.0) < 3e-6);
  }
}

// The block that KvWrite leaves, against the one of the CPU: the same bytes.
TEST_CASE("Device: a KV slot is written as on the CPU, in its place and nowhere else",
          "[cuda][kv]") {
  Numbers numbers(35);
  const cpu::Ops& cpu_ops = *cpu::SelectOps(cpu::Isa::kScalar);
  for (const KvDType dtype : kAllKvDTypes) {
    for (const int head_dim : {8, 16, 24, 32, 72, 80, 128, 256}) {
      for (const float magnitude : {0.0f, 1e-7f, 1e-3f, 1.0f, 300.0f, 1e30f, NAN}) {
        INFO(KvDTypeName(dtype) << " head_dim " << head_dim << " magnitude " << magnitude);
        const int heads = 6, slot = numbers.Below(16);
        std::vector<float> k =
            numbers.Vector(heads * head_dim, magnitude == magnitude ? magnitude : 1);
        std::vector<float> v =
            numbers.Vector(heads * head_dim, magnitude == magnitude ? magnitude : 1);
        if (magnitude != magnitude) {
          // Its bits are the compiler's choice in floats; Q8 says what becomes of it.
          if (dtype != KvDType::kQ8) continue;
          k[head_dim + 5] = INFINITY;
          v[3 * head_dim + 1] = NAN;
        }
        const size_t k_bytes = heads * KvKeyBytes(dtype, head_dim);
        const size_t v_bytes = heads * KvValueBytes(dtype, head_dim);
        std::vector<uint8_t> k_block(k_bytes, 0x77), v_block(v_bytes, 0x77);
        const DeviceArray<std::byte> device_k(std::vector<std::byte>(2 * k_bytes, std::byte{0x77}));
        const DeviceArray<std::byte> device_v(std::vector<std::byte>(2 * v_bytes, std::byte{0x77}));
        cpu_ops.kv_write(dtype, k.data(), v.data(), heads, head_dim, slot, k_block.data(),
                         v_block.data());
        const DeviceArray<float> from_k(k), from_v(v);
        const DeviceArray<int32_t> slots(std::vector<int32_t>{16 + slot});
        const KvCache cache = {dtype,   device_k.data(), device_v.data(), k_bytes,
                               v_bytes, heads,           head_dim};
        REQUIRE(KvWrite({cache, from_k.data(), from_v.data(), 1, slots.data()}, nullptr) ==
                Status::kOk);
        const std::vector<std::byte> got_k = device_k.Values(), got_v = device_v.Values();
        CHECK(std::memcmp(&got_k[k_bytes], k_block.data(), k_bytes) == 0);
        CHECK(std::memcmp(&got_v[v_bytes], v_block.data(), v_bytes) == 0);
        CHECK(std::all_of(got_k.begin(), got_k.begin() + static_cast<ptrdiff_t>(k_bytes),
                          [](std::byte b) { return b == std::byte{0x77}; }));
        CHECK(std::all_of(got_v.begin(), got_v.begin() + static_cast<ptrdiff_t>(v_bytes),
                          [](std::byte b) { return b == std::byte{0x77}; }));
      }
    }
  }
}

}  // namespace
}  // namespace sluice::cuda
