/* rows.c: functions of elements and rows, on the calling thread. */
#include "float_mode.h"
#include "kernels/kernels.h"

void frnn_activate(const frnn_kernels *kernels, frnn_activation activation, size_t n, const float *x, float *y)
{
    const frnn_float_mode mode = frnn_float_mode_set();
    kernels->activate(activation, n, x, y);
    frnn_float_mode_restore(mode);
}

void frnn_softmax(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, float *y, bool logarithm)
{
    const frnn_float_mode mode = frnn_float_mode_set();
    kernels->softmax(rows, n, x, y, logarithm);
    frnn_float_mode_restore(mode);
}

void frnn_layer_norm(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, const float *weight, const float *bias, float eps,
                     float *y)
{
    const frnn_float_mode mode = frnn_float_mode_set();
    kernels->layer_norm(rows, n, x, weight, bias, eps, y);
    frnn_float_mode_restore(mode);
}

void frnn_scale_shift(const frnn_kernels *kernels, size_t rows, size_t n, const float *x, const float *scale, const float *shift, float *y)
{
    const frnn_float_mode mode = frnn_float_mode_set();
    kernels->scale_shift(rows, n, x, scale, shift, y);
    frnn_float_mode_restore(mode);
}
