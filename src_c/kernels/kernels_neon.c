/* The neon table. */
#ifndef __ARM_NEON
#error "kernels_neon.c is for aarch64; see ISA_FLAGS in setup.py"
#endif
#define FRNN_ISA neon
#include "kernels_body.h"
