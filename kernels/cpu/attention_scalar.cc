// Attention and the K/V cache for any CPU.
#define SLUICE_ISA scalar
#include "kernels/cpu/codes_scalar-inl.h"

// The wrapper comes first.
#include "kernels/cpu/attention-inl.h"
