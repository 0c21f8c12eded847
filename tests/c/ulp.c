/* ulp.c: an activation on every instruction set of the machine, over a range of float32 numbers, against double.
 *
 *     ulp KIND ALPHA BETA FLUSHED BEGIN END STRIDE
 *
 * takes the numbers whose bits are multiples of STRIDE in [BEGIN, END), and prints a line for each instruction set:
 *
 *     NAME  largest error in ULP  where  largest error / max(1, |y|)  where  checksum of the results
 *
 * A denormal number counts as 0, as in every call, and an error up to FLUSHED as 0 ULP.  Checksums of ranges add up,
 * modulo 2^64, to that of their union.
 * Exit code 1: NaN or infinities are elsewhere.  2: wrong usage. */
#include <inttypes.h>

#include "bits.h"
#include "fastrnn.h"

/* These pass NaN on, as fmin and fmax do not. */
static double at_least(double low, double x) { return x < low ? low : x; }
static double clip(double x, double low, double high) { return x > high ? high : at_least(low, x); }

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double elu(double x, double alpha) { return x < 0 ? alpha * expm1(x) : x; }
static double softplus(double x) { return at_least(0, x) + log1p(exp(-fabs(x))); }

static double exact(frnn_activation_kind kind, double alpha, double beta, double x)
{
    switch (kind) {
    case FRNN_LINEAR: return x;
    case FRNN_SIGMOID: return sigmoid(x);
    case FRNN_TANH: return tanh(x);
    case FRNN_RELU: return at_least(0, x);
    case FRNN_HARD_SIGMOID: return clip(alpha * x + beta, 0, 1);
    case FRNN_AFFINE: return alpha * x + beta;
    case FRNN_LEAKY_RELU: return x < 0 ? alpha * x : x;
    case FRNN_THRESHOLDED_RELU: return x <= alpha ? 0 : x;
    case FRNN_SCALED_TANH: return alpha * tanh(beta * x);
    case FRNN_ELU: return elu(x, alpha);
    case FRNN_SOFTSIGN: return x / (1 + fabs(x));
    case FRNN_SOFTPLUS: return softplus(x);
    case FRNN_EXP: return exp(x);
    case FRNN_SELU: return beta * elu(x, alpha);
    case FRNN_SILU: return x * sigmoid(x);
    case FRNN_GELU: return x / 2 * erfc(-x / sqrt(2));
    case FRNN_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case FRNN_MISH: return x * tanh(softplus(x));
    case FRNN_RELU6: return clip(x, 0, 6);
    case FRNN_HARD_TANH: return clip(x, alpha, beta);
    case FRNN_HARD_SWISH: return x * clip(x / 6 + 0.5, 0, 1);
    case FRNN_LOG_SIGMOID: return -softplus(-x);
    case FRNN_CELU: return x < 0 ? alpha * expm1(x / alpha) : x;
    case FRNN_ABS: return fabs(x);
    case FRNN_NEG: return -x;
    case FRNN_SIGN: return x > 0 ? 1 : x < 0 ? -1 : x;
    case FRNN_SQUARE: return x * x;
    case FRNN_SQRT: return sqrt(x);
    case FRNN_RECIPROCAL: return 1 / x;
    case FRNN_LOG: return log(x);
    case FRNN_ERF: return erf(x);
    case FRNN_FLOOR: return floor(x);
    case FRNN_CEIL: return ceil(x);
    case FRNN_ROUND: return rint(x);
    }
    fail("no activation has this number:", "KIND");
    return 0;
}

/* As a call reads it: denormals are 0. */
static float flushed_input(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }

/* The distance to the next float, away from 0. */
static double spacing(float y)
{
    int exponent;
    frexpf(fmaxf(fabsf(y), FLT_MIN), &exponent);
    return ldexp(1, exponent - FLT_MANT_DIG);
}

/* By the finaliser of splitmix64. */
static uint64_t mix(uint32_t x, uint32_t y)
{
    uint64_t z = (uint64_t)x << 32 | y;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct {
    double ulp, absolute;
    float ulp_at, absolute_at;
    uint64_t checksum;
} worst;

static void add(worst *w, double flushed, size_t n, const float *x, const float *ours, const double *want)
{
    for (size_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &x[k], sizeof bits);
        w->checksum += mix(bits, canonical_bits(ours[k]));
        const float rounded = (float)want[k];
        if (isnan(ours[k]) != isnan(rounded) || isinf(ours[k]) != isinf(rounded)) {
            fprintf(stderr, "%g at %.9g, expected %g\n", ours[k], x[k], want[k]);
            exit(1);
        }
        if (!isfinite(rounded)) continue;
        const double error = fabs(ours[k] - want[k]), absolute = error / at_least(1, fabs(want[k]));
        if (absolute > w->absolute) w->absolute = absolute, w->absolute_at = x[k];
        if (error > flushed && error > w->ulp * spacing(rounded)) w->ulp = error / spacing(rounded), w->ulp_at = x[k];
    }
}

int main(int argc, char **argv)
{
    enum { BLOCK = 4099, MAX_ISAS = 8 }; /* odd, so that vectors end anywhere */
    static float x[BLOCK], ours[BLOCK];
    static double want[BLOCK];
    if (argc != 8) fail("usage:", "ulp KIND ALPHA BETA FLUSHED BEGIN END STRIDE");
    const frnn_activation_kind kind = (frnn_activation_kind)atoi(argv[1]);
    const double alpha = atof(argv[2]), beta = atof(argv[3]), flushed = atof(argv[4]);
    const uint64_t begin = strtoull(argv[5], NULL, 10), end = strtoull(argv[6], NULL, 10), stride = strtoull(argv[7], NULL, 10);
    const frnn_activation activation = {kind, (float)alpha, (float)beta};
    const size_t isas = frnn_isa_count();
    if (isas > MAX_ISAS) fail("too many", "instruction sets");
    const frnn_kernels *kernels[MAX_ISAS];
    worst found[MAX_ISAS] = {{0}};
    for (size_t k = 0; k < isas; k++) {
        frnn_set_isa(frnn_isa_name(k));
        kernels[k] = frnn_kernels_selected();
    }
    for (uint64_t next = (begin + stride - 1) / stride * stride; next < end;) {
        size_t n = 0;
        for (; n < BLOCK && next < end; next += stride, n++) {
            const uint32_t bits = (uint32_t)next;
            memcpy(&x[n], &bits, sizeof bits);
            want[n] = exact(kind, alpha, beta, flushed_input(x[n]));
        }
        for (size_t k = 0; k < isas; k++) {
            frnn_activate(kernels[k], activation, n, x, ours);
            add(&found[k], flushed, n, x, ours, want);
        }
    }
    for (size_t k = 0; k < isas; k++) {
        const worst *w = &found[k];
        printf("%s %.17g %.9g %.17g %.9g %" PRIu64 "\n", frnn_isa_name(k), w->ulp, w->ulp_at, w->absolute, w->absolute_at, w->checksum);
    }
    return 0;
}
