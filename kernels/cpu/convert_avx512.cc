#define SLUICE_ISA avx512
#define SLUICE_ISA_NAME "avx512"
#define SLUICE_LANES 16
#include "kernels/cpu/convert-inl.h"
