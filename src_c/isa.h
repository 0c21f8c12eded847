/* isa.h: the kernel tables that this machine can run. */
#ifndef FRNN_ISA_H
#define FRNN_ISA_H

#include "kernels/kernels.h"

/* The table in use. */
const frnn_kernels *frnn_kernels_selected(void);

#endif
