/* ceilings.c: the FMA peak of every instruction set of this machine, and how fast one core reads blocks of memory.
 *
 *     ceilings [BYTES...]      prints  fma ISA GFLOP/s  and  read BYTES GB/s , each the best of some rounds */
#include <stdio.h>

#include "ceilings.h"

enum { ROUNDS = 7 };

static double greater(double a, double b) { return a > b ? a : b; }

int main(int argc, char **argv)
{
    for (size_t k = 0; k < CEILINGS; k++) {
        if (!ceilings[k].supported()) continue;
        double best = 0;
        for (int round = 0; round < ROUNDS; round++) best = greater(best, ceilings[k].fma_peak());
        printf("fma %s %.2f\n", ceilings[k].isa, best);
    }
    for (int k = 1; k < argc; k++) {
        const size_t bytes = strtoull(argv[k], NULL, 10);
        char *memory = ceiling_memory(bytes);
        if (!memory) return fprintf(stderr, "no memory for %zu bytes\n", bytes), 1;
        double best = 0;
        for (int round = 0; round < ROUNDS; round++) best = greater(best, ceiling_of(NULL)->read_rate(memory, bytes));
        printf("read %zu %.2f\n", bytes, best);
        free(memory);
    }
    return 0;
}
