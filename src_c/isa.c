/* isa.c: all CPU detection.  __builtin_cpu_supports asks CPUID and XGETBV, so a feature counts only if the
 * operating system saves its registers. */
#include "kernels/kernels.h"

#include <stdatomic.h>
#include <string.h>

extern const frnn_kernels frnn_kernels_generic;
#if defined(__x86_64__)
extern const frnn_kernels frnn_kernels_avx2, frnn_kernels_avx512;
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && has_avx2();
}
#elif defined(__aarch64__)
extern const frnn_kernels frnn_kernels_neon;
#endif
static bool always(void) { return true; }

/* In order of preference. */
static const struct {
    const frnn_kernels *kernels;
    bool (*supported)(void);
} tables[] = {
#if defined(__x86_64__)
    {&frnn_kernels_avx512, has_avx512},
    {&frnn_kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {&frnn_kernels_neon, always},
#endif
    {&frnn_kernels_generic, always},
};
enum { TABLES = sizeof tables / sizeof *tables };

static const frnn_kernels *_Atomic selected;

/* The k-th supported table, NULL beyond the last. */
static const frnn_kernels *supported_table(size_t k)
{
    for (size_t t = 0; t < TABLES; t++)
        if (tables[t].supported() && k-- == 0) return tables[t].kernels;
    return NULL;
}

const frnn_kernels *frnn_kernels_selected(void)
{
    const frnn_kernels *kernels = atomic_load(&selected);
    return kernels ? kernels : supported_table(0);
}

size_t frnn_isa_count(void)
{
    size_t n = 0;
    while (supported_table(n)) n++;
    return n;
}

const char *frnn_isa_name(size_t k) { return supported_table(k)->isa; }

const char *frnn_isa(void) { return frnn_kernels_selected()->isa; }

frnn_status frnn_set_isa(const char *name)
{
    for (size_t t = 0; t < TABLES; t++)
        if (strcmp(tables[t].kernels->isa, name) == 0) {
            if (!tables[t].supported()) return FRNN_ERR_UNSUPPORTED_ISA;
            atomic_store(&selected, tables[t].kernels);
            return FRNN_OK;
        }
    return FRNN_ERR_UNKNOWN_ISA;
}
