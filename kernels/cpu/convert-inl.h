// The body of every convert_<isa>.cc: SLUICE_LANES rows at a time in one vector register. The
// search is bound by arithmetic: about 8 + 6 * levels vector operations per column and candidate.
#include <stdint.h>

#include "kernels/cpu/convert_ops.h"
#include "kernels/cpu/isa_macros.h"

SLUICE_BEGIN_ISA

constexpr int kLanes = SLUICE_LANES;
constexpr int kRows = 16;

// Vectors of the compiler: +, -, *, /, comparisons to masks and `mask ? a : b` work lane by lane.
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

SLUICE_INLINE Vec Load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
SLUICE_INLINE void Store(Vec v, float* p) { __builtin_memcpy(p, &v, sizeof v); }
SLUICE_INLINE Vec Set(float x) { return Vec{} + x; }
// b where a is NaN.
SLUICE_INLINE Vec Max(Vec a, Vec b) { return a > b ? a : b; }
SLUICE_INLINE Vec Min(Vec a, Vec b) { return a < b ? a : b; }
SLUICE_INLINE Vec Inverse(Vec s) { return s != Set(0) ? Set(1) / s : Set(0); }

// What a pass over a group needs to know besides s and m.
struct Shape {
  Vec top;     // max_code
  Vec centre;  // c, and a half to round
};
SLUICE_INLINE Shape ShapeOf(const GroupFitArgs& args) {
  const float centre = args.symmetric ? static_cast<float>(args.max_code + 1) / 2 : 0.0f;
  return {Set(static_cast<float>(args.max_code)), Set(centre + 0.5f)};
}
// The code of a weight that is t steps above the minimum.
SLUICE_INLINE IntVec CodeOf(Vec t, const Shape& shape) {
  return __builtin_convertvector(Min(Max(t + shape.centre, Set(0)), shape.top), IntVec);
}

// Least-squares sums with the codes of (s, m): u is a level's value in steps.
struct Sums {
  Vec uu, u, ux, x;
};

template <int levels, bool with_sums>
SLUICE_INLINE Vec Pass(const GroupFitArgs& args, const Shape& shape, const float* x, Vec s, Vec m,
                       Sums* sums) {
  const Vec inverse = Inverse(s);
  Vec error = Set(0);
  Sums total = {Set(0), Set(0), Set(0), Set(0)};
  for (int k = 0; k < args.cols; ++k) {
    const Vec value = Load(x + k * kRows);
    const Vec t = (value - m) * inverse;
    const IntVec code = CodeOf(t, shape);
    Vec squares = Set(0), first = Set(0), second = Set(0);
    SLUICE_UNROLL(8)
    for (int l = 0; l < levels; ++l) {
      const GroupFitLevel& level = args.level[l];
      const IntVec kept = code & ~((1 << level.dropped) - 1);
      const Vec u = __builtin_convertvector(kept, Vec) + level.add;
      const Vec gap = t - u;
      squares += gap * gap * level.weight;
      if constexpr (with_sums) {
        const Vec weighted = u * level.weight;
        first += weighted;
        second += weighted * u;
      }
    }
    const float weight = args.weight[k];
    error += squares * weight;
    if constexpr (with_sums) {
      first *= weight;
      total.u += first;
      total.uu += second * weight;
      total.ux += first * value;
      total.x += value * weight;
    }
  }
  if constexpr (with_sums) *sums = total;
  // In steps so far. A scale of zero stands for weights that are all zero, or not finite.
  return error * (s * s);
}

// Best s and m for the codes behind `sums`; where there is none, the old ones.
SLUICE_INLINE void Improve(const GroupFitArgs& args, const Sums& sums, float level_weight,
                           float column_weight, Vec* s, Vec* m) {
  const Vec through_zero = sums.uu > Set(0) ? sums.ux / sums.uu : *s;
  if (args.symmetric) {
    *s = through_zero;
    return;
  }
  const Vec n = Set(level_weight * column_weight);
  const Vec x = sums.x * level_weight;
  const Vec determinant = n * sums.uu - sums.u * sums.u;
  const auto usable = determinant > n * sums.uu * 1e-6f;
  Vec scale = usable ? (n * sums.ux - sums.u * x) / determinant : *s;
  Vec min = usable ? (x - scale * sums.u) / n : *m;
  if (args.min_at_most_zero) {
    const auto above = min > Set(0);
    scale = above ? through_zero : scale;
    min = above ? Set(0) : min;
  }
  const auto sane = scale > Set(0);
  *s = sane ? scale : *s;
  *m = sane ? min : *m;
}

constexpr int kImprovements = 2;

template <int levels>
SLUICE_INLINE void FitLanes(const GroupFitArgs& args, const float* x, float* scale, float* min) {
  const Shape shape = ShapeOf(args);
  float level_weight = 0, column_weight = 0;
  for (int l = 0; l < levels; ++l) level_weight += args.level[l].weight;
  for (int k = 0; k < args.cols; ++k) column_weight += args.weight[k];
  Vec low = Load(x), high = Load(x);
  for (int k = 1; k < args.cols; ++k) {
    const Vec value = Load(x + k * kRows);
    low = Min(value, low);
    high = Max(value, high);
  }
  if (args.min_at_most_zero || args.symmetric) {
    low = Min(low, Set(0));
    high = Max(high, Set(0));
  }
  Vec best = Set(3e38f), best_scale = Set(0), best_min = low;
  const auto keep = [&](Vec error, Vec s, Vec m) {
    const auto better = error < best;
    best = better ? error : best;
    best_scale = better ? s : best_scale;
    best_min = better ? m : best_min;
  };
  const auto descend = [&](Vec s, Vec m) {
    Sums sums;
    for (int i = 0; i < kImprovements; ++i) {
      keep(Pass<levels, true>(args, shape, x, s, m, &sums), s, m);
      Improve(args, sums, level_weight, column_weight, &s, &m);
    }
    keep(Pass<levels, false>(args, shape, x, s, m, nullptr), s, m);
  };
  constexpr float kShrink[] = {1.0f, 0.85f, 0.7f};
  for (const float shrink : kShrink) {
    if (args.symmetric) {
      // The larger side gets the code that only negative multiples have.
      const float half = static_cast<float>(args.max_code + 1) / 2;
      const Vec reach = high > -low ? -high : -low;
      descend(reach * (shrink / half), Set(0));
      if (shrink == 1.0f) descend(reach * (-1.0f / (half - 0.5f)), Set(0));
    } else {
      const Vec middle = args.min_at_most_zero ? Set(0) : (low + high) * 0.5f;
      const Vec bottom = middle + (low - middle) * shrink;
      const Vec top = middle + (high - middle) * shrink;
      descend((top - bottom) / static_cast<float>(args.max_code), bottom);
    }
  }
  Store(best_scale, scale);
  Store(best_min, min);
}

template <int levels>
void Fit(const GroupFitArgs& args, float* scale, float* min) {
  for (int r = 0; r < kRows; r += kLanes) {
    FitLanes<levels>(args, args.x + r, scale + r, min + r);
  }
}

template <int levels>
void Score(const GroupFitArgs& args, const float* scale, const float* min, float* error) {
  const Shape shape = ShapeOf(args);
  for (int r = 0; r < kRows; r += kLanes) {
    Store(Pass<levels, false>(args, shape, args.x + r, Load(scale + r), Load(min + r), nullptr),
          error + r);
  }
}

void FitAny(const GroupFitArgs& args, float* scale, float* min) {
  switch (args.levels) {
    case 1:
      return Fit<1>(args, scale, min);
    case 2:
      return Fit<2>(args, scale, min);
    case 3:
      return Fit<3>(args, scale, min);
    case 4:
      return Fit<4>(args, scale, min);
    default:
      return Fit<5>(args, scale, min);
  }
}

void ScoreAny(const GroupFitArgs& args, const float* scale, const float* min, float* error) {
  switch (args.levels) {
    case 1:
      return Score<1>(args, scale, min, error);
    case 2:
      return Score<2>(args, scale, min, error);
    case 3:
      return Score<3>(args, scale, min, error);
    case 4:
      return Score<4>(args, scale, min, error);
    default:
      return Score<5>(args, scale, min, error);
  }
}

void Encode(const GroupFitArgs& args, const float* scale, const float* min, int32_t* codes) {
  const Shape shape = ShapeOf(args);
  for (int r = 0; r < kRows; r += kLanes) {
    const Vec inverse = Inverse(Load(scale + r));
    const Vec m = Load(min + r);
    for (int k = 0; k < args.cols; ++k) {
      const IntVec code = CodeOf((Load(args.x + k * kRows + r) - m) * inverse, shape);
      __builtin_memcpy(codes + k * kRows + r, &code, sizeof code);
    }
  }
}

// Tiles of kTileRows by two vectors of the sum stay in registers while all rows of x pass.
void AddOuterProducts(const float* x, int rows, int cols, float* sum) {
  constexpr int kTileRows = 4;
  constexpr int kTileCols = kLanes * 2;
  for (int i = 0; i < cols; i += kTileRows) {
    for (int j = i / kTileCols * kTileCols; j < cols; j += kTileCols) {
      const bool wide = j + kTileCols <= cols;
      Vec total[kTileRows][2];
      SLUICE_UNROLL(4)
      for (int r = 0; r < kTileRows; ++r) {
        float* at = sum + static_cast<int64_t>(i + r) * cols + j;
        total[r][0] = Load(at);
        total[r][1] = wide ? Load(at + kLanes) : Set(0);
      }
      for (int t = 0; t < rows; ++t) {
        const float* row = x + static_cast<int64_t>(t) * cols;
        const Vec first = Load(row + j);
        const Vec second = wide ? Load(row + j + kLanes) : Set(0);
        SLUICE_UNROLL(4)
        for (int r = 0; r < kTileRows; ++r) {
          total[r][0] += first * row[i + r];
          total[r][1] += second * row[i + r];
        }
      }
      SLUICE_UNROLL(4)
      for (int r = 0; r < kTileRows; ++r) {
        float* at = sum + static_cast<int64_t>(i + r) * cols + j;
        Store(total[r][0], at);
        if (wide) Store(total[r][1], at + kLanes);
      }
    }
  }
}

template <int columns>
SLUICE_INLINE void SubtractTile(const float* x, int terms, const float* factor,
                                int64_t factor_stride, float* y) {
  for (int r = 0; r < kRows; r += kLanes) {
    Vec total[columns];
    SLUICE_UNROLL(16)
    for (int k = 0; k < columns; ++k) total[k] = Load(y + k * kRows + r);
    for (int j = 0; j < terms; ++j) {
      const Vec value = Load(x + j * kRows + r);
      const float* factors = factor + j * factor_stride;
      SLUICE_UNROLL(16)
      for (int k = 0; k < columns; ++k) total[k] -= value * factors[k];
    }
    SLUICE_UNROLL(16)
    for (int k = 0; k < columns; ++k) Store(total[k], y + k * kRows + r);
  }
}

// Rows of the factor are a power of two apart as a rule, so few of their lines fit into the cache
// at a time: all that is read of a line is used at once, for every set.
void SubtractProducts(const float* const* x, int terms, const float* factor, int64_t factor_stride,
                      int count, float* const* y, int sets) {
  int k = 0;
  for (; k + 16 <= count; k += 16) {
    for (int s = 0; s < sets; ++s) {
      SubtractTile<16>(x[s], terms, factor + k, factor_stride, y[s] + k * kRows);
    }
  }
  for (; k < count; ++k) {
    for (int s = 0; s < sets; ++s) {
      SubtractTile<1>(x[s], terms, factor + k, factor_stride, y[s] + k * kRows);
    }
  }
}

}  // namespace

extern const ConvertOps kConvertOps;
const ConvertOps kConvertOps = {SLUICE_ISA_NAME, FitAny,           ScoreAny,
                                Encode,          AddOuterProducts, SubtractProducts};

}  // namespace SLUICE_ISA
}  // namespace sluice::cpu
