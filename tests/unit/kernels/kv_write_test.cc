// What kv_write leaves in a KV block, in every format.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/reference/reference.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/kernel_fixture.h"

namespace sluice::cpu {
namespace {

KvDType FloatKv(DType dtype) {
  return dtype == DType::kF32   ? KvDType::kF32
         : dtype == DType::kF16 ? KvDType::kF16
                                : KvDType::kBF16;
}

TEST_CASE("A KV slot of floats is written in its place and nowhere else", "[kernels][kv]") {
  Numbers numbers(33);
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      for (const int head_dim : {8, 16, 24, 128}) {
        INFO(Case(*ops, dtype, "head_dim", head_dim));
        const int heads = 3, slot = numbers.Below(16);
        const std::vector<float> k = numbers.Vector(heads * head_dim);
        const std::vector<float> v = numbers.Vector(heads * head_dim);
        const size_t bytes = static_cast<size_t>(heads) * head_dim * 16 * DTypeBytes(dtype);
        Guarded<uint8_t> k_block(bytes), v_block(bytes);
        k_block.Assign(std::vector<uint8_t>(bytes, 0));
        v_block.Assign(std::vector<uint8_t>(bytes, 0));
        ops->kv_write(FloatKv(dtype), k.data(), v.data(), heads, head_dim, slot, k_block.data(),
                      v_block.data());
        CHECK(k_block.Intact());
        CHECK(v_block.Intact());
        int wrong = 0;
        for (int h = 0; h < heads; ++h) {
          for (int d = 0; d < head_dim; ++d) {
            for (int t = 0; t < 16; ++t) {
              const int64_t k_at = (static_cast<int64_t>(h) * head_dim + d) * 16 + t;
              const int64_t v_at = (static_cast<int64_t>(h) * 16 + t) * head_dim + d;
              const float want_k =
                  t == slot ? reference::Rounded(dtype, k[h * head_dim + d]) : 0.0f;
              const float want_v =
                  t == slot ? reference::Rounded(dtype, v[h * head_dim + d]) : 0.0f;
              wrong += reference::Element(dtype, k_block.data(), k_at) != want_k;
              wrong += reference::Element(dtype, v_block.data(), v_at) != want_v;
            }
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

// One kv head's place for a value and for its scale (kernels/common/kv_format.h), written out here
// once more.
struct Place {
  size_t code;
  size_t scale;
};
Place KeyPlace(int head, int head_dim, int slot, int d) {
  const size_t head_at = static_cast<size_t>(head) * KvKeyBytes(KvDType::kQ8, head_dim);
  const size_t codes = (head_dim + 3) / 4 * 64;
  return {head_at + d / 4 * 64 + slot * 4 + d % 4, head_at + codes + (d / 32 * 16 + slot) * 2};
}
Place ValuePlace(int head, int head_dim, int slot, int d) {
  const size_t head_at = static_cast<size_t>(head) * KvValueBytes(KvDType::kQ8, head_dim);
  const size_t padded = (head_dim + 15) / 16 * 16;
  return {head_at + (slot / 4 * padded + d) * 4 + slot % 4,
          head_at + padded * 16 + (d / 64 * 16 + slot) * 2};
}
float Read(const uint8_t* block, Place at) {
  return reference::Element(DType::kF16, block + at.scale, 0) *
         static_cast<float>(block[at.code] - 128);
}

TEST_CASE("A KV slot of 8 bits is quantized by itself in its place and nowhere else",
          "[kernels][kv]") {
  Numbers numbers(35);
  for (const Ops* ops : AvailableOps()) {
    for (const int head_dim : {6, 8, 16, 24, 32, 72, 80, 128, 256}) {
      for (const float magnitude : {0.0f, 1e-7f, 1e-3f, 1.0f, 300.0f, 1e30f}) {
        INFO(Case(*ops, KvDType::kQ8, "head_dim", head_dim) << " magnitude " << magnitude);
        const int heads = 3, slot = numbers.Below(16);
        const std::vector<float> k = numbers.Vector(heads * head_dim, magnitude);
        const std::vector<float> v = numbers.Vector(heads * head_dim, magnitude);
        const size_t k_bytes = heads * KvKeyBytes(KvDType::kQ8, head_dim);
        const size_t v_bytes = heads * KvValueBytes(KvDType::kQ8, head_dim);
        Guarded<uint8_t> k_block(k_bytes), v_block(v_bytes);
        const std::vector<uint8_t> k_before(k_bytes, 0x77), v_before(v_bytes, 0x77);
        k_block.Assign(k_before);
        v_block.Assign(v_before);
        ops->kv_write(KvDType::kQ8, k.data(), v.data(), heads, head_dim, slot, k_block.data(),
                      v_block.data());
        CHECK(k_block.Intact());
        CHECK(v_block.Intact());
        int wrong = 0;
        for (int h = 0; h < heads; ++h) {
          std::vector<float> want_k(head_dim), want_v(head_dim);
          reference::KvRounded(KvDType::kQ8, kKvKeyGroup, &k[h * head_dim], head_dim,
                               want_k.data());
          reference::KvRounded(KvDType::kQ8, kKvValueGroup, &v[h * head_dim], head_dim,
                               want_v.data());
          for (int d = 0; d < head_dim; ++d) {
            wrong += Read(k_block.data(), KeyPlace(h, head_dim, slot, d)) != want_k[d];
            wrong += Read(v_block.data(), ValuePlace(h, head_dim, slot, d)) != want_v[d];
          }
          for (int d = 0; d < head_dim; ++d) {
            const Place key = KeyPlace(h, head_dim, slot, d);
            const Place value = ValuePlace(h, head_dim, slot, d);
            k_block.data()[key.code] = v_block.data()[value.code] = 0x77;
            std::memset(k_block.data() + key.scale, 0x77, 2);
            std::memset(v_block.data() + value.scale, 0x77, 2);
          }
        }
        CHECK(wrong == 0);
        CHECK(std::memcmp(k_block.data(), k_before.data(), k_bytes) == 0);
        CHECK(std::memcmp(v_block.data(), v_before.data(), v_bytes) == 0);
      }
    }
  }
}

TEST_CASE("An 8-bit KV slot holds what it was given to half a step of its group", "[kernels][kv]") {
  Numbers numbers(36);
  const int head_dim = 128;
  std::vector<float> k = numbers.Vector(head_dim, 2.0f);
  k[40] = 500.0f;  // an outlier costs its own group of keys alone
  std::vector<float> back(head_dim);
  reference::KvRounded(KvDType::kQ8, kKvKeyGroup, k.data(), head_dim, back.data());
  for (int d = 0; d < head_dim; ++d) {
    const double step = (d / kKvKeyGroup == 1 ? 500.0 : 2.0) / 127;
    CHECK(std::fabs(back[d] - k[d]) <= 0.5 * step * 1.001);
  }
}

TEST_CASE("Attention to an 8-bit K or V that is not finite gives NaN, to others nothing",
          "[kernels][kv]") {
  Numbers numbers(37);
  const int head_dim = 80;
  const float kBad[] = {std::numeric_limits<float>::quiet_NaN(),
                        std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity()};
  for (const Ops* ops : AvailableOps()) {
    for (const float bad : kBad) {
      for (const bool in_key : {true, false}) {
        INFO(ops->name << " " << bad << (in_key ? " in K" : " in V"));
        Guarded<uint8_t> k_block(KvKeyBytes(KvDType::kQ8, head_dim));
        Guarded<uint8_t> v_block(KvValueBytes(KvDType::kQ8, head_dim));
        for (int slot = 0; slot < 3; ++slot) {
          std::vector<float> k = numbers.Vector(head_dim), v = numbers.Vector(head_dim);
          if (slot == 1) (in_key ? k : v)[70] = bad;
          ops->kv_write(KvDType::kQ8, k.data(), v.data(), 1, head_dim, slot, k_block.data(),
                        v_block.data());
        }
        const std::vector<float> q = numbers.Vector(head_dim);
        std::vector<float> out(head_dim);
        const int32_t block = 0;
        const ptrdiff_t offset = 0;
        AttentionArgs args = {};
        args.kv_dtype = KvDType::kQ8;
        args.k_cache = k_block.data();
        args.v_cache = v_block.data();
        args.blocks = &block;
        args.head_dim = head_dim;
        args.rows = 1;
        args.q = q.data();
        args.out = out.data();
        args.q_offsets = &offset;
        args.scale = 0.1f;
        const auto nans = [&](int32_t first_visible, int32_t context) {
          args.first_visible = &first_visible;
          args.context = &context;
          ops->attention(args);
          int count = 0;
          for (const float x : out) count += std::isnan(x);
          return count;
        };
        CHECK(nans(0, 1) == 0);
        CHECK(nans(0, 2) == head_dim);
        CHECK(nans(0, 3) == head_dim);
        CHECK(nans(2, 3) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::cpu
