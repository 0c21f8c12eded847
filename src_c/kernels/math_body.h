/* math_body.h: element-wise functions, the same operations on every ISA.
 *
 * All of them rest on one reduction:  e^x = 2^n e^r,  n = round(x / ln 2),  |r| <= ln(2) / 2,
 *     e^r - 1 = r + r^2 q(r),  q of degree 4, relative error of e^r below 2^-28 (minimax fit).
 * NaN propagates because bounds are applied as v_max(BOUND, x), which returns x where the comparison fails. */

typedef struct {
    vf scale;  /* |factor| 2^n */
    vf excess; /* (e^r - 1) / factor */
} reduced_exp;

/* e^(factor y), where factor is -1, 1 or 2 and factor y is in [-87.3, 88.8] or NaN.  Everything is divided by the
 * factor, which rounds nothing and costs nothing, as only constants change. */
INLINE reduced_exp v_reduce_exp(vf y, const float factor)
{
    /* Adding `magic` rounds to an integer in the low bits, where it is the exponent of the scale. */
    const vf magic = v_set(factor == 2 ? 0x1.8p+23f + 128 : 0x1.8p+23f + 127);
    vf shifted = v_fma(y, v_set(factor * 0x1.715476p+0f), magic); /* log2(e) */
    vf n = shifted - magic;
    vf r = v_fma(n, v_set(-0x1.62e4p-1f / factor), y); /* ln 2 in two parts; n times the first is exact even without FMA */
    r = v_fma(n, v_set(-0x1.7f7d1cp-20f / factor), r);
    vf square = r * r;
    vf low = v_fma(v_set(factor * factor * 0x1.55548ep-3f), r, v_set(factor * 0.5f));
    vf high = v_fma(v_set(factor * factor * factor * factor * 0x1.123b56p-7f), r, v_set(factor * factor * factor * 0x1.55545ep-5f));
    high = v_fma(v_set(factor * factor * factor * factor * factor * 0x1.6db42ap-10f), square, high);
    return (reduced_exp){.scale = (vf)((vu)shifted << 23), .excess = v_fma(square, v_fma(high, square, low), r)};
}

/* sigmoid(x) and tanh(x) are quotients.  The cells multiply them before dividing, as a division costs as much as ten
 * multiplications: denominators are at most 1 + e^88 and 2, so a product of two does not overflow. */

/* sigmoid(x) = 1 / (1 + e^-x) */
static inline vf v_sigmoid_denominator(vf x)
{
    reduced_exp e = v_reduce_exp(v_min(v_set(87.0f), v_max(v_set(-88.0f), x)), -1.0f);
    return v_fnma(e.scale, e.excess, e.scale + 1.0f);
}

static inline vf v_sigmoid(vf x) { return 1.0f / v_sigmoid_denominator(x); }

typedef struct {
    vf numerator, denominator;
} quotient;

/* With e = e^(-2 |x|) - 1, which keeps its relative accuracy near 0:  tanh |x| = -e / (e + 2). */
static inline quotient v_tanh_quotient(vf x)
{
    reduced_exp r = v_reduce_exp(v_max(v_set(-20.0f), v_negative_abs(x)), 2.0f);
    vf e = v_fma(r.scale, r.excess, v_fma(r.scale, v_set(0.5f), v_set(-1.0f)));
    return (quotient){.numerator = v_copy_sign(e, x), .denominator = e + 2.0f};
}

static inline vf v_tanh(vf x)
{
    quotient q = v_tanh_quotient(x);
    return q.numerator / q.denominator;
}

static inline vf v_exp(vf x)
{
    const vf low = v_set(-87.0f), high = v_set(88.7228390f); /* ln FLT_MAX */
    reduced_exp e = v_reduce_exp(v_min(high, v_max(low, x)), 1.0f);
    /* Above 88 the scale may be 2^128, which is no float: half of it is, and so is the result. */
    const vmask top = v_less(v_set(88.0f), x);
    vf scale = v_select(top, (vf)((vu)e.scale - 0x00800000), e.scale);
    vf y = v_fma(scale, e.excess, scale);
    y = v_select(top, y + y, y);
    y = v_select(v_less(high, x), v_set(__builtin_inff()), y);
    return v_select(v_less(x, low), v_set(0.0f), y);
}

/* log(1 + u), u in [0, 1] or NaN:  2 atanh(s) = s P(s^2),  s = u / (2 + u). */
static inline vf v_log1p_unit(vf u)
{
    vf s = u / (u + 2.0f), t = s * s;
    vf p = v_fma(v_set(0x1.f43cd2p-3f), t, v_set(0x1.b61002p-3f));
    p = v_fma(p, t, v_set(0x1.251464p-2f));
    p = v_fma(p, t, v_set(0x1.999622p-2f));
    p = v_fma(p, t, v_set(0x1.55555ap-1f));
    return s * v_fma(p, t, v_set(2.0f));
}

static inline vf v_relu(vf x) { return v_max(v_set(0.0f), x); }

static inline vf v_clip(vf x, float low, float high) { return v_min(v_set(high), v_max(v_set(low), x)); }

/* max(x, 0) + log(1 + e^-|x|) */
static inline vf v_softplus(vf x) { return v_relu(x) + v_log1p_unit(v_exp(-v_abs(x))); }

/* e^x - 1 for x <= 0 */
static inline vf v_expm1_negative(vf x)
{
    reduced_exp e = v_reduce_exp(v_max(v_set(-40.0f), x), 1.0f);
    return v_fma(e.scale, e.excess, e.scale - 1.0f);
}

static inline vf v_elu(vf x, float alpha) { return v_select(v_less(x, v_set(0.0f)), alpha * v_expm1_negative(v_min(v_set(0.0f), x)), x); }

/* Near 0 an odd polynomial, beyond 1 the form 1 - e^-Q(|x|). */
static inline vf v_erf(vf x)
{
    vf a = v_min(v_set(4.0f), v_abs(x)), t = a * a;
    vf p = v_fma(v_set(0x1.4ae14ep-14f), t, v_set(-0x1.a484b8p-11f));
    p = v_fma(p, t, v_set(0x1.5419cep-8f));
    p = v_fma(p, t, v_set(-0x1.b7fbb0p-6f));
    p = v_fma(p, t, v_set(0x1.ce2d20p-4f));
    p = v_fma(p, t, v_set(-0x1.81273ep-2f));
    p = a * v_fma(p, t, v_set(0x1.20dd74p+0f));
    vf q = v_fma(v_set(0x1.6bd814p-16f), a, v_set(-0x1.cec624p-12f));
    q = v_fma(q, a, v_set(0x1.138cc6p-8f));
    q = v_fma(q, a, v_set(-0x1.9d030ap-6f));
    q = v_fma(q, a, v_set(0x1.bc1518p-4f));
    q = v_fma(q, a, v_set(0x1.443566p-1f));
    q = v_fma(q, a, v_set(0x1.212c0ep+0f));
    q = v_fma(q, a, v_set(-0x1.8a57d4p-13f));
    return v_copy_sign(v_select(v_less(a, v_set(1.0f)), p, -v_expm1_negative(-q)), x);
}

static inline vf v_gelu_tanh(vf x)
{
    vf cube = x * x * x;
    return 0.5f * x * (v_tanh(0x1.988454p-1f * v_fma(v_set(0.044715f), cube, x)) + 1.0f); /* sqrt(2 / pi) */
}

/* Not in a vector's operations: exact, or in double and rounded, hence alike everywhere. */
#define EACH_LANE(name, expression)      \
    static inline vf name(vf x)          \
    {                                    \
        for (int k = 0; k < VLEN; k++) { \
            const float lane = x[k];     \
            x[k] = (float)(expression);  \
        }                                \
        return x;                        \
    }
EACH_LANE(v_log, __builtin_log((double)lane))
EACH_LANE(v_floor, __builtin_floorf(lane))
EACH_LANE(v_ceil, __builtin_ceilf(lane))
EACH_LANE(v_round, __builtin_rintf(lane))

static inline vf v_sign(vf x)
{
    const vf zero = v_set(0.0f), one = v_set(1.0f);
    return v_select(v_less(zero, x), one, v_select(v_less(x, zero), -one, x)); /* NaN stays */
}

/* One switch for the cells and for whole arrays; the kind is the same for all elements, so the branch is free.
 * Not inlined: the cells' common activations have their own path, and forty copies of all this would not fit a cache. */
static __attribute__((noinline)) vf v_activate(frnn_activation activation, vf x)
{
    const float alpha = activation.alpha, beta = activation.beta;
    const vf zero = v_set(0.0f);
    switch (activation.kind) {
    case FRNN_SIGMOID: return v_sigmoid(x);
    case FRNN_TANH: return v_tanh(x);
    case FRNN_RELU: return v_relu(x);
    case FRNN_HARD_SIGMOID: return v_clip(v_fma(v_set(alpha), x, v_set(beta)), 0.0f, 1.0f);
    case FRNN_AFFINE: return v_fma(v_set(alpha), x, v_set(beta));
    case FRNN_LEAKY_RELU: return v_select(v_less(x, zero), alpha * x, x);
    case FRNN_THRESHOLDED_RELU: return v_select(v_less(v_set(alpha), x), x, v_select(v_less(x, v_set(__builtin_inff())), zero, x));
    case FRNN_SCALED_TANH: return alpha * v_tanh(beta * x);
    case FRNN_ELU: return v_elu(x, alpha);
    case FRNN_SOFTSIGN: return x / (v_abs(x) + 1.0f);
    case FRNN_SOFTPLUS: return v_softplus(x);
    case FRNN_EXP: return v_exp(x);
    case FRNN_SELU: return beta * v_elu(x, alpha);
    case FRNN_SILU: return x * v_sigmoid(x);
    case FRNN_GELU: return 0.5f * x * (v_erf(0x1.6a09e6p-1f * x) + 1.0f);
    case FRNN_GELU_TANH: return v_gelu_tanh(x);
    case FRNN_MISH: return x * v_tanh(v_softplus(x));
    case FRNN_RELU6: return v_clip(x, 0.0f, 6.0f);
    case FRNN_HARD_TANH: return v_clip(x, alpha, beta);
    case FRNN_HARD_SWISH: return x * v_clip(v_fma(v_set(0x1.555556p-3f), x, v_set(0.5f)), 0.0f, 1.0f);
    case FRNN_LOG_SIGMOID: return -v_softplus(-x);
    case FRNN_CELU: return v_select(v_less(x, zero), alpha * v_expm1_negative(v_min(zero, x) / alpha), x);
    case FRNN_ABS: return v_abs(x);
    case FRNN_NEG: return -x;
    case FRNN_SIGN: return v_sign(x);
    case FRNN_SQUARE: return x * x;
    case FRNN_SQRT: return v_sqrt(x);
    case FRNN_RECIPROCAL: return 1.0f / x;
    case FRNN_LOG: return v_log(x);
    case FRNN_ERF: return v_erf(x);
    case FRNN_FLOOR: return v_floor(x);
    case FRNN_CEIL: return v_ceil(x);
    case FRNN_ROUND: return v_round(x);
    case FRNN_LINEAR: break;
    }
    return x;
}

static void activate(frnn_activation activation, size_t n, const float *x, float *y)
{
    size_t k = 0;
    for (; k + VLEN <= n; k += VLEN) v_store(y + k, v_activate(activation, v_load(x + k)));
    if (k < n) v_store_first(y + k, v_activate(activation, v_load_first(x + k, n - k)), n - k);
}
