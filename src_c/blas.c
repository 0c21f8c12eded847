/* blas.c: row-major products in terms of Fortran's sgemm. */
#include "blas.h"

#include <limits.h>
#include <stdatomic.h>
#include <string.h>

static frnn_sgemm_fn *_Atomic blas_sgemm;

void frnn_set_blas(frnn_sgemm_fn *sgemm) { atomic_store(&blas_sgemm, sgemm); }

bool frnn_blas_available(void) { return atomic_load(&blas_sgemm) != NULL; }

/* BLAS counts in int: long calls go in slices of rows. */
void frnn_blas_product(const frnn_product_args *args)
{
    const frnn_panels *matrix = args->panels;
    const size_t columns = matrix->gates * frnn_padded(matrix);
    for (size_t r = 0; r < args->rows; r++) memcpy(args->out.at + r * args->out.row_stride, matrix->bias, columns * sizeof(float));
    if (matrix->k == 0) return;
    enum { SLICE = 1 << 20 };
    for (size_t r = 0; r < args->rows; r += SLICE) {
        /* Seen by columns, W is (columns, k), a is (k, rows) and out (columns, rows). */
        char no[] = "N";
        int m = (int)columns, n = (int)(args->rows - r < SLICE ? args->rows - r : SLICE), k = (int)matrix->k;
        int lda = (int)args->a_stride, ldc = (int)args->out.row_stride;
        float one = 1.0f;
        atomic_load (&blas_sgemm)(no, no, &m, &n, &k, &one, matrix->w, &m, (float *)args->a + r * args->a_stride, &lda, &one,
                                  args->out.at + r * args->out.row_stride, &ldc);
    }
}
