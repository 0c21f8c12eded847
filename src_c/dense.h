/* dense.h: a dense layer as a step of a program. */
#ifndef FRNN_DENSE_H
#define FRNN_DENSE_H

#include "fastrnn.h"
#include "poll.h"

/* As frnn_dense_forward, asking `poll`; false: it was stopped. */
bool frnn_dense_run(const frnn_dense *layer, size_t rows, const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride, size_t threads,
                    void *scratch, frnn_poll *poll);

#endif
