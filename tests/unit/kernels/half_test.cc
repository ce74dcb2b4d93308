#include "kernels/common/half.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/catch.h"
#include "tests/unit/kernels/kernel_fixture.h"

namespace sluice {
namespace {

// Rounds by definition: the nearest of all representable values, the even one of two equally near.
uint16_t NearestByDefinition(float value, float (*widen)(uint16_t), uint16_t infinity) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  // Positive values are ordered as their bits are: bisect for the last one at or below.
  uint32_t low = 0, high = infinity;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (widen(static_cast<uint16_t>(middle)) <= magnitude ? low : high) = middle;
  }
  const double below = widen(static_cast<uint16_t>(low));
  const double above = high == infinity ? 2 * below - widen(static_cast<uint16_t>(low - 1))
                                        : static_cast<double>(widen(static_cast<uint16_t>(high)));
  const double down = magnitude - below, up = above - magnitude;
  const uint32_t nearest = down < up ? low : up < down ? high : low % 2 == 0 ? low : high;
  return static_cast<uint16_t>(sign | nearest);
}

TEST_CASE("Every 16-bit float survives the way through F32", "[kernels]") {
  int wrong = 0;
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float from_f16 = F16ToF32(half);
    const float from_bf16 = Bf16ToF32(half);
    if (std::isnan(from_f16)) {
      wrong += !std::isnan(F16ToF32(F32ToF16(from_f16)));
    } else {
      wrong += F32ToF16(from_f16) != half;
    }
    if (std::isnan(from_bf16)) {
      wrong += !std::isnan(Bf16ToF32(F32ToBf16(from_bf16)));
    } else {
      wrong += F32ToBf16(from_bf16) != half;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("F16 bits mean what IEEE 754 says", "[kernels]") {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const int exponent = static_cast<int>(bits >> 10);
    const double mantissa = bits & 0x3ff;
    const double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    wrong += static_cast<double>(F16ToF32(static_cast<uint16_t>(bits))) != expected;
    wrong += static_cast<double>(F16ToF32(static_cast<uint16_t>(bits | 0x8000))) != -expected;
  }
  CHECK(wrong == 0);
  CHECK(F16ToF32(0x7c00) == std::numeric_limits<float>::infinity());
  CHECK(F16ToF32(0xfc00) == -std::numeric_limits<float>::infinity());
}

TEST_CASE("Conversion to 16 bits rounds to nearest, ties to even", "[kernels]") {
  cpu::Numbers numbers(7);
  std::vector<float> values = {0.0f,     -0.0f,   65504.0f, 65519.996f, 65520.0f, 65536.0f,
                               1e30f,    -1e30f,  1e-8f,    2.98e-8f,   5.97e-8f, 6.1e-5f,
                               3.39e38f, 3.4e38f, 1e-40f,   -1e-45f};
  for (int i = 0; i < 20000; ++i) {
    const auto bits = static_cast<uint32_t>(numbers.Bits() >> 32);
    values.push_back(std::bit_cast<float>(bits));
    // Ties and their neighbours, in the range of F16.
    const float tie = F16ToF32(static_cast<uint16_t>(bits & 0x7bff)) +
                      std::ldexp(1.0f, std::max(static_cast<int>((bits >> 10) & 0x1f), 1) - 26);
    values.push_back(tie);
    values.push_back(std::nextafter(tie, 0.0f));
    values.push_back(std::nextafter(tie, 1e9f));
    values.push_back(std::bit_cast<float>((bits & 0xffff0000u) | 0x8000u));
  }
  int wrong = 0;
  for (const float value : values) {
    if (!std::isfinite(value)) continue;
    wrong += F32ToF16(value) != NearestByDefinition(value, F16ToF32, 0x7c00);
    wrong += F32ToBf16(value) != NearestByDefinition(value, Bf16ToF32, 0x7f80);
  }
  CHECK(wrong == 0);
  CHECK(F32ToF16(std::numeric_limits<float>::infinity()) == 0x7c00);
  CHECK(F32ToBf16(-std::numeric_limits<float>::infinity()) == 0xff80);
  // A NaN whose payload is in the low bits only must not turn into an infinity.
  CHECK(std::isnan(Bf16ToF32(F32ToBf16(std::bit_cast<float>(0x7f800001u)))));
  CHECK(std::isnan(F16ToF32(F32ToF16(std::bit_cast<float>(0xff800001u)))));
}

TEST_CASE("Every table widens and rounds 16-bit floats exactly as the portable code", "[kernels]") {
  std::vector<float> values;
  cpu::Numbers numbers(3);
  for (int i = 0; i < 4096; ++i) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(numbers.Bits() >> 32)));
    values.push_back(numbers.Next() * 1e-6f);
    values.push_back(F16ToF32(static_cast<uint16_t>(i * 13)) * 1.00048828125f);
  }
  for (const cpu::Ops* ops : cpu::AvailableOps()) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      INFO(cpu::Case(*ops, dtype, "conversion of", 65536));
      std::vector<uint16_t> all(65536);
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
      std::vector<float> wide(all.size());
      ops->to_f32(dtype, all.data(), static_cast<int64_t>(all.size()), wide.data());
      int wrong = 0;
      for (size_t i = 0; i < all.size(); ++i) {
        const float expected = dtype == DType::kF16 ? F16ToF32(all[i]) : Bf16ToF32(all[i]);
        wrong += std::isnan(expected) ? !std::isnan(wide[i])
                                      : std::memcmp(&expected, &wide[i], sizeof(float)) != 0;
      }
      CHECK(wrong == 0);

      // kv_write is the op that rounds: one head of 16 values per call.
      wrong = 0;
      std::vector<uint16_t> k(16 * 16), v(16 * 16);
      for (size_t i = 0; i + 16 <= values.size(); i += 16) {
        ops->kv_write(dtype == DType::kF16 ? KvDType::kF16 : KvDType::kBF16, &values[i], &values[i],
                      1, 16, 5, k.data(), v.data());
        for (int j = 0; j < 16; ++j) {
          const float x = values[i + j];
          const uint16_t expected = dtype == DType::kF16 ? F32ToF16(x) : F32ToBf16(x);
          const uint16_t got = v[5 * 16 + j];
          wrong += got != k[j * 16 + 5];
          wrong += std::isnan(x) ? (got & 0x7fff) <= (dtype == DType::kF16 ? 0x7c00 : 0x7f80)
                                 : got != expected;
        }
      }
      CHECK(wrong == 0);
    }
  }
}

}  // namespace
}  // namespace sluice
