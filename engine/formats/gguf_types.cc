#include "engine/formats/gguf_types.h"

#include <array>
#include <bit>
#include <cstring>

#include "engine/base/check.h"
#include "kernels/common/half.h"

namespace sluice {
namespace {

constexpr int kSuper = 256;  // values of a K-quant's block

constexpr std::array<GgufTypeInfo, 16> kTypes = {{
    {GgufType::kF32, "F32", 1, 4},
    {GgufType::kF16, "F16", 1, 2},
    {GgufType::kQ4_0, "Q4_0", 32, 18},
    {GgufType::kQ4_1, "Q4_1", 32, 20},
    {GgufType::kQ5_0, "Q5_0", 32, 22},
    {GgufType::kQ5_1, "Q5_1", 32, 24},
    {GgufType::kQ8_0, "Q8_0", 32, 34},
    {GgufType::kQ2_K, "Q2_K", kSuper, 84},
    {GgufType::kQ3_K, "Q3_K", kSuper, 110},
    {GgufType::kQ4_K, "Q4_K", kSuper, 144},
    {GgufType::kQ5_K, "Q5_K", kSuper, 176},
    {GgufType::kQ6_K, "Q6_K", kSuper, 210},
    {GgufType::kIq4Nl, "IQ4_NL", 32, 18},
    {GgufType::kIq4Xs, "IQ4_XS", kSuper, 136},
    {GgufType::kBF16, "BF16", 1, 2},
    {GgufType::kMxfp4, "MXFP4", 32, 17},
}};

// The 16 levels of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl).
constexpr std::array<int8_t, 16> kIq4Levels = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
// E2M1 values, doubled so that they are whole (ggml-common.h, kvalues_mxfp4).
constexpr std::array<int8_t, 16> kE2m1Doubled = {0, 1,  2,  3,  4,  6,  8,  12,
                                                 0, -1, -2, -3, -4, -6, -8, -12};

uint8_t At(const std::byte* p, int i) { return static_cast<uint8_t>(p[i]); }
int8_t SignedAt(const std::byte* p, int i) { return static_cast<int8_t>(p[i]); }
int Low(uint8_t b) { return b & 15; }
int High(uint8_t b) { return b >> 4; }

template <class T>
T Load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
float Half(const std::byte* p) { return F16ToF32(Load<uint16_t>(p)); }

// Half a power of two given as an exponent byte (E8M0): 2^(e - 128), subnormals included.
float HalfE8m0(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  return std::bit_cast<float>(bits);
}

// 32 values: low nibbles first, then high nibbles.
void Q4_0(const std::byte* b, float* y) {
  const float d = Half(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(Low(At(b, 2 + i)) - 8);
    y[16 + i] = d * static_cast<float>(High(At(b, 2 + i)) - 8);
  }
}

void Q4_1(const std::byte* b, float* y) {
  const float d = Half(b), m = Half(b + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(Low(At(b, 4 + i))) + m;
    y[16 + i] = d * static_cast<float>(High(At(b, 4 + i))) + m;
  }
}

int FifthBit(uint32_t bits, int i) { return static_cast<int>((bits >> i) & 1u) << 4; }

void Q5_0(const std::byte* b, float* y) {
  const float d = Half(b);
  const uint32_t high = Load<uint32_t>(b + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>((Low(At(b, 6 + i)) | FifthBit(high, i)) - 16);
    y[16 + i] = d * static_cast<float>((High(At(b, 6 + i)) | FifthBit(high, 16 + i)) - 16);
  }
}

void Q5_1(const std::byte* b, float* y) {
  const float d = Half(b), m = Half(b + 2);
  const uint32_t high = Load<uint32_t>(b + 4);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(Low(At(b, 8 + i)) | FifthBit(high, i)) + m;
    y[16 + i] = d * static_cast<float>(High(At(b, 8 + i)) | FifthBit(high, 16 + i)) + m;
  }
}

void Q8_0(const std::byte* b, float* y) {
  const float d = Half(b);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(SignedAt(b, 2 + i)) * d;
}

// scales[16] (4-bit scale, 4-bit minimum), codes[64], d, dmin.
void Q2_K(const std::byte* b, float* y) {
  const float d = Half(b + 80), dmin = Half(b + 82);
  for (int i = 0; i < kSuper; ++i) {
    const uint8_t scale = At(b, i / 16);
    const int code = (At(b, 16 + i / 128 * 32 + i % 32) >> (2 * (i / 32 % 4))) & 3;
    y[i] = (d * static_cast<float>(Low(scale))) * static_cast<float>(code) -
           dmin * static_cast<float>(High(scale));
  }
}

// high bits[32], low codes[64], 6-bit scales in 12 bytes, d.
void Q3_K(const std::byte* b, float* y) {
  const float d = Half(b + 108);
  for (int i = 0; i < kSuper; ++i) {
    const int g = i / 16;
    const int low4 = g < 8 ? Low(At(b, 96 + g)) : High(At(b, 96 + g - 8));
    const int high2 = (At(b, 104 + g % 4) >> (2 * (g / 4))) & 3;
    const int scale = (low4 | high2 << 4) - 32;
    const int low = (At(b, 32 + i / 128 * 32 + i % 32) >> (2 * (i / 32 % 4))) & 3;
    const int high = (At(b, i % 32) >> (i / 32)) & 1;
    y[i] = (d * static_cast<float>(scale)) * static_cast<float>(low - (high ? 0 : 4));
  }
}

// The eight 6-bit scales and minima of Q4_K and Q5_K in 12 bytes.
void ScaleAndMin(const std::byte* s, int g, int* scale, int* min) {
  if (g < 4) {
    *scale = At(s, g) & 63;
    *min = At(s, g + 4) & 63;
  } else {
    *scale = Low(At(s, g + 4)) | ((At(s, g - 4) >> 6) << 4);
    *min = High(At(s, g + 4)) | ((At(s, g) >> 6) << 4);
  }
}

// d, dmin, scales[12], codes[128].
void Q4_K(const std::byte* b, float* y) {
  const float d = Half(b), dmin = Half(b + 2);
  for (int g = 0; g < 8; ++g) {
    int scale, min;
    ScaleAndMin(b + 4, g, &scale, &min);
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(min);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = At(b, 16 + g / 2 * 32 + i);
      y[32 * g + i] = s * static_cast<float>(g % 2 ? High(byte) : Low(byte)) - m;
    }
  }
}

// d, dmin, scales[12], high bits[32], low codes[128].
void Q5_K(const std::byte* b, float* y) {
  const float d = Half(b), dmin = Half(b + 2);
  for (int g = 0; g < 8; ++g) {
    int scale, min;
    ScaleAndMin(b + 4, g, &scale, &min);
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(min);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = At(b, 48 + g / 2 * 32 + i);
      const int high = ((At(b, 16 + i) >> g) & 1) << 4;
      y[32 * g + i] = s * static_cast<float>((g % 2 ? High(byte) : Low(byte)) | high) - m;
    }
  }
}

// low codes[128], high codes[64], signed scales[16], d.
void Q6_K(const std::byte* b, float* y) {
  const float d = Half(b + 208);
  for (int i = 0; i < kSuper; ++i) {
    const int half = i / 128, j = i % 128;
    const uint8_t byte = At(b, half * 64 + j % 64);
    const int low = j < 64 ? Low(byte) : High(byte);
    const int high = (At(b, 128 + half * 32 + j % 32) >> (2 * (j / 32))) & 3;
    const float s = d * static_cast<float>(SignedAt(b, 192 + i / 16));
    y[i] = s * static_cast<float>((low | high << 4) - 32);
  }
}

void Iq4Nl(const std::byte* b, float* y) {
  const float d = Half(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(kIq4Levels[Low(At(b, 2 + i))]);
    y[16 + i] = d * static_cast<float>(kIq4Levels[High(At(b, 2 + i))]);
  }
}

// d, high scale bits (2 bytes), low scale bits (4 bytes), codes[128].
void Iq4Xs(const std::byte* b, float* y) {
  const float d = Half(b);
  const uint16_t high = Load<uint16_t>(b + 2);
  for (int g = 0; g < 8; ++g) {
    const uint8_t pair = At(b, 4 + g / 2);
    const int scale = (g % 2 ? High(pair) : Low(pair)) | ((high >> (2 * g)) & 3) << 4;
    const float s = d * static_cast<float>(scale - 32);
    for (int i = 0; i < 16; ++i) {
      const uint8_t byte = At(b, 8 + 16 * g + i);
      y[32 * g + i] = s * static_cast<float>(kIq4Levels[Low(byte)]);
      y[32 * g + 16 + i] = s * static_cast<float>(kIq4Levels[High(byte)]);
    }
  }
}

void Mxfp4(const std::byte* b, float* y) {
  const float d = HalfE8m0(At(b, 0));
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(kE2m1Doubled[Low(At(b, 1 + i))]);
    y[16 + i] = d * static_cast<float>(kE2m1Doubled[High(At(b, 1 + i))]);
  }
}

template <class F>
void EachBlock(const GgufTypeInfo& info, const std::byte* blocks, std::span<float> out, F decode) {
  const auto step = static_cast<size_t>(info.block_values);
  for (size_t i = 0; i < out.size(); i += step, blocks += info.block_bytes) {
    decode(blocks, out.data() + i);
  }
}

}  // namespace

std::optional<GgufTypeInfo> FindGgufType(uint32_t type) {
  for (const GgufTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == type) return info;
  }
  return std::nullopt;
}

void DequantizeGguf(const GgufTypeInfo& info, const std::byte* blocks, std::span<float> out) {
  SLUICE_CHECK(out.size() % static_cast<size_t>(info.block_values) == 0);
  switch (info.type) {
    case GgufType::kF32:
      std::memcpy(out.data(), blocks, out.size_bytes());
      return;
    case GgufType::kF16:
      return EachBlock(info, blocks, out, [](const std::byte* b, float* y) { *y = Half(b); });
    case GgufType::kBF16:
      return EachBlock(info, blocks, out,
                       [](const std::byte* b, float* y) { *y = Bf16ToF32(Load<uint16_t>(b)); });
    case GgufType::kQ4_0:
      return EachBlock(info, blocks, out, Q4_0);
    case GgufType::kQ4_1:
      return EachBlock(info, blocks, out, Q4_1);
    case GgufType::kQ5_0:
      return EachBlock(info, blocks, out, Q5_0);
    case GgufType::kQ5_1:
      return EachBlock(info, blocks, out, Q5_1);
    case GgufType::kQ8_0:
      return EachBlock(info, blocks, out, Q8_0);
    case GgufType::kQ2_K:
      return EachBlock(info, blocks, out, Q2_K);
    case GgufType::kQ3_K:
      return EachBlock(info, blocks, out, Q3_K);
    case GgufType::kQ4_K:
      return EachBlock(info, blocks, out, Q4_K);
    case GgufType::kQ5_K:
      return EachBlock(info, blocks, out, Q5_K);
    case GgufType::kQ6_K:
      return EachBlock(info, blocks, out, Q6_K);
    case GgufType::kIq4Nl:
      return EachBlock(info, blocks, out, Iq4Nl);
    case GgufType::kIq4Xs:
      return EachBlock(info, blocks, out, Iq4Xs);
    case GgufType::kMxfp4:
      return EachBlock(info, blocks, out, Mxfp4);
  }
}

}  // namespace sluice
