/* memory.h: aligned memory, and cutting one block into arrays. */
#ifndef FRNN_MEMORY_H
#define FRNN_MEMORY_H

#include <stddef.h>

enum { FRNN_ALIGN = 64 };

/* NULL on overflow of a * b * size and when out of memory; memory is zeroed.  Free with frnn_aligned_free. */
void *frnn_aligned_zeros(size_t a, size_t b, size_t size);
void frnn_aligned_free(void *memory); /* accepts NULL */

/* Cuts arrays off a block; with a NULL block it only measures. */
typedef struct frnn_arena {
    char *block;
    size_t used;
} frnn_arena;

void *frnn_arena_take(frnn_arena *arena, size_t bytes);

#endif
