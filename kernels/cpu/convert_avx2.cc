#define SLUICE_ISA avx2
#define SLUICE_ISA_NAME "avx2"
#define SLUICE_LANES 8
#include "kernels/cpu/convert-inl.h"
