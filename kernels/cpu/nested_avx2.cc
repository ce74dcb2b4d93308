// The kernels of bit-nested matrices for AVX2; compiled with those flags.
#define SLUICE_ISA avx2
#include "kernels/cpu/codes_avx2-inl.h"

// The wrapper comes first.
#include "kernels/cpu/nested-inl.h"
