// Attention and the K/V cache for AArch64 with dot products; compiled with those flags.
#define SLUICE_ISA neon
#include "kernels/cpu/codes_neon-inl.h"

// The wrapper comes first.
#include "kernels/cpu/attention-inl.h"
