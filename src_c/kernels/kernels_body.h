/* kernels_body.h: every kernel, written once.
 *
 * kernels_<isa>.c names the ISA and includes this file, so it is compiled once per instruction set.
 * Everything but the table is static: a shared symbol would let the linker run AVX-512 code on an old CPU. */
#include "kernels.h"
#include "vec.h"

#define INLINE static inline __attribute__((always_inline))

#include "math_body.h"
#include "rows_body.h"

#include "elements_body.h"

#include "product_body.h"

#include "cell_body.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)

const frnn_kernels JOIN(frnn_kernels_, FRNN_ISA) = {
    .isa = STRING(FRNN_ISA),
    .vlen = VLEN,
    .product = product,
    .lstm_step = lstm_step,
    .gru_step = gru_step,
    .gru_reset = gru_reset,
    .gru_candidate = gru_candidate,
    .rnn_step = rnn_step,
    .activate = activate,
    .softmax = softmax,
    .layer_norm = layer_norm,
    .scale_shift = scale_shift,
    .binary = binary,
    .reduce = reduce,
};
