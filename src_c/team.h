/* team.h: the threads of a call.
 *
 * One team a process.  Whoever takes it runs a task on several threads; whoever finds it taken runs alone, so
 * many callers never oversubscribe the machine.  Backends: POSIX threads (team_posix.c) and OpenMP (team_openmp.c). */
#ifndef FRNN_TEAM_H
#define FRNN_TEAM_H

#include <stdatomic.h>
#include <stddef.h>

enum { FRNN_MAX_MEMBERS = 128 };

typedef void (*frnn_task)(void *arg, size_t member);

/* What a backend does. */
typedef struct frnn_team_backend_ops {
    const char *name;
    /* Make ready for `wanted` members; how many there are, at least 1. */
    size_t (*prepare)(size_t wanted);
    /* task(arg, 0 .. members - 1), member 0 on the calling thread; returns when all have ended. */
    void (*run)(size_t members, frnn_task task, void *arg);
    /* In a child after fork: the threads are gone. */
    void (*forked)(void);
} frnn_team_backend_ops;

/* The number of members granted, 1 to wanted.  Above 1 the team is the caller's until frnn_team_release. */
size_t frnn_team_take(size_t wanted);
void frnn_team_run(size_t members, frnn_task task, void *arg);
void frnn_team_release(size_t members);

/* Members meet; all that was written before is seen after.  Dissemination (Hensgen, Finkel & Manber 1988): in round r
 * member m signals m + 2^r, so two members need one write and one read each, on cache lines of their own. */
enum { FRNN_BARRIER_ROUNDS = 7 };
_Static_assert(FRNN_MAX_MEMBERS <= 1 << FRNN_BARRIER_ROUNDS, "every member hears of every other");

typedef struct frnn_barrier_slot {
    _Alignas(64) _Atomic unsigned signals[FRNN_BARRIER_ROUNDS];
    unsigned phase;
} frnn_barrier_slot;

typedef struct frnn_barrier {
    size_t members;
    frnn_barrier_slot *slots; /* one a member, zeroed */
} frnn_barrier;

void frnn_barrier_wait(const frnn_barrier *barrier, size_t member);

/* The two halves of a meeting: what a member does between them, nobody waits for. */
void frnn_barrier_arrive(const frnn_barrier *barrier, size_t member);
void frnn_barrier_leave(const frnn_barrier *barrier, size_t member);

/* One turn of a waiting loop; yields the core once waiting is long, or from the start where members outnumber cores. */
void frnn_pause(unsigned turn);

#endif
