// The kernels of bit-nested matrices in portable C++; compiled with those flags.
#define SLUICE_ISA scalar
#include "kernels/cpu/codes_scalar-inl.h"

// The wrapper comes first.
#include "kernels/cpu/nested-inl.h"
