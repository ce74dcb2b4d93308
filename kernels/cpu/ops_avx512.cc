// The kernels for AVX-512 F, BW, VL, DQ and VNNI; compiled with those flags.
#define SLUICE_ISA avx512
#include "kernels/cpu/vec_avx512-inl.h"

// The wrapper comes first, the table last.
#include "kernels/cpu/table-inl.h"
