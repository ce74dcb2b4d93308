// The kernels of bit-nested matrices for AArch64 with dot products; compiled with those flags.
#define SLUICE_ISA neon
#include "kernels/cpu/codes_neon-inl.h"

// The wrapper comes first.
#include "kernels/cpu/nested-inl.h"
