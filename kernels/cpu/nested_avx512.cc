// The kernels of bit-nested matrices for AVX-512 with VNNI, which the avx512bf16 table uses too;
// compiled with those flags.
#define SLUICE_ISA avx512
#include "kernels/cpu/codes_avx512-inl.h"

// The wrapper comes first.
#include "kernels/cpu/nested-inl.h"
