#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "kernels/cpu/ops.h"
#include "kernels/reference/reference.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/kernel_fixture.h"

namespace sluice::cpu {
namespace {

struct Row {
  int first_visible;
  int context;
};

// A cache of one layer whose blocks are scattered, filled through kv_write, every other slot NaN.
class Cache {
 public:
  Cache(const Ops& ops, KvDType dtype, int kv_heads, int head_dim, int tokens, Numbers& numbers)
      : ops_(ops),
        dtype_(dtype),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        k_(numbers.Vector(static_cast<size_t>(tokens) * kv_heads * head_dim)),
        v_(numbers.Vector(static_cast<size_t>(tokens) * kv_heads * head_dim)) {
    const int blocks = (tokens + 15) / 16;
    k_block_bytes_ = kv_heads * KvKeyBytes(dtype, head_dim);
    v_block_bytes_ = kv_heads * KvValueBytes(dtype, head_dim);
    // Physical order is reversed with gaps, so that a kernel that ignores the table fails.
    for (int b = 0; b < blocks; ++b) table_.push_back(2 * (blocks - b) - 1);
    k_cache_.emplace(k_block_bytes_ * (2 * blocks + 1));
    v_cache_.emplace(v_block_bytes_ * (2 * blocks + 1));
    // All bits set is a NaN in every dtype, and in the scales of Q8.
    std::memset(k_cache_->data(), 0xff, k_block_bytes_ * (2 * blocks + 1));
    std::memset(v_cache_->data(), 0xff, v_block_bytes_ * (2 * blocks + 1));
    for (int t = 0; t < tokens; ++t) {
      const size_t row = static_cast<size_t>(t) * kv_heads * head_dim;
      ops.kv_write(dtype, &k_[row], &v_[row], kv_heads, head_dim, t % 16,
                   k_cache_->data() + table_[t / 16] * k_block_bytes_,
                   v_cache_->data() + table_[t / 16] * v_block_bytes_);
    }
  }

  AttentionArgs Args(int kv_head) const {
    AttentionArgs args = {};
    args.kv_dtype = dtype_;
    args.k_cache = k_cache_->data();
    args.v_cache = v_cache_->data();
    args.k_block_bytes = k_block_bytes_;
    args.v_block_bytes = v_block_bytes_;
    args.blocks = table_.data();
    args.head_dim = head_dim_;
    args.kv_head = kv_head;
    args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
    return args;
  }

  // Rows' queries lie apart, each `stride` floats after the other.
  std::vector<float> Attend(AttentionArgs args, const std::vector<float>& q,
                            const std::vector<Row>& rows, ptrdiff_t stride) const {
    std::vector<ptrdiff_t> offsets;
    std::vector<int32_t> first, context;
    for (size_t i = 0; i < rows.size(); ++i) {
      offsets.push_back(static_cast<ptrdiff_t>(i) * stride);
      first.push_back(rows[i].first_visible);
      context.push_back(rows[i].context);
    }
    Guarded<float> out(rows.size() * stride, 4);
    out.Assign(std::vector<float>(rows.size() * stride, -3.0f));
    args.rows = static_cast<int>(rows.size());
    args.q = q.data();
    args.out = out.data();
    args.q_offsets = offsets.data();
    args.first_visible = first.data();
    args.context = context.data();
    ops_.attention(args);
    REQUIRE(out.Intact());
    int touched = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      for (ptrdiff_t d = head_dim_; d < stride; ++d) touched += out.data()[i * stride + d] != -3.0f;
    }
    REQUIRE(touched == 0);
    return std::vector<float>(out.data(), out.data() + rows.size() * stride);
  }

  // As Attend, but part by part from the last to the first, then merged.
  std::vector<float> AttendInParts(AttentionArgs args, const std::vector<float>& q,
                                   const std::vector<Row>& rows) const {
    std::vector<ptrdiff_t> offsets;
    std::vector<int32_t> first, context;
    int longest = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      offsets.push_back(static_cast<ptrdiff_t>(i) * head_dim_);
      first.push_back(rows[i].first_visible);
      context.push_back(rows[i].context);
      longest = std::max(longest, rows[i].context);
    }
    Guarded<float> out(rows.size() * head_dim_, 4);
    args.rows = static_cast<int>(rows.size());
    args.q = q.data();
    args.out = out.data();
    args.q_offsets = offsets.data();
    args.first_visible = first.data();
    args.context = context.data();
    args.parts = AttentionParts(longest);
    Guarded<float> partials(rows.size() * args.parts * AttentionPartialFloats(head_dim_), 4);
    partials.Assign(std::vector<float>(rows.size() * args.parts * AttentionPartialFloats(head_dim_),
                                       std::numeric_limits<float>::quiet_NaN()));
    args.partials = partials.data();
    for (int end = args.parts; end > 0;) {
      args.part_begin = std::max(0, end - 1 - end % 2);
      args.part_end = end;
      ops_.attention(args);
      end = args.part_begin;
    }
    ops_.merge_attention(args);
    REQUIRE(partials.Intact());
    REQUIRE(out.Intact());
    return std::vector<float>(out.data(), out.data() + rows.size() * head_dim_);
  }

  std::vector<float> Expected(const AttentionArgs& args, const float* q, Row row) const {
    std::vector<float> k(static_cast<size_t>(row.context) * head_dim_), v(k.size());
    std::vector<float> out(head_dim_);
    for (int t = 0; t < row.context; ++t) {
      const size_t at = (static_cast<size_t>(t) * kv_heads_ + args.kv_head) * head_dim_;
      const size_t to = static_cast<size_t>(t) * head_dim_;
      reference::KvRounded(dtype_, kKvKeyGroup, &k_[at], head_dim_, &k[to]);
      reference::KvRounded(dtype_, kKvValueGroup, &v_[at], head_dim_, &v[to]);
    }
    reference::Attention({q, k.data(), v.data(), head_dim_, row.first_visible, row.context,
                          args.scale, args.softcap, args.sink_logit, args.has_sink},
                         out.data());
    return out;
  }

  void ForgetBlocksBefore(int token) {
    for (int b = 0; b < token / 16; ++b) table_[b] = -1;
  }

 private:
  const Ops& ops_;
  KvDType dtype_;
  int kv_heads_;
  int head_dim_;
  std::vector<float> k_, v_;
  size_t k_block_bytes_, v_block_bytes_;
  std::vector<int32_t> table_;
  std::optional<Guarded<uint8_t>> k_cache_, v_cache_;
};

// Q8 rounds queries and weights to 14 bits too.
double Tolerance(KvDType dtype) { return dtype == KvDType::kQ8 ? 5e-4 : 3e-6; }

double WorstError(const Cache& cache, const AttentionArgs& args, const std::vector<float>& q,
                  const std::vector<Row>& rows, ptrdiff_t stride) {
  const std::vector<float> out = cache.Attend(args, q, rows, stride);
  double worst = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::vector<float> expected = cache.Expected(args, &q[i * stride], rows[i]);
    for (int d = 0; d < args.head_dim; ++d) {
      const double error = std::fabs(static_cast<double>(out[i * stride + d]) - expected[d]);
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  }
  return worst;
}

TEST_CASE("Attention agrees with the reference and ignores what unused slots hold",
          "[kernels][attention]") {
  Numbers numbers(21);
  for (const Ops* ops : AvailableOps()) {
    for (const KvDType dtype : kAllKvDTypes) {
      for (const int head_dim : {8, 16, 24, 32, 64, 72, 128, 256}) {
        for (const int context : {1, 2, 15, 16, 17, 47, 127, 128, 129, 300}) {
          INFO(Case(*ops, dtype, "head_dim", head_dim) << " context " << context);
          const int kv_heads = 2;
          const Cache cache(*ops, dtype, kv_heads, head_dim, context, numbers);
          const int rows = 1 + (head_dim / 8 + context) % 7;
          const ptrdiff_t stride = head_dim + 8;
          const std::vector<float> q = numbers.Vector(rows * stride, 4.0f);
          const AttentionArgs args = cache.Args(1);
          const std::vector<Row> all(rows, Row{0, context});
          CHECK(WorstError(cache, args, q, all, stride) < Tolerance(dtype));
        }
      }
    }
  }
}

TEST_CASE("Attention honours causal chunks, windows, softcap and sinks", "[kernels][attention]") {
  Numbers numbers(22);
  const int head_dim = 48, context = 333;
  for (const Ops* ops : AvailableOps()) {
    for (const KvDType dtype : kAllKvDTypes) {
      INFO(Case(*ops, dtype, "context", context));
      Cache cache(*ops, dtype, 1, head_dim, context, numbers);
      AttentionArgs args = cache.Args(0);
      std::vector<Row> causal, window;
      for (int i = 0; i < 37; ++i) {
        causal.push_back({0, context - 36 + i});
        window.push_back({context - 36 + i - 70, context - 36 + i});
      }
      const std::vector<float> q = numbers.Vector(37 * head_dim, 6.0f);
      CHECK(WorstError(cache, args, q, causal, head_dim) < Tolerance(dtype));
      CHECK(WorstError(cache, args, q, window, head_dim) < Tolerance(dtype));
      args.softcap = 2.5f;
      CHECK(WorstError(cache, args, q, causal, head_dim) < Tolerance(dtype));
      args.has_sink = true;
      for (const float sink : {-4.0f, 0.5f, 30.0f}) {
        args.sink_logit = sink;
        CHECK(WorstError(cache, args, q, causal, head_dim) < Tolerance(dtype));
        CHECK(WorstError(cache, args, q, window, head_dim) < Tolerance(dtype));
      }
      // The pool may have given away the blocks that no window reaches any more.
      const std::vector<float> before = cache.Attend(args, q, window, head_dim);
      cache.ForgetBlocksBefore(context - 36 - 70);
      CHECK(cache.Attend(cache.Args(0), q, window, head_dim).size() == before.size());
      AttentionArgs again = cache.Args(0);
      again.softcap = args.softcap;
      again.has_sink = true;
      again.sink_logit = args.sink_logit;
      CHECK(cache.Attend(again, q, window, head_dim) == before);
    }
  }
}

TEST_CASE("A query row gets the same bytes whatever rows it is grouped with",
          "[kernels][attention]") {
  Numbers numbers(23);
  for (const Ops* ops : AvailableOps()) {
    for (const KvDType dtype : kAllKvDTypes) {
      for (const int head_dim : {40, 128}) {
        INFO(Case(*ops, dtype, "head_dim", head_dim));
        const int context = 290;
        const Cache cache(*ops, dtype, 2, head_dim, context, numbers);
        const AttentionArgs args = cache.Args(1);
        std::vector<Row> rows;
        for (int i = 0; i < 33; ++i) {
          const int end = 1 + numbers.Below(context);
          rows.push_back({i % 3 == 0 ? numbers.Below(end) : 0, end});
        }
        const std::vector<float> q = numbers.Vector(rows.size() * head_dim, 4.0f);
        std::vector<float> alone;
        for (size_t i = 0; i < rows.size(); ++i) {
          const std::vector<float> one(q.begin() + i * head_dim, q.begin() + (i + 1) * head_dim);
          const std::vector<float> out = cache.Attend(args, one, {rows[i]}, head_dim);
          alone.insert(alone.end(), out.begin(), out.end());
        }
        for (size_t first = 0; first < 6; ++first) {
          for (size_t count = 1; first + count <= rows.size(); count += 1 + first) {
            const std::vector<Row> some(rows.begin() + first, rows.begin() + first + count);
            const std::vector<float> some_q(q.begin() + first * head_dim, q.end());
            const std::vector<float> out = cache.Attend(args, some_q, some, head_dim);
            REQUIRE(std::memcmp(out.data(), &alone[first * head_dim], out.size() * sizeof(float)) ==
                    0);
          }
        }
      }
    }
  }
}

TEST_CASE("Parts of a long context done apart and merged give the same bytes as whole rows",
          "[kernels][attention]") {
  Numbers numbers(25);
  const int context = 3 * kAttentionPartTokens + 77;
  for (const Ops* ops : AvailableOps()) {
    for (const auto& [dtype, head_dim] : {std::pair(KvDType::kF16, 24),
                                          {KvDType::kF16, 64},
                                          {KvDType::kQ8, 24},
                                          {KvDType::kQ8, 128}}) {
      INFO(Case(*ops, dtype, "head_dim", head_dim));
      const Cache cache(*ops, dtype, 1, head_dim, context, numbers);
      AttentionArgs args = cache.Args(0);
      std::vector<Row> rows = {{0, context},
                               {0, 1},
                               {0, kAttentionPartTokens},
                               {0, kAttentionPartTokens + 1},
                               {kAttentionPartTokens - 1, kAttentionPartTokens + 1},
                               {kAttentionPartTokens, 2 * kAttentionPartTokens},
                               {2 * kAttentionPartTokens - 3, context}};
      for (int i = 0; i < 14; ++i) rows.push_back({i % 2 * 900, context - 20 + i});
      const std::vector<float> q = numbers.Vector(rows.size() * head_dim, 6.0f);
      for (const bool has_sink : {false, true}) {
        args.has_sink = has_sink;
        args.sink_logit = 2.0f;
        const std::vector<float> whole = cache.Attend(args, q, rows, head_dim);
        const std::vector<float> merged = cache.AttendInParts(args, q, rows);
        REQUIRE(std::memcmp(whole.data(), merged.data(), whole.size() * sizeof(float)) == 0);
        CHECK(WorstError(cache, args, q, rows, head_dim) < Tolerance(dtype));
      }
    }
  }
}

TEST_CASE("Attention stays finite when scores are far apart", "[kernels][attention]") {
  Numbers numbers(24);
  for (const Ops* ops : AvailableOps()) {
    INFO(ops->name);
    const Cache cache(*ops, KvDType::kF32, 1, 64, 200, numbers);
    AttentionArgs args = cache.Args(0);
    args.scale = 300.0f;
    const std::vector<float> q = numbers.Vector(5 * 64, 3.0f);
    CHECK(WorstError(cache, args, q, std::vector<Row>(5, Row{0, 200}), 64) < 2e-3);
  }
}

}  // namespace
}  // namespace sluice::cpu
