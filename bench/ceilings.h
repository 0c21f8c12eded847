/* ceilings.h: what one core can do at best: multiply and add in registers, and read memory, on one instruction set. */
#ifndef BENCH_CEILINGS_H
#define BENCH_CEILINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    const char *isa;
    bool (*supported)(void);
    double (*fma_peak)(void); /* GFLOP/s in float32; without an FMA instruction a multiplication and an addition */
    double (*read_rate)(const char *memory, size_t bytes); /* GB/s, one pass after another; memory aligned to 64 bytes */
} ceiling;

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { PEAK_TURNS = 200000, READ_BYTES = 1 << 26, READ_BLOCK = 512 };

#define UNROLL _Pragma("GCC unroll 32")

/* As many chains as registers allow, so that their latency hides behind each other.  Volatile loads, so that nothing
 * but them has to keep up. */
#define CEILING(name, target, lanes, chains, MULTIPLY_ADD)                                                        \
    typedef float name##_vec __attribute__((vector_size(4 * (lanes))));                                           \
    target static double name##_fma_peak(void)                                                                    \
    {                                                                                                             \
        const name##_vec zero = {0}, x = zero + 0.7071f, y = zero - 0.3713f;                                      \
        name##_vec a[chains];                                                                                     \
        UNROLL for (int i = 0; i < (chains); i++) a[i] = zero + (float)i;                                         \
        const double start = now();                                                                               \
        for (long k = 0; k < PEAK_TURNS; k++) UNROLL for (int i = 0; i < (chains); i++) MULTIPLY_ADD(a[i], x, y); \
        const double took = now() - start;                                                                        \
        UNROLL for (int i = 1; i < (chains); i++) a[0] += a[i];                                                   \
        volatile float sink = a[0][0];                                                                            \
        (void)sink;                                                                                               \
        return 2.0 * (lanes) * (chains) * PEAK_TURNS / took / 1e9;                                                \
    }                                                                                                             \
    target static double name##_read_rate(const char *memory, size_t bytes)                                       \
    {                                                                                                             \
        bytes = (bytes + READ_BLOCK - 1) / READ_BLOCK * READ_BLOCK;                                               \
        const size_t passes = READ_BYTES / bytes + 1;                                                             \
        const double start = now();                                                                               \
        for (size_t pass = 0; pass < passes; pass++)                                                              \
            for (const char *p = memory; p < memory + bytes; p += READ_BLOCK) {                                   \
                const volatile name##_vec *block = (const volatile name##_vec *)p;                                \
                UNROLL for (size_t k = 0; k < READ_BLOCK / sizeof *block; k++)(void) block[k];                    \
            }                                                                                                     \
        return (double)bytes * (double)passes / (now() - start) / 1e9;                                            \
    }

#define MULTIPLY_AND_ADD(a, x, y) (a) = (a) * (x) + (y)
#if defined(__aarch64__)
#define FMA_ASM(a, x, y) __asm__ volatile("fmla %0.4s, %1.4s, %2.4s" : "+w"(a) : "w"(x), "w"(y))
#else
#define FMA_ASM(a, x, y) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(a) : "v"(x), "v"(y))
#endif
#define FMA(a, x, y)                                                             \
    do {                                                                         \
        __auto_type sum = (a); /* an element of an array would stay in memory */ \
        FMA_ASM(sum, x, y);                                                      \
        (a) = sum;                                                               \
    } while (0)

static bool ceiling_always(void) { return true; }
CEILING(generic, , 4, 12, MULTIPLY_AND_ADD)
#if defined(__x86_64__)
static bool ceiling_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool ceiling_avx512(void) { return __builtin_cpu_supports("avx512f"); }
CEILING(avx2, __attribute__((target("avx2,fma"))), 8, 12, FMA)
CEILING(avx512, __attribute__((target("avx512f"))), 16, 24, FMA)
#elif defined(__aarch64__)
CEILING(neon, , 4, 24, FMA)
#endif

/* The best first, as in src_c/isa.c. */
static const ceiling ceilings[] = {
#if defined(__x86_64__)
    {"avx512", ceiling_avx512, avx512_fma_peak, avx512_read_rate},
    {"avx2", ceiling_avx2, avx2_fma_peak, avx2_read_rate},
#elif defined(__aarch64__)
    {"neon", ceiling_always, neon_fma_peak, neon_read_rate},
#endif
    {"generic", ceiling_always, generic_fma_peak, generic_read_rate},
};
enum { CEILINGS = sizeof ceilings / sizeof *ceilings };

/* Of an instruction set, or the best one for NULL; NULL where the machine does not have it. */
static inline const ceiling *ceiling_of(const char *isa)
{
    for (size_t k = 0; k < CEILINGS; k++)
        if ((!isa || strcmp(isa, ceilings[k].isa) == 0) && ceilings[k].supported()) return &ceilings[k];
    return NULL;
}

/* Memory to read: written once, so that every page is there. */
static inline char *ceiling_memory(size_t bytes)
{
    bytes = (bytes / READ_BLOCK + 1) * READ_BLOCK;
    char *memory = aligned_alloc(64, bytes);
    if (memory) memset(memory, 1, bytes);
    return memory;
}

#endif
