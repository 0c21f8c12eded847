/* blas.h: matrix products through a BLAS; blas.c is the only file that calls one. */
#ifndef FRNN_BLAS_H
#define FRNN_BLAS_H

#include "kernels/kernels.h"

bool frnn_blas_available(void);

/* out = bias + a W^T with weights packed flat: the contract of frnn_kernels.product for all panels, except that
 * the order of sums is the library's.  out.panel_stride must be frnn_panel_row(panels). */
void frnn_blas_product(const frnn_product_args *args);

/* By whichever of the two packed the matrix. */
static inline void frnn_product(const frnn_kernels *kernels, bool blas, const frnn_product_args *args)
{
    if (blas)
        frnn_blas_product(args);
    else
        kernels->product(args);
}

#endif
