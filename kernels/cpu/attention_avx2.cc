// Attention and the K/V cache for AVX2; compiled with those flags.
#define SLUICE_ISA avx2
#include "kernels/cpu/codes_avx2-inl.h"

// The wrapper comes first.
#include "kernels/cpu/attention-inl.h"
