/* elements_body.h: operators of two arrays, and reductions of rows. */

static inline float lane_pow(float a, float b) { return (float)__builtin_pow(a, b); } /* in double: rounds alike everywhere */

static inline vf v_pow(vf a, vf b)
{
    for (int k = 0; k < VLEN; k++) a[k] = lane_pow(a[k], b[k]);
    return a;
}

/* NaN wins, whichever side it is on. */
static inline vf v_larger(vf a, vf b) { return v_select(v_less(b, a), a, v_select(v_same(a, a), b, a)); }
static inline vf v_smaller(vf a, vf b) { return v_select(v_less(a, b), a, v_select(v_same(a, a), b, a)); }

/* The next VLEN elements, `stride` apart, or as many as are `valid`. */
static inline vf load_strided(const float *p, ptrdiff_t stride, size_t valid)
{
    if (stride == 0) return v_set(*p);
    if (stride == 1) return load_valid(p, valid);
    vf x = {0};
    for (size_t k = 0; k < valid; k++) x[k] = p[(ptrdiff_t)k * stride];
    return x;
}

static inline void store_strided(float *p, ptrdiff_t stride, vf y, size_t valid)
{
    if (stride == 1)
        store_valid(p, y, valid);
    else
        for (size_t k = 0; k < valid; k++) p[(ptrdiff_t)k * stride] = y[k];
}

#define FOR_PAIRS(operation)                                                      \
    for (size_t at = 0; at < n; at += VLEN) {                                     \
        const size_t valid = n - at < VLEN ? n - at : VLEN;                       \
        const vf p = load_strided(a + (ptrdiff_t)at * a_stride, a_stride, valid); \
        const vf q = load_strided(b + (ptrdiff_t)at * b_stride, b_stride, valid); \
        store_strided(y + (ptrdiff_t)at * y_stride, y_stride, operation, valid);  \
    }                                                                             \
    break

static void binary(frnn_binary_kind kind, size_t n, const float *a, ptrdiff_t a_stride, const float *b, ptrdiff_t b_stride, float *y,
                   ptrdiff_t y_stride)
{
    switch (kind) {
    case FRNN_BINARY_ADD: FOR_PAIRS(p + q);
    case FRNN_BINARY_SUB: FOR_PAIRS(p - q);
    case FRNN_BINARY_MUL: FOR_PAIRS(p * q);
    case FRNN_BINARY_DIV: FOR_PAIRS(p / q);
    case FRNN_BINARY_POW: FOR_PAIRS(v_pow(p, q));
    case FRNN_BINARY_MIN: FOR_PAIRS(v_smaller(p, q));
    case FRNN_BINARY_MAX: FOR_PAIRS(v_larger(p, q));
    case FRNN_BINARY_PRELU: FOR_PAIRS(v_select(v_less(p, v_set(0.0f)), p * q, p));
    }
}

static inline float tree_product(lanes s)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) s.lane[k] *= s.lane[k + half];
    return s.lane[0];
}

static float reduce_row(frnn_reduction reduction, size_t n, const float *x_row)
{
    lanes s = {{0}};
    switch (reduction) {
    case FRNN_REDUCE_MAX:
    case FRNN_REDUCE_MIN: {
        const float sign = reduction == FRNN_REDUCE_MAX ? 1.0f : -1.0f;
        for (int k = 0; k < LANES; k++) s.lane[k] = -__builtin_inff();
        for (size_t k = 0; k < n; k++) s.lane[k % LANES] = larger(sign * x_row[k], s.lane[k % LANES]);
        return sign * tree_max(s);
    }
    case FRNN_REDUCE_PROD:
        for (int k = 0; k < LANES; k++) s.lane[k] = 1.0f;
        for (size_t k = 0; k < n; k++) s.lane[k % LANES] *= x_row[k];
        return tree_product(s);
    case FRNN_REDUCE_L1: FOR_ROW(n, x_row, s, a += v_abs(x)) break;
    case FRNN_REDUCE_SUM_SQUARE: FOR_ROW(n, x_row, s, a = v_fma(x, x, a)) break;
    case FRNN_REDUCE_SUM:
    case FRNN_REDUCE_MEAN: FOR_ROW(n, x_row, s, a += x) break;
    }
    return reduction == FRNN_REDUCE_MEAN ? tree_sum(s) / (float)n : tree_sum(s);
}

static void reduce(frnn_reduction reduction, size_t rows, size_t n, const float *x, float *y)
{
    for (size_t row = 0; row < rows; row++) y[row] = reduce_row(reduction, n, x + row * n);
}
