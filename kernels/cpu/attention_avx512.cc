// Attention and the K/V cache for AVX-512 with VNNI; compiled with those flags.
#define SLUICE_ISA avx512
#include "kernels/cpu/codes_avx512-inl.h"

// The wrapper comes first.
#include "kernels/cpu/attention-inl.h"
