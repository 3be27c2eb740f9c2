/* MLA attention of a run of query tokens over a paged prefix, in float32 vectors of any width.
 *
 * Keys are taken KEYS at a time, transposed, and either used as they are by all heads (absorbed: a
 * key is a latent with its rotated part, a value is the latent) or, with the weights, made into each
 * head's own keys and values first (expanded). Either way nothing is kept of a block of keys but
 * what it adds to the sums, and no score leaves the first-level cache.
 *
 * All is transposed, [key or channel][query row]: the softmax of LANES rows is that of LANES lanes.
 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "vectors.h"

enum { KEYS = 96, ROWS = 48 }; /* keys at a time; query rows whose scores are held at once */

/* One call; mirrors _VectorRunStruct. */
typedef struct {
    i64 tokens, heads, nope, rope, value, rank, block_size, length, threads;
    i64 nope_token, nope_head, rope_token, rope_head; /* steps of q_nope and q_rope, in numbers */
    float scale;                                      /* of the scores, with log2(e) in it */
    const float *q_nope, *q_rope;                     /* [tokens][heads][nope], [..][rope] */
    const float *latents;                             /* [blocks][block_size][rank + rope] */
    const i64 *blocks;
    const float *w_kvb; /* [heads][nope + value][rank]; NULL: nope and value are the rank */
    float *out;         /* [tokens][heads][value] */
} VectorRun;

typedef struct {
    const VectorRun *run;
    i64 index, count;
    int failed;
} VectorPart;

/* What one thread works with. Absorbed, the rows of all heads are one group; expanded, a head is. */
typedef struct {
    i64 first_group, group_step, groups; /* of heads; 1 if absorbed */
    i64 first_row, rows, room;           /* of a group; room: rows in memory */
    i64 heads_per_group;
    float *queries, *totals, *tops, *sums; /* [groups][nope + rope | value | 1 | 1][room] */
    float *latents, *expanded, *scores;    /* [rank + rope][KEYS], [nope + value][KEYS], [KEYS][ROWS] */
} Desk;

/* 2^x for x <= 0, which is taken as -126 at least; NaN stays. Error 3e-7 of the result. */
INLINE Floats powers_of_2(Floats x) {
    const Floats least = (Floats){0} - 126.0f;
    x = choose(x < least, least, x);
    const Ints whole = __builtin_convertvector(x - 0.5f, Ints); /* to the nearest: x <= 0 */
    const Floats f = x - __builtin_convertvector(whole, Floats);
    Floats y = f * 1.339887440e-3f + 9.618437357e-3f;
    y = y * f + 5.550332548e-2f;
    y = y * f + 2.402264791e-1f;
    y = y * f + 6.931472028e-1f;
    y = y * f + 1.0f;
    return choose(x == x, (Floats)((Ints)y + (whole << 23)), x);
}

static i64 token_of(const Desk *d, i64 row) { return (d->first_row + row) / d->heads_per_group; }

static i64 head_of(const Desk *d, i64 group, i64 row) {
    const i64 own = (d->first_row + row) % d->heads_per_group;
    return (d->first_group + group * d->group_step) * d->heads_per_group + own;
}

static void take_queries(const VectorRun *p, Desk *d) {
    const i64 width = p->nope + p->rope;
    for (i64 g = 0; g < d->groups; g++) {
        float *to = d->queries + g * width * d->room;
        for (i64 row = 0; row < d->rows; row++) {
            const i64 token = token_of(d, row), head = head_of(d, g, row);
            const float *q = p->q_nope + token * p->nope_token + head * p->nope_head;
            const float *r = p->q_rope + token * p->rope_token + head * p->rope_head;
            for (i64 i = 0; i < p->nope; i++) to[i * d->room + row] = q[i] * p->scale;
            for (i64 i = 0; i < p->rope; i++) to[(p->nope + i) * d->room + row] = r[i] * p->scale;
        }
    }
}

/* Keys from .. from + KEYS - 1, transposed; zeros past the last. */
static void take_latents(const VectorRun *p, i64 from, float *to) {
    const i64 width = p->rank + p->rope;
    for (i64 k = 0; k < KEYS; k++) {
        const i64 t = from + k;
        if (t >= p->length) {
            for (i64 i = 0; i < width; i++) to[i * KEYS + k] = 0;
            continue;
        }
        const i64 block = p->blocks[t / p->block_size];
        const float *x = p->latents + (block * p->block_size + t % p->block_size) * width;
        for (i64 i = 0; i < width; i++) to[i * KEYS + k] = x[i];
    }
}

/* Scores [KEYS][ROWS] of keys `from` on to probabilities relative to the rows' greatest so far; what
 * was summed before, `total` [value][room], follows it. The rows begin at `row` of their group. */
static void soften(const VectorRun *p, const Desk *d, i64 from, i64 row, i64 columns, float *scores,
                   float *top, float *sum, float *total) {
    const i64 before = p->length - p->tokens;
    const int is_masked = from + KEYS > before + token_of(d, row) + 1;
    for (i64 c = 0; c < columns; c += LANES) {
        float *s = scores + c;
        Ints seen; /* keys of this block that each row attends to */
        for (i64 i = 0; i < LANES; i++) {
            const i64 own = row + c + i < d->rows ? row + c + i : d->rows - 1;
            seen[i] = (int32_t)(before + token_of(d, own) + 1 - from);
        }
        if (is_masked)
            for (i64 k = 0; k < KEYS; k++) {
                const Ints unseen = seen <= (int32_t)k;
                store_floats(s + k * ROWS, choose(unseen, (Floats){0} - INFINITY, load_floats(s + k * ROWS)));
            }
        const Floats old = load_floats(top + c);
        Floats best = old;
        for (i64 k = 0; k < KEYS; k++) {
            const Floats x = load_floats(s + k * ROWS);
            best = choose(x > best, x, best);
        }
        const Ints grown = best > old;
        int32_t any = 0;
        for (i64 i = 0; i < LANES; i++) any |= grown[i];
        if (any) {
            const Floats fade = powers_of_2(old - best);
            store_floats(top + c, best);
            store_floats(sum + c, load_floats(sum + c) * fade);
            for (i64 v = 0; v < p->value; v++)
                store_floats(total + v * d->room + c, load_floats(total + v * d->room + c) * fade);
        }
        Floats part = {0};
        for (i64 k = 0; k < KEYS; k++) {
            Floats x = powers_of_2(load_floats(s + k * ROWS) - best);
            if (is_masked) x = (Floats)((Ints)x & (seen > (int32_t)k));
            part += x;
            store_floats(s + k * ROWS, x);
        }
        store_floats(sum + c, load_floats(sum + c) + part);
    }
}

/* All of a group's rows and one block of keys. */
static void attend_block(const VectorRun *p, const Desk *d, i64 group, i64 from) {
    const i64 width = p->nope + p->rope, before = p->length - p->tokens;
    const float *keys = d->latents, *values = d->latents;
    if (p->w_kvb) {
        const i64 head = head_of(d, group, 0), height = p->nope + p->value;
        memset(d->expanded, 0, (size_t)(height * KEYS) * sizeof(float));
        multiply(d->expanded, KEYS, p->w_kvb + head * height * p->rank, p->rank, 1, d->latents, KEYS,
                 height, p->rank, KEYS);
        keys = d->expanded;
        values = d->expanded + p->nope * KEYS;
    }
    const float *rotated = d->latents + p->rank * KEYS;
    const float *queries = d->queries + group * width * d->room;
    float *totals = d->totals + group * p->value * d->room;
    for (i64 row = 0; row < d->rows; row += ROWS) {
        const i64 last = row + ROWS < d->rows ? row + ROWS : d->rows;
        if (before + token_of(d, last - 1) < from) continue; /* none of them sees these keys */
        const i64 columns = d->room - row < ROWS ? d->room - row : ROWS;
        memset(d->scores, 0, KEYS * ROWS * sizeof(float));
        multiply(d->scores, ROWS, keys, 1, KEYS, queries + row, d->room, KEYS, p->nope, columns);
        multiply(d->scores, ROWS, rotated, 1, KEYS, queries + p->nope * d->room + row, d->room, KEYS,
                 p->rope, columns);
        soften(p, d, from, row, columns, d->scores, d->tops + group * d->room + row,
               d->sums + group * d->room + row, totals + row);
        multiply(totals + row, d->room, values, KEYS, 1, d->scores, ROWS, p->value, KEYS, columns);
    }
}

static void *attend_part(void *argument) {
    VectorPart *part = argument;
    const VectorRun *p = part->run;
    Desk d = {.first_group = part->index, .group_step = part->count, .heads_per_group = 1};
    if (p->w_kvb) {
        d.groups = (p->heads - part->index + part->count - 1) / part->count;
        d.rows = p->tokens;
    } else { /* rows in a row, ROWS at a time */
        const i64 all = p->tokens * p->heads, tiles = (all + ROWS - 1) / ROWS;
        const i64 end = tiles * (part->index + 1) / part->count * ROWS;
        d.first_group = 0;
        d.groups = 1;
        d.heads_per_group = p->heads;
        d.first_row = tiles * part->index / part->count * ROWS;
        d.rows = (end < all ? end : all) - d.first_row;
    }
    d.room = (d.rows + LANES - 1) / LANES * LANES;
    const i64 own = p->nope + p->rope + p->value + 2;
    const i64 size = d.groups * own * d.room + KEYS * (p->rank + p->rope + p->nope + p->value + ROWS);
    float *memory = calloc((size_t)size, sizeof(float));
    if (!memory) {
        part->failed = 1;
        return NULL;
    }
    d.queries = memory;
    d.totals = d.queries + d.groups * (p->nope + p->rope) * d.room;
    d.tops = d.totals + d.groups * p->value * d.room;
    d.sums = d.tops + d.groups * d.room;
    d.latents = d.sums + d.groups * d.room;
    d.expanded = d.latents + KEYS * (p->rank + p->rope);
    d.scores = d.expanded + KEYS * (p->nope + p->value);
    /* Below any score, and finite: what a row does not see is taken from it. */
    for (i64 i = 0; i < d.groups * d.room; i++) d.tops[i] = -1e30f;
    take_queries(p, &d);
    const i64 end = p->length - p->tokens + token_of(&d, d.rows - 1) + 1;
    for (i64 from = 0; from < end; from += KEYS) {
        take_latents(p, from, d.latents);
        for (i64 g = 0; g < d.groups; g++) attend_block(p, &d, g, from);
    }
    for (i64 g = 0; g < d.groups; g++)
        for (i64 row = 0; row < d.rows; row++) {
            const float sum = d.sums[g * d.room + row];
            float *to = p->out + (token_of(&d, row) * p->heads + head_of(&d, g, row)) * p->value;
            for (i64 v = 0; v < p->value; v++) to[v] = d.totals[(g * p->value + v) * d.room + row] / sum;
        }
    free(memory);
    return NULL;
}

/* Numbers in a vector. */
int ling_lanes(void) { return LANES; }

/* Returns -1 without memory. */
int ling_mla_vectors(const VectorRun *p) {
    enum { MOST = 64 };
    VectorPart parts[MOST];
    pthread_t threads[MOST];
    const i64 most = p->w_kvb ? p->heads : (p->tokens * p->heads + ROWS - 1) / ROWS;
    i64 count = p->threads < most ? p->threads : most;
    if (count > MOST) count = MOST;
    int failed = 0;
    for (i64 i = count - 1; i >= 0; i--) {
        parts[i] = (VectorPart){p, i, count, 0};
        threads[i] = 0;
        /* The first part, and what gets no thread of its own, is done here. */
        if (!i || pthread_create(&threads[i], NULL, attend_part, &parts[i])) {
            threads[i] = 0;
            attend_part(&parts[i]);
        }
    }
    for (i64 i = 0; i < count; i++) {
        if (threads[i]) pthread_join(threads[i], NULL);
        failed |= parts[i].failed;
    }
    return failed ? -1 : 0;
}
