/* recurrent.h: what the driver of recurrent layers (recurrent.c, time_loop.c) and the cells (lstm.c, gru.c, rnn.c) share. */
#ifndef FRNN_RECURRENT_H
#define FRNN_RECURRENT_H

#include "kernels/kernels.h"
#include "memory.h"
#include "pack.h"
#include "team.h"

/* One layer in one direction, packed. */
typedef struct frnn_direction {
    frnn_cell cell;
    frnn_panels input, hidden;                     /* the gates that one product gives */
    frnn_panels candidate_input, candidate_hidden; /* reset-before GRU: n, which waits for r; else empty */
    frnn_panels projection;                        /* LSTM; else empty */
    float proj_clip;
    float *peephole;
} frnn_direction;

/* One time step of one direction as a member of a group sees it.  Rows of h and h_next are h_stride apart, those
 * of c, work and z `stride`. */
typedef struct frnn_step {
    const frnn_kernels *kernels;
    size_t rows;
    frnn_totals input, candidate_input; /* input parts of the totals */
    float *recurrent;                   /* room for the recurrent parts (BLAS), NULL: fused */
    const float *h;
    float *h_next, *c;
    float *work; /* LSTM: h before its projection; reset-before GRU: r * h */
    float *z;    /* reset-before GRU */
    size_t h_stride, stride;
    bool backwards; /* every second step, to begin with the weights that are still in the cache */
    size_t member, members;
    const frnn_barrier *barrier;
} frnn_step;

/* A kind of cell. */
typedef struct frnn_cell_ops {
    const char *name;
    size_t gates;
    frnn_status (*pack)(frnn_direction *direction, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                        size_t input_size, size_t vlen);
    /* h_next (and c) of this member's share of the units; may wait at the barrier. */
    void (*step)(const frnn_direction *direction, const frnn_step *step);
} frnn_cell_ops;

extern const frnn_cell_ops frnn_lstm_ops, frnn_gru_ops, frnn_gru_reset_before_ops, frnn_rnn_ops;

struct frnn_recurrent {
    const frnn_kernels *kernels;
    const frnn_cell_ops *ops;
    bool blas;
    size_t input_size, hidden_size, output_size, num_layers, directions;
    bool reverse;
    frnn_merge merge;
    frnn_direction *stack; /* num_layers * directions */
};

/* Pack gates [first, first + count) of a layer's input and recurrent matrices. */
frnn_status frnn_pack_gates(frnn_panels *input, frnn_panels *hidden, const frnn_recurrent_desc *desc, const frnn_recurrent_weights *weights,
                            size_t input_size, size_t first, size_t count, size_t vlen);

/* Arguments of a cell's kernel for this member's share of `hidden`; makes the recurrent part where BLAS does it. */
frnn_step_args frnn_step_begin(const frnn_direction *direction, const frnn_panels *hidden, frnn_totals input, const frnn_step *step,
                               const float *v, size_t v_stride, float *out);

/* The matrix whose units are the output of a direction. */
static inline const frnn_panels *frnn_output_panels(const frnn_direction *direction)
{
    if (direction->projection.w) return &direction->projection;
    return direction->candidate_hidden.w ? &direction->candidate_hidden : &direction->hidden;
}

/* How a call is spread over threads. */
typedef enum frnn_split { FRNN_SPLIT_NONE, FRNN_SPLIT_BATCH, FRNN_SPLIT_DIRECTIONS, FRNN_SPLIT_HIDDEN } frnn_split;

typedef struct frnn_plan {
    frnn_split split;
    size_t groups, members; /* groups of members each: members share rows and meet at every step, groups do not */
    size_t slice_rows;      /* rows of the batch that run at a time, from their first step to their last */
    size_t group_rows;      /* of a group in a slice, at most */
    size_t chunk_steps;     /* time steps whose input products are made at once */
} frnn_plan;

/* The time loop: everything between the plan and the kernels (time_loop.c).  Measures only, where the arena has no block. */
typedef struct frnn_job frnn_job;
frnn_job *frnn_job_lay_out(frnn_arena *arena, const frnn_recurrent *net, const frnn_recurrent_call *call, frnn_plan plan);
bool frnn_job_run(frnn_job *job);

#endif
