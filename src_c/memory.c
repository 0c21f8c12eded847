/* memory.c: aligned memory and the scratch that each thread keeps. */
#include "memory.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fastrnn.h"

enum { HUGE_PAGE = 2 << 20 };

static size_t round_up(size_t bytes) { return (bytes + FRNN_ALIGN - 1) / FRNN_ALIGN * FRNN_ALIGN; }

void *frnn_aligned_zeros(size_t a, size_t b, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(a, b, &bytes) || __builtin_mul_overflow(bytes, size, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    bytes = bytes ? round_up(bytes) : FRNN_ALIGN;
    const size_t whole = bytes / HUGE_PAGE * HUGE_PAGE;
    void *memory = aligned_alloc(whole ? HUGE_PAGE : FRNN_ALIGN, whole ? (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE : bytes);
#ifdef MADV_HUGEPAGE
    /* Megabytes in small pages miss the processor's table of pages and lie scattered over the sets of its caches.  A wish,
     * not a need. */
    if (memory && whole) (void)!madvise(memory, whole, MADV_HUGEPAGE);
#endif
    if (memory) memset(memory, 0, bytes);
    return memory;
}

void frnn_aligned_free(void *memory) { free(memory); }

void *frnn_arena_take(frnn_arena *arena, size_t bytes)
{
    void *taken = arena->block ? arena->block + arena->used : NULL;
    arena->used += round_up(bytes);
    return taken;
}

/* A thread's scratch lives as long as the thread: a pthread key frees it, the _Thread_local copy finds it fast. */
typedef struct {
    void *memory;
    size_t bytes;
} scratch_block;

static _Thread_local scratch_block *thread_scratch;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_free(void *block)
{
    scratch_block *scratch = block;
    frnn_aligned_free(scratch->memory);
    free(scratch);
    thread_scratch = NULL;
}

static void scratch_make_key(void) { pthread_key_create(&scratch_key, scratch_free); }

void *frnn_scratch_set_aside(void)
{
    scratch_block *aside = thread_scratch;
    thread_scratch = NULL;
    pthread_setspecific(scratch_key, NULL);
    return aside;
}

void frnn_scratch_put_back(void *aside)
{
    if (thread_scratch) scratch_free(thread_scratch);
    thread_scratch = aside;
    pthread_setspecific(scratch_key, aside);
}

void *frnn_scratch(size_t bytes)
{
    scratch_block *scratch = thread_scratch;
    if (!scratch) {
        pthread_once(&scratch_once, scratch_make_key);
        scratch = calloc(1, sizeof *scratch);
        if (!scratch || pthread_setspecific(scratch_key, scratch)) {
            free(scratch);
            return NULL;
        }
        thread_scratch = scratch;
    }
    if (scratch->bytes < bytes) {
        frnn_aligned_free(scratch->memory);
        scratch->bytes = 0;
        scratch->memory = aligned_alloc(FRNN_ALIGN, round_up(bytes));
        if (!scratch->memory) return NULL;
        scratch->bytes = round_up(bytes);
    }
    return scratch->memory;
}
