// The kernels for AVX2, FMA and F16C; compiled with those flags.
#define SLUICE_ISA avx2
#include "kernels/cpu/vec_avx2-inl.h"

// The wrapper comes first, the table last.
#include "kernels/cpu/table-inl.h"
