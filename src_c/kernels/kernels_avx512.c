/* The avx512 table. */
#ifndef __AVX512F__
#error "kernels_avx512.c needs -mavx512f -mavx512vl -mavx512bw -mavx512dq; see ISA_FLAGS in setup.py"
#endif
#define FRNN_ISA avx512
#include "kernels_body.h"
