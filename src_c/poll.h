/* poll.h: a long call asks now and then whether it should go on. */
#ifndef FRNN_POLL_H
#define FRNN_POLL_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "float_mode.h"

typedef struct frnn_poll {
    bool (*ask)(void *arg); /* true: end the call; NULL: nobody to ask */
    void *arg;
    frnn_float_mode callers_mode; /* in which foreign code runs */
    int64_t asked_at;             /* 0: not yet */
} frnn_poll;

/* Whether the call should end.  Asked on the thread that makes the call, at most every 20 ms. */
static inline bool frnn_poll_stops(frnn_poll *poll)
{
    enum { INTERVAL_NS = 20000000 };
    if (!poll->ask) return false;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    const int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    if (now - poll->asked_at <= INTERVAL_NS) return false;
    const bool begun = poll->asked_at != 0;
    poll->asked_at = now;
    if (!begun) return false;
    frnn_float_mode_restore(poll->callers_mode);
    const bool stops = poll->ask(poll->arg);
    frnn_float_mode_set();
    return stops;
}

#endif
