// The kernels for AVX-512 with BF16 dot products; compiled with those flags.
#define SLUICE_ISA avx512bf16
#define SLUICE_NESTED_ISA avx512
#include "kernels/cpu/vec_avx512-inl.h"

// The wrapper comes first, the table last.
#include "kernels/cpu/table-inl.h"
