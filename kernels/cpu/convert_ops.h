// The inner loops of conversion: the bit-nested quantizer's search of scales and minima, 16 rows of
// weights at a time, one row per lane; and the products that error compensation needs.
//
// A weight x is coded as q = round((x - m) / s + c), clamped to [0, max_code], and stands for
//   value_l = s * ((q with the low `dropped` bits cleared) + add) + m
// at level l. What is minimised is
//   error = sum over columns of weight[column] * sum over levels of level.weight * (x - value_l)^2.
//
// All arithmetic is F32 without fused multiply-adds, and a lane never meets another: every
// instruction set gives the same bits, so a pack does not depend on the machine that made it.
// Single-threaded, allocate nothing, may be called from any thread.
#pragma once

#include "kernels/common/nested.h"
#include "kernels/cpu/ops.h"

namespace sluice::cpu {

struct GroupFitLevel {
  int dropped;   // low bits of the code that this level lacks
  float add;     // middle of the codes that share the rest, from the first one, less c
  float weight;  // not negative
};

struct GroupFitArgs {
  int cols;               // of the group
  int max_code;           // 2^bits - 1
  bool symmetric;         // m is 0 and c = (max_code + 1) / 2; otherwise c is 0
  bool min_at_most_zero;  // m <= 0, as ScaleKind::kU8Min needs
  int levels;
  GroupFitLevel level[kMaxPlanes];
  const float* x;       // [cols][16]
  const float* weight;  // [cols], not negative
};

struct ConvertOps {
  const char* name;  // "scalar", "avx2", "avx512"
  // Searches s and m of each row: ranges shrunk by several factors, each improved by least squares
  // with the codes held. scale, min: [16].
  void (*fit)(const GroupFitArgs& args, float* scale, float* min);
  // The error of given s and m; error: [16].
  void (*score)(const GroupFitArgs& args, const float* scale, const float* min, float* error);
  // codes: [cols][16].
  void (*encode)(const GroupFitArgs& args, const float* scale, const float* min, int32_t* codes);

  // sum[i, j] += sum over t of x[t, i] * x[t, j], for j >= i only (some entries below the diagonal
  // change too). x: [rows, cols] contiguous, sum: [cols, cols]; cols a multiple of 16.
  void (*add_outer_products)(const float* x, int rows, int cols, float* sum);
  // For each set i: y[i][k][lane] -= sum over j of factor[j * factor_stride + k] * x[i][j][lane], k
  // in [0, count), j in [0, terms), lanes 16 wide.
  void (*subtract_products)(const float* const* x, int terms, const float* factor,
                            int64_t factor_stride, int count, float* const* y, int sets);
};

// The table for `isa`, or null as SelectOps.
const ConvertOps* SelectConvertOps(Isa isa);

}  // namespace sluice::cpu
