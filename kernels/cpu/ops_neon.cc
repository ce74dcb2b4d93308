// The kernels for AArch64 Advanced SIMD.
#define SLUICE_ISA neon
#include "kernels/cpu/vec_neon-inl.h"

// The wrapper comes first, the table last.
#include "kernels/cpu/table-inl.h"
