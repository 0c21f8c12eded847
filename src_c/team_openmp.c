/* team_openmp.c: the team on OpenMP, one parallel region a call.
 *
 * libgomp keeps its threads per calling thread and does not know about fork: a region on a thread that had one
 * before the fork waits for threads that are gone.  A thread born after the fork gets new ones, so in a child the
 * region runs on such a thread. */
#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>

#include "team.h"

static atomic_bool is_child;

typedef struct {
    size_t members;
    frnn_task task;
    void *arg;
} region;

static void *run_region(void *packed)
{
    const region *r = packed;
#pragma omp parallel num_threads((int)r->members)
    r->task(r->arg, (size_t)omp_get_thread_num());
    return NULL;
}

/* Only where the region is certain to get all its threads: they meet at barriers. */
static size_t prepare(size_t wanted)
{
    if (omp_in_parallel() || omp_get_dynamic() || omp_get_max_active_levels() < 1 || wanted > (size_t)omp_get_thread_limit()) return 1;
    return wanted;
}

static void run(size_t members, frnn_task task, void *arg)
{
    region r = {members, task, arg};
    pthread_t helper;
    if (atomic_load(&is_child) && pthread_create(&helper, NULL, run_region, &r) == 0)
        pthread_join(helper, NULL);
    else
        run_region(&r);
}

static void forked(void) { atomic_store(&is_child, 1); }

const frnn_team_backend_ops frnn_team_openmp = {.name = "openmp", .prepare = prepare, .run = run, .forked = forked};
#else
typedef int frnn_no_openmp; /* an empty file is not ISO C */
#endif
