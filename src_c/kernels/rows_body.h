/* rows_body.h: functions of whole rows.
 *
 * Reductions run in 16 virtual lanes, LANES / VLEN vectors, and end in one fixed tree: the same bits on every ISA. */

enum { LANES = 16, LANE_VECTORS = LANES / VLEN };

typedef struct {
    float lane[LANES];
} lanes;

static inline float tree_sum(lanes s)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) s.lane[k] += s.lane[k + half];
    return s.lane[0];
}

/* NaN wins, wherever it stands. */
static inline float larger(float a, float b) { return a > b || a != a ? a : b; }

static inline float tree_max(lanes s)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) s.lane[k] = larger(s.lane[k], s.lane[k + half]);
    return s.lane[0];
}

/* Run `body` for each vector of a row: x holds its elements (zeros beyond n), a is its accumulator. */
#define FOR_ROW(n, source, accumulators, body)                                                 \
    for (size_t base = 0; base < (n); base += LANES)                                           \
        for (size_t j = 0; j < LANE_VECTORS && base + j * VLEN < (n); j++) {                   \
            size_t at = base + j * VLEN, valid = (n) - at < VLEN ? (n) - at : VLEN;            \
            vf x = valid == VLEN ? v_load((source) + at) : v_load_first((source) + at, valid); \
            vf a = v_load((accumulators).lane + j * VLEN);                                     \
            body;                                                                              \
            v_store((accumulators).lane + j * VLEN, a);                                        \
        }

static inline void store_valid(float *p, vf y, size_t valid)
{
    if (valid == VLEN)
        v_store(p, y);
    else
        v_store_first(p, y, valid);
}

static inline vf load_valid(const float *p, size_t valid) { return valid == VLEN ? v_load(p) : v_load_first(p, valid); }

/* Zero in the lanes that are beyond the row. */
static inline vf keep_valid(vf x, size_t valid)
{
    vf kept = {0};
    if (valid == VLEN) return x;
    memcpy(&kept, &x, valid * sizeof(float));
    return kept;
}

static void softmax(size_t rows, size_t n, const float *x_rows, float *y_rows, int logarithm)
{
    for (size_t row = 0; row < rows; row++, x_rows += n, y_rows += n) {
        lanes high, sum = {{0}};
        for (int k = 0; k < LANES; k++) high.lane[k] = -__builtin_inff();
        for (size_t k = 0; k < n; k++) high.lane[k % LANES] = larger(x_rows[k], high.lane[k % LANES]);
        vf top = v_set(tree_max(high));
        FOR_ROW(n, x_rows, sum, {
            vf e = v_exp(x - top);
            a += keep_valid(e, valid);
            store_valid(y_rows + at, logarithm ? x - top : e, valid);
        })
        float total = tree_sum(sum);
        if (logarithm) total = (float)__builtin_log(total); /* in double: rounds alike everywhere */
        FOR_ROW(n, y_rows, sum, store_valid(y_rows + at, logarithm ? x - total : x / total, valid))
    }
}

static void layer_norm(size_t rows, size_t n, const float *x_rows, const float *weight, const float *bias, float eps, float *y_rows)
{
    for (size_t row = 0; row < rows; row++, x_rows += n, y_rows += n) {
        lanes sum = {{0}}, squares = {{0}};
        FOR_ROW(n, x_rows, sum, a += x)
        vf mean = v_set(tree_sum(sum) / (float)n);
        FOR_ROW(n, x_rows, squares, {
            vf d = keep_valid(x - mean, valid);
            a = v_fma(d, d, a);
        })
        vf scale = 1.0f / v_sqrt(v_set(tree_sum(squares) / (float)n + eps));
        FOR_ROW(n, x_rows, sum, {
            vf y = (x - mean) * scale;
            if (weight) y = y * load_valid(weight + at, valid);
            if (bias) y = y + load_valid(bias + at, valid);
            store_valid(y_rows + at, y, valid);
        })
    }
}

static void scale_shift(size_t rows, size_t n, const float *x_rows, const float *scale, const float *shift, float *y_rows)
{
    for (size_t row = 0; row < rows; row++, x_rows += n, y_rows += n)
        for (size_t at = 0; at < n; at += VLEN) {
            size_t valid = n - at < VLEN ? n - at : VLEN;
            store_valid(y_rows + at, v_fma(load_valid(x_rows + at, valid), load_valid(scale + at, valid), load_valid(shift + at, valid)),
                        valid);
        }
}
