/* The avx2 table. */
#ifndef __AVX2__
#error "kernels_avx2.c needs -mavx2 -mfma; see ISA_FLAGS in setup.py"
#endif
#define FRNN_ISA avx2
#include "kernels_body.h"
