// The kernels in portable C++.
#define SLUICE_ISA scalar
#include "kernels/cpu/vec_scalar-inl.h"

// The wrapper comes first, the table last.
#include "kernels/cpu/table-inl.h"
