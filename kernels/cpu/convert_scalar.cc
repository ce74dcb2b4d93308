#define SLUICE_ISA scalar
#define SLUICE_ISA_NAME "scalar"
#define SLUICE_LANES 4
#include "kernels/cpu/convert-inl.h"
