// Arithmetic over one row of logits. Every sum is accumulated in float64 in one fixed order, and
// exp is our own, so results depend on neither the C library nor the machine. Reentrant; callers
// bring the memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sluice {

struct RowScan {
  float max = 0;        // meaningless unless `finite` or the row holds only finite and -infinity
  bool finite = false;  // no NaN and no infinity anywhere
};

// One pass for the maximum and the check. REQUIRES: row not empty.
RowScan ScanRow(std::span<const float> row);

// The lowest index whose value equals `max`. REQUIRES: there is one.
int32_t FirstIndexOf(std::span<const float> row, float max);

// Elements per entry of `piece_sums` below.
inline constexpr int kPieceElements = 256;

// weights[i] = exp((row[i] - max) * inverse_temperature), zero below about 1.6e-38; relative error
// of exp under 3e-7. piece_sums[p] is the float64 sum over elements [256 p, 256 p + 256). Returns
// the sum of the pieces, in order. REQUIRES: row[i] <= max; inverse_temperature finite and above 0.
// Resizes its outputs; they keep their capacity.
double ExpWeights(std::span<const float> row, float max, float inverse_temperature,
                  std::vector<float>* weights, std::vector<double>* piece_sums);

struct RankedToken {
  float value = 0;
  int32_t token = 0;
  // Larger value first; equal values: lower id first.
  friend bool operator<(const RankedToken& a, const RankedToken& b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
  }
};

// The `count` best of `row` in rank order, in out[0 .. min(count, row.size())): exact, in one pass
// over the row plus work in proportion to count. REQUIRES: no NaN.
void SelectTop(std::span<const float> row, int count, std::vector<RankedToken>* out);

// All elements that are at least `floor`, in order of index.
void SelectAtLeast(std::span<const float> row, float floor, std::vector<RankedToken>* out);

}  // namespace sluice
