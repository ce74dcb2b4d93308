// Four float lanes through the compilers' vector extension: SSE2 and NEON are baseline on their
// machines, so no dispatch is needed here.
#include "engine/sampling/row_math.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "engine/base/check.h"

namespace sluice {
namespace {

typedef float F32x4 __attribute__((vector_size(16)));
typedef int32_t I32x4 __attribute__((vector_size(16)));
typedef float F32x2 __attribute__((vector_size(8)));
typedef double F64x2 __attribute__((vector_size(16)));

constexpr int kLanes = 4;

inline F32x4 Load(const float* p) {
  F32x4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline F32x4 Splat(float x) { return F32x4{x, x, x, x}; }
inline I32x4 Splat(int32_t x) { return I32x4{x, x, x, x}; }
inline I32x4 Bits(F32x4 v) { return std::bit_cast<I32x4>(v); }
inline F32x4 FromBits(I32x4 v) { return std::bit_cast<F32x4>(v); }

inline F32x4 Select(I32x4 mask, F32x4 yes, F32x4 no) {
  return FromBits((mask & Bits(yes)) | (~mask & Bits(no)));
}

inline bool Any(I32x4 mask) {
  uint64_t halves[2];
  std::memcpy(halves, &mask, sizeof(halves));
  return (halves[0] | halves[1]) != 0;
}

// exp(x) for x <= 0, and 0 for x < -87 (results stay normal numbers). Range reduction by ln 2 in
// two parts, then the Taylor polynomial of degree 7: on |r| <= ln2 / 2 its truncation error is
// below 6e-9, under float rounding.
inline F32x4 ExpNonPositive(F32x4 x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const I32x4 underflow = x < Splat(-87.0f);
  x = Select(underflow, Splat(-87.0f), x);
  const F32x4 shifted = x * Splat(kLog2E) + Splat(kRoundMagic);
  const F32x4 n = shifted - Splat(kRoundMagic);
  const F32x4 r = (x - n * Splat(kLn2High)) - n * Splat(kLn2Low);
  F32x4 p = Splat(1.0f / 5040.0f);
  p = p * r + Splat(1.0f / 720.0f);
  p = p * r + Splat(1.0f / 120.0f);
  p = p * r + Splat(1.0f / 24.0f);
  p = p * r + Splat(1.0f / 6.0f);
  p = p * r + Splat(0.5f);
  p = p * r + Splat(1.0f);
  p = p * r + Splat(1.0f);
  const I32x4 exponent = Bits(shifted) - Bits(Splat(kRoundMagic));
  const F32x4 scale = FromBits((exponent + Splat(127)) << 23);
  return FromBits(~underflow & Bits(p * scale));
}

// Adds lanes 0 and 1 to *low, 2 and 3 to *high.
inline void Accumulate(F32x4 v, F64x2* low, F64x2* high) {
  *low += __builtin_convertvector((F32x2{v[0], v[1]}), F64x2);
  *high += __builtin_convertvector((F32x2{v[2], v[3]}), F64x2);
}

// Up to four elements, padded with `fill`.
inline F32x4 LoadPartial(const float* p, size_t count, float fill) {
  float lanes[kLanes] = {fill, fill, fill, fill};
  std::memcpy(lanes, p, count * sizeof(float));
  return Load(lanes);
}

}  // namespace

RowScan ScanRow(std::span<const float> row) {
  SLUICE_CHECK(!row.empty());
  constexpr int32_t kExponentMask = 0x7f800000;
  F32x4 max0 = Splat(row[0]), max1 = max0;
  I32x4 bad = Splat(0);
  size_t i = 0;
  const auto take = [&bad](F32x4 v, F32x4 max) {
    bad |= (Bits(v) & Splat(kExponentMask)) == Splat(kExponentMask);
    return Select(v > max, v, max);
  };
  for (; i + 2 * kLanes <= row.size(); i += 2 * kLanes) {
    max0 = take(Load(&row[i]), max0);
    max1 = take(Load(&row[i + kLanes]), max1);
  }
  for (; i < row.size(); i += kLanes) {
    const size_t count = std::min<size_t>(kLanes, row.size() - i);
    max0 = take(LoadPartial(&row[i], count, row[i]), max0);
  }
  max0 = Select(max1 > max0, max1, max0);
  const float max = std::max(std::max(max0[0], max0[1]), std::max(max0[2], max0[3]));
  return {max, !Any(bad)};
}

int32_t FirstIndexOf(std::span<const float> row, float max) {
  size_t i = 0;
  while (i + kLanes <= row.size() && !Any(Load(&row[i]) == Splat(max))) i += kLanes;
  while (i < row.size() && row[i] != max) ++i;
  SLUICE_CHECK(i < row.size());
  return static_cast<int32_t>(i);
}

double ExpWeights(std::span<const float> row, float max, float inverse_temperature,
                  std::vector<float>* weights, std::vector<double>* piece_sums) {
  const size_t n = row.size();
  weights->resize(n);
  piece_sums->resize((n + kPieceElements - 1) / kPieceElements);
  float* out = weights->data();
  const F32x4 top = Splat(max), factor = Splat(inverse_temperature);
  double total = 0;
  for (size_t piece = 0; piece < piece_sums->size(); ++piece) {
    const size_t begin = piece * kPieceElements;
    const size_t end = std::min(n, begin + kPieceElements);
    F64x2 low = {0, 0}, high = {0, 0};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const F32x4 w = ExpNonPositive((Load(&row[i]) - top) * factor);
      std::memcpy(out + i, &w, sizeof(w));
      Accumulate(w, &low, &high);
    }
    if (i < end) {
      const float pad = -std::numeric_limits<float>::infinity();
      const F32x4 w = ExpNonPositive((LoadPartial(&row[i], end - i, pad) - top) * factor);
      std::memcpy(out + i, &w, (end - i) * sizeof(float));
      Accumulate(w, &low, &high);
    }
    (*piece_sums)[piece] = (low[0] + low[1]) + (high[0] + high[1]);
    total += (*piece_sums)[piece];
  }
  return total;
}

void SelectAtLeast(std::span<const float> row, float floor, std::vector<RankedToken>* out) {
  out->clear();
  const auto offer = [&](size_t i) {
    if (row[i] >= floor) out->push_back({row[i], static_cast<int32_t>(i)});
  };
  size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    if (!Any(Load(&row[i]) >= Splat(floor))) continue;
    for (size_t lane = 0; lane < kLanes; ++lane) offer(i + lane);
  }
  for (; i < row.size(); ++i) offer(i);
}

void SelectTop(std::span<const float> row, int count, std::vector<RankedToken>* out) {
  out->clear();
  const size_t keep = std::min(static_cast<size_t>(std::max(count, 0)), row.size());
  if (keep == 0) return;
  // Candidates gather in a buffer; whenever it fills, only the best `keep` stay, and the worst of
  // them becomes the bar. Ids ascend, so a later element equal to the bar ranks below it.
  const size_t capacity = std::min(keep + std::max<size_t>(keep, 256), row.size());
  out->reserve(capacity);
  float bar = -std::numeric_limits<float>::infinity();
  bool barred = false;
  const auto shrink = [&] {
    std::nth_element(out->begin(), out->begin() + static_cast<ptrdiff_t>(keep - 1), out->end());
    out->resize(keep);
    bar = out->back().value;
    barred = true;
  };
  const auto offer = [&](size_t i) {
    if (barred && !(row[i] > bar)) return;
    if (out->size() == capacity) shrink();
    if (barred && !(row[i] > bar)) return;
    out->push_back({row[i], static_cast<int32_t>(i)});
  };
  size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    if (barred && !Any(Load(&row[i]) > Splat(bar))) continue;
    for (size_t lane = 0; lane < kLanes; ++lane) offer(i + lane);
  }
  for (; i < row.size(); ++i) offer(i);
  if (out->size() > keep) shrink();
  std::sort(out->begin(), out->end());
}

}  // namespace sluice
