/* product_body.h: register tiles of a W^T over packed panels, in the fixed order of sums (kernels.h).
 *
 * A tile is `panels` x `rows` x `nv` vectors of totals.  The three sizes are constants after inlining, so all
 * accumulators are registers: 24 of 32 (AVX-512, NEON) or 12 of 16 leave room for the weights and a broadcast.
 * One row alone takes two panels at once, as eight chains are needed to hide the latency of an FMA. */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL_FOR _Pragma("GCC unroll 32") for

#if defined(__AVX512F__) || defined(__aarch64__)
enum { REGISTERS = 32 };
#define MAX_ROWS(nv) ((nv) == 4 ? 6 : 8)
#else
enum { REGISTERS = 16 };
#define MAX_ROWS(nv) ((nv) == 4 ? 3 : (nv) == 3 ? 4 : (nv) == 2 ? 6 : 8)
#endif

enum { MAX_TILE_ROWS = 8, MAX_TOTALS = 32 };

/* Memory that the tiles of one panel fetch into L2 for the next: `step` bytes for every k. */
typedef struct {
    const char *at;
    size_t step;
} ahead;

typedef void (*tile_fn)(const void *args, size_t row, size_t panel, ahead next);

/* The tiles of one kernel for one panel width. */
typedef struct {
    size_t max_rows;
    tile_fn rows[MAX_TILE_ROWS + 1]; /* by number of rows */
    tile_fn pair;                    /* one row, two neighbouring panels */
} tile_set;

/* total[(panel * rows + row) * nv + j] += a[row] . w[panel][j]; w_next is the distance between two panels. */
INLINE void accumulate(const int panels, const int rows, const int nv, const float *a, size_t a_stride, const float *w, size_t w_next,
                       size_t k, ahead next, vf *total)
{
    const char *fetch = next.at;
    for (size_t left = k; left > 0;) {
        size_t block = left < FRNN_SUM_BLOCK ? left : FRNN_SUM_BLOCK;
        vf part[MAX_TOTALS];
        /* Totals of large tiles must wait in memory: the registers are for the parts. */
        if (panels * rows * nv > REGISTERS / 3) __asm__ volatile("" : : "r"(total) : "memory");
        UNROLL_FOR (int j = 0; j < panels * rows * nv; j++) part[j] = (vf){0};
        for (size_t kk = 0; kk < block; kk++) {
            if (rows > 1) {
                __builtin_prefetch(fetch, 0, 2);
                __builtin_prefetch(fetch + 64, 0, 2);
                fetch += next.step;
            }
            /* The shorter side waits in registers, the longer one comes one by one. */
            vf waiting[MAX_TILE_ROWS];
            UNROLL_FOR (int q = 0; q < panels; q++) {
                const float *weights = w + (size_t)q * w_next;
                if (nv < rows) {
                    UNROLL_FOR (int j = 0; j < nv; j++) waiting[j] = v_load(weights + (size_t)j * VLEN);
                    UNROLL_FOR (int r = 0; r < rows; r++) {
                        vf value = v_set(a[(size_t)r * a_stride + kk]);
                        UNROLL_FOR (int j = 0; j < nv; j++)
                            part[(q * rows + r) * nv + j] = v_fma(waiting[j], value, part[(q * rows + r) * nv + j]);
                    }
                } else {
                    UNROLL_FOR (int r = 0; r < rows; r++) waiting[r] = v_set(a[(size_t)r * a_stride + kk]);
                    UNROLL_FOR (int j = 0; j < nv; j++) {
                        vf weight = v_load(weights + (size_t)j * VLEN);
                        UNROLL_FOR (int r = 0; r < rows; r++)
                            part[(q * rows + r) * nv + j] = v_fma(weight, waiting[r], part[(q * rows + r) * nv + j]);
                    }
                }
            }
            w += (size_t)nv * VLEN;
        }
        UNROLL_FOR (int j = 0; j < panels * rows * nv; j++) total[j] += part[j];
        a += block;
        left -= block;
    }
}

/* Where panel p begins: all panels before it are full. */
static inline const float *panel_weights(const frnn_panels *panels, size_t p) { return panels->w + p * frnn_panel_row(panels) * panels->k; }

/* Walk over panels and rows; tiles of nearly equal height beat full tiles and a thin rest.
 *
 * sets[w - 1] serves panels of w vectors a gate.  Backwards, the first panels are those that the last walk left in
 * the cache.  Weights that no cache holds come from afar only once for all rows: while the tiles of one panel run,
 * they fetch the next. */
static void run_tiles(const void *args, const frnn_panels *matrix, size_t rows, size_t panel_begin, size_t panel_end, bool backwards,
                      const tile_set *sets)
{
    const size_t count = panel_end - panel_begin;
    const ptrdiff_t next_panel = (ptrdiff_t)(frnn_panel_row(matrix) * matrix->k * sizeof(float));
    for (size_t done = 0; done < count; done++) {
        const size_t p = backwards ? panel_end - 1 - done : panel_begin + done;
        const tile_set *set = &sets[frnn_panel_width(matrix, p) - 1];
        const char *weights = (const char *)panel_weights(matrix, p);
        if (rows == 1 && done + 1 < count) {
            const size_t lower = backwards ? p - 1 : p;
            if (frnn_panel_width(matrix, lower) == frnn_panel_width(matrix, lower + 1)) {
                set->pair(args, 0, lower, (ahead){weights, 0});
                done++;
                continue;
            }
        }
        const size_t tiles = (rows + set->max_rows - 1) / set->max_rows;
        const size_t step = done + 1 < count && tiles > 1 ? frnn_panel_row(matrix) * sizeof(float) / tiles : 0;
        const char *fetch = step ? weights + (backwards ? -next_panel : next_panel) : weights;
        for (size_t row = 0, left = tiles; left > 0; left--) {
            const size_t height = (rows - row + left - 1) / left;
            set->rows[height](args, row, p, (ahead){fetch, step});
            row += height;
            fetch += step * matrix->k;
        }
    }
}

/* One function for each number of rows, and the tile_set over them; nv vectors in a row of a panel. */
#define TILE_FN(name, nv, rows_, call)                                                 \
    static void name##_##rows_(const void *args, size_t row, size_t panel, ahead next) \
    {                                                                                  \
        const int rows = rows_, panels = 1;                                            \
        if (rows <= MAX_ROWS(nv)) call;                                                \
    }
#define TILE_PAIR_FN(name, call)                                                    \
    static void name##_pair(const void *args, size_t row, size_t panel, ahead next) \
    {                                                                               \
        const int rows = 1, panels = 2;                                             \
        call;                                                                       \
    }
#define TILES(name, nv, call)  \
    TILE_FN(name, nv, 1, call) \
    TILE_FN(name, nv, 2, call) \
    TILE_FN(name, nv, 3, call) \
    TILE_FN(name, nv, 4, call) \
    TILE_FN(name, nv, 5, call) \
    TILE_FN(name, nv, 6, call) \
    TILE_FN(name, nv, 7, call) \
    TILE_FN(name, nv, 8, call) \
    TILE_PAIR_FN(name, call)
#define TILE_SET(name, nv)                                                                             \
    {                                                                                                  \
        .max_rows = MAX_ROWS(nv), .pair = name##_pair,                                                 \
        .rows = {NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8} \
    }

/* The product by itself: totals start from the bias and are stored. */
INLINE void product_tile(const frnn_product_args *s, size_t row, size_t panel, ahead next, const int panels, const int rows, const int nv)
{
    const frnn_panels *matrix = s->panels;
    vf total[MAX_TOTALS];
    UNROLL_FOR (int q = 0; q < panels; q++)
        UNROLL_FOR (int j = 0; j < nv; j++) {
            vf start = v_load(matrix->bias + (panel + (size_t)q) * frnn_panel_row(matrix) + (size_t)j * VLEN);
            UNROLL_FOR (int r = 0; r < rows; r++) total[(q * rows + r) * nv + j] = start;
        }
    accumulate(panels, rows, nv, s->a + row * s->a_stride, s->a_stride, panel_weights(matrix, panel), frnn_panel_row(matrix) * matrix->k,
               matrix->k, next, total);
    UNROLL_FOR (int q = 0; q < panels; q++)
        UNROLL_FOR (int r = 0; r < rows; r++)
            UNROLL_FOR (int j = 0; j < nv; j++)
                v_store(s->out.at + (panel + (size_t)q) * s->out.panel_stride + (row + (size_t)r) * s->out.row_stride + (size_t)j * VLEN,
                        total[(q * rows + r) * nv + j]);
}

TILES(product_1, 1, product_tile(args, row, panel, next, panels, rows, 1))
TILES(product_2, 2, product_tile(args, row, panel, next, panels, rows, 2))
TILES(product_3, 3, product_tile(args, row, panel, next, panels, rows, 3))
TILES(product_4, 4, product_tile(args, row, panel, next, panels, rows, 4))

static void product(const frnn_product_args *s)
{
    static const tile_set sets[] = {TILE_SET(product_1, 1), TILE_SET(product_2, 2), TILE_SET(product_3, 3), TILE_SET(product_4, 4)};
    /* By vectors in all, not by width: step through sets in units of one width. */
    const frnn_panels *matrix = s->panels;
    size_t gates = matrix->gates, full = s->panel_end;
    if (full > s->panel_begin && frnn_panel_width(matrix, full - 1) < matrix->width) full--;
    run_tiles(s, matrix, s->rows, s->panel_begin, full, false, sets + gates * matrix->width - matrix->width);
    if (full < s->panel_end) {
        size_t width = frnn_panel_width(matrix, full);
        run_tiles(s, matrix, s->rows, full, s->panel_end, false, sets + gates * width - width);
    }
}
