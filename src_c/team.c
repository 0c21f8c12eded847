/* team.c: who has the team, which backend runs it, what fork leaves behind. */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "fastrnn.h"

extern const frnn_team_backend_ops frnn_team_posix;
#ifdef _OPENMP
extern const frnn_team_backend_ops frnn_team_openmp;
#endif

static const frnn_team_backend_ops *const backends[] = {
    &frnn_team_posix,
#ifdef _OPENMP
    &frnn_team_openmp,
#endif
};
enum { BACKENDS = sizeof backends / sizeof *backends };

static const frnn_team_backend_ops *_Atomic selected;
static atomic_flag taken = ATOMIC_FLAG_INIT;
static const frnn_team_backend_ops *in_use; /* by who took the team: a choice made during a call is for the next one */
static atomic_bool crowded;                 /* more members than cores */

static const frnn_team_backend_ops *backend(void)
{
    const frnn_team_backend_ops *chosen = atomic_load(&selected);
    return chosen ? chosen : backends[0];
}

/* The team of the parent may have been in use at the moment of the fork; nobody of it is left here. */
static void after_fork_in_child(void)
{
    for (size_t k = 0; k < BACKENDS; k++) backends[k]->forked();
    atomic_flag_clear(&taken);
}

/* When loaded, not at the first use: OpenMP's threads may be another library's, and a fork may come before our first call. */
static __attribute__((constructor)) void register_fork_handler(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

size_t frnn_team_backend_count(void) { return BACKENDS; }

const char *frnn_team_backend_name(size_t k) { return backends[k]->name; }

const char *frnn_team_backend(void) { return backend()->name; }

bool frnn_set_team_backend(const char *name)
{
    for (size_t k = 0; k < BACKENDS; k++)
        if (strcmp(backends[k]->name, name) == 0) {
            atomic_store(&selected, backends[k]);
            return true;
        }
    return false;
}

static size_t cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 1;
}

size_t frnn_team_take(size_t wanted)
{
    if (wanted > FRNN_MAX_MEMBERS) wanted = FRNN_MAX_MEMBERS;
    if (wanted < 2 || atomic_flag_test_and_set(&taken)) return 1;
    in_use = backend();
    size_t members = in_use->prepare(wanted);
    atomic_store(&crowded, members > cores());
    if (members < 2) atomic_flag_clear(&taken);
    return members;
}

void frnn_team_run(size_t members, frnn_task task, void *arg)
{
    if (members < 2)
        task(arg, 0);
    else
        in_use->run(members, task, arg);
}

void frnn_team_release(size_t members)
{
    if (members >= 2) atomic_flag_clear(&taken);
}

void frnn_pause(unsigned turn)
{
    enum { TURNS_BEFORE_YIELD = 128 }; /* a few microseconds: who is waited for may need this very processor */
    if (turn >= TURNS_BEFORE_YIELD || (turn > 0 && atomic_load_explicit(&crowded, memory_order_relaxed)))
        sched_yield();
    else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
}

static void signal_in_round(const frnn_barrier *barrier, size_t member, size_t round)
{
    const size_t other = member + ((size_t)1 << round);
    frnn_barrier_slot *slot = &barrier->slots[other < barrier->members ? other : other - barrier->members];
    atomic_store_explicit(&slot->signals[round], barrier->slots[member].phase, memory_order_release);
}

void frnn_barrier_arrive(const frnn_barrier *barrier, size_t member)
{
    if (barrier->members < 2) return;
    barrier->slots[member].phase++;
    signal_in_round(barrier, member, 0);
}

void frnn_barrier_leave(const frnn_barrier *barrier, size_t member)
{
    const frnn_barrier_slot *own = &barrier->slots[member];
    for (size_t round = 0; (size_t)1 << round < barrier->members; round++) {
        if (round > 0) signal_in_round(barrier, member, round);
        /* The other may be one meeting ahead. */
        for (unsigned turn = 0; (int)(atomic_load_explicit(&own->signals[round], memory_order_acquire) - own->phase) < 0; turn++)
            frnn_pause(turn);
    }
}

void frnn_barrier_wait(const frnn_barrier *barrier, size_t member)
{
    frnn_barrier_arrive(barrier, member);
    frnn_barrier_leave(barrier, member);
}
