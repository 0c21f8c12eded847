/* float_mode.h: the floating-point mode of a call: round to nearest, denormals flushed.
 *
 * The gates of a network at rest produce denormals, which cost a hundred cycles each.  The mode is the thread's
 * own, so every thread of a call sets it at its beginning and puts the caller's back at its end. */
#ifndef FRNN_FLOAT_MODE_H
#define FRNN_FLOAT_MODE_H

#if defined(__x86_64__)
#include <immintrin.h>

typedef unsigned frnn_float_mode;

static inline frnn_float_mode frnn_float_mode_set(void)
{
    frnn_float_mode saved = _mm_getcsr();
    _mm_setcsr(0x1f80 | _MM_FLUSH_ZERO_ON | 0x0040); /* all exceptions masked, to nearest, FTZ, DAZ */
    return saved;
}

static inline void frnn_float_mode_restore(frnn_float_mode saved) { _mm_setcsr(saved); }

#elif defined(__aarch64__)

typedef unsigned long frnn_float_mode;

static inline frnn_float_mode frnn_float_mode_set(void)
{
    frnn_float_mode saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"(1ul << 24)); /* FZ, to nearest */
    return saved;
}

static inline void frnn_float_mode_restore(frnn_float_mode saved) { __asm__ volatile("msr fpcr, %0" : : "r"(saved)); }

#else

typedef int frnn_float_mode;
static inline frnn_float_mode frnn_float_mode_set(void) { return 0; }
static inline void frnn_float_mode_restore(frnn_float_mode saved) { (void)saved; }

#endif
#endif
