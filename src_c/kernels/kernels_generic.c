/* The portable fallback: 128-bit vectors, no FMA, hence its own bits. */
#define FRNN_ISA generic
#include "kernels_body.h"
