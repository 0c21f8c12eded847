/* The portable fallback: 128-bit vectors, no FMA, hence its own bits. */
#define FRNN_ISA generic
#define FRNN_TUNED 0
#include "kernels_body.h"
