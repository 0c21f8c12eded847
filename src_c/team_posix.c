/* team_posix.c: the team on POSIX threads.
 *
 * Workers start at the first use and live as long as the process.  Between calls they spin for SPIN_NS, then sleep.
 * A job is announced in one word, a counter and the number of members, so that a worker always sees both together. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>

#include "team.h"

enum { SPIN_NS = 50000, MEMBER_BITS = 8, STACK_BYTES = 1 << 20 };
_Static_assert(FRNN_MAX_MEMBERS < 1 << MEMBER_BITS, "the number of members fits its bits");

static struct {
    _Atomic uint32_t job; /* counter << MEMBER_BITS | members */
    _Atomic uint32_t pending, sleepers;
    frnn_task task;
    void *arg;
    int callers_cpu;
    size_t workers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} team = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The next job after `seen`. */
static uint32_t wait_for_job(uint32_t seen)
{
    enum { TURNS_PER_CLOCK = 64 };
    int64_t end = now_ns() + SPIN_NS;
    for (unsigned turn = 1;; turn++) {
        uint32_t job = atomic_load_explicit(&team.job, memory_order_acquire);
        if (job != seen) return job;
        if (turn % TURNS_PER_CLOCK == 0 && now_ns() > end) break;
        frnn_pause(0);
    }
    pthread_mutex_lock(&team.mutex);
    atomic_fetch_add(&team.sleepers, 1);
    uint32_t job;
    while ((job = atomic_load(&team.job)) == seen) pthread_cond_wait(&team.wake, &team.mutex);
    atomic_fetch_sub(&team.sleepers, 1);
    pthread_mutex_unlock(&team.mutex);
    return job;
}

/* The scheduler likes to wake a thread where its waker runs, and takes milliseconds to part them again.  A worker
 * that finds itself there moves to another processor that it may use, and may afterwards run anywhere as before. */
static void leave_cpu(int cpu)
{
    cpu_set_t allowed, others;
    if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR((size_t)cpu, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
}

static void *work(void *packed)
{
    size_t member = (uintptr_t)packed & ((1 << MEMBER_BITS) - 1);
    uint32_t seen = (uint32_t)((uintptr_t)packed >> MEMBER_BITS);
    for (;;) {
        seen = wait_for_job(seen);
        if (member >= (seen & ((1 << MEMBER_BITS) - 1))) continue;
        leave_cpu(team.callers_cpu);
        team.task(team.arg, member);
        atomic_fetch_sub_explicit(&team.pending, 1, memory_order_release);
    }
    return NULL;
}

/* Signals are for the threads of the program. */
static int start_worker(size_t member)
{
    sigset_t all, saved;
    pthread_attr_t attr;
    pthread_t thread;
    uintptr_t packed = ((uintptr_t)atomic_load(&team.job) << MEMBER_BITS) | member;
    if (pthread_attr_init(&attr)) return 0;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    int failed = pthread_create(&thread, &attr, work, (void *)packed);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attr);
    return !failed;
}

static size_t prepare(size_t wanted)
{
    while (team.workers + 1 < wanted && start_worker(team.workers + 1)) team.workers++;
    return team.workers + 1 < wanted ? team.workers + 1 : wanted;
}

static void run(size_t members, frnn_task task, void *arg)
{
    team.task = task;
    team.arg = arg;
    team.callers_cpu = sched_getcpu();
    atomic_store_explicit(&team.pending, (uint32_t)members - 1, memory_order_relaxed);
    uint32_t counter = (atomic_load_explicit(&team.job, memory_order_relaxed) >> MEMBER_BITS) + 1;
    atomic_store(&team.job, counter << MEMBER_BITS | (uint32_t)members);
    if (atomic_load(&team.sleepers) > 0) {
        pthread_mutex_lock(&team.mutex);
        pthread_cond_broadcast(&team.wake);
        pthread_mutex_unlock(&team.mutex);
    }
    task(arg, 0);
    for (unsigned turn = 0; atomic_load_explicit(&team.pending, memory_order_acquire) > 0; turn++) frnn_pause(turn);
}

static void forked(void)
{
    pthread_mutex_init(&team.mutex, NULL);
    pthread_cond_init(&team.wake, NULL);
    atomic_store(&team.pending, 0);
    atomic_store(&team.sleepers, 0);
    team.workers = 0;
}

const frnn_team_backend_ops frnn_team_posix = {.name = "posix", .prepare = prepare, .run = run, .forked = forked};
