/* One decoder layer for one token, float32, on one CPU core.
 *
 * At batch 1 a layer is a few hundred kilobytes of weights read once, and torch spends more time
 * starting its sixty small operations than computing them. Here a layer is two calls. The arithmetic
 * is that of the operators' reference.py files; only the order of sums differs.
 *
 * Matrices are stored with `in` as the slow axis, [in][out], so that a product streams through memory.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;

/* out[n] (+)= sum_k x[k] w[k][n]; four rows at a time, so that out is touched a quarter as often. */
static void matvec(float *restrict out, const float *restrict x, const float *restrict w, i64 k,
                   i64 n, int accumulate) {
    if (!accumulate) memset(out, 0, (size_t)n * sizeof(float));
    i64 i = 0;
    for (; i + 4 <= k; i += 4) {
        const float a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
        const float *restrict r0 = w + i * n, *restrict r1 = r0 + n, *restrict r2 = r1 + n,
                             *restrict r3 = r2 + n;
        for (i64 j = 0; j < n; j++) out[j] += a * r0[j] + b * r1[j] + c * r2[j] + d * r3[j];
    }
    for (; i < k; i++)
        for (i64 j = 0; j < n; j++) out[j] += x[i] * w[i * n + j];
}

static float dot(const float *restrict a, const float *restrict b, i64 n) {
    float sum = 0;
    for (i64 i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* 16 numbers from anywhere: what the processor has, or several of what it has. */
typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));

static inline Vec load(const float *x) { return *(const Vec *)x; }

static inline float total(Vec x) {
    typedef float Half __attribute__((vector_size(32)));
    typedef float Quarter __attribute__((vector_size(16)));
    Half halves[2];
    memcpy(halves, &x, sizeof x);
    const Half h = halves[0] + halves[1];
    Quarter quarters[2];
    memcpy(quarters, &h, sizeof h);
    const Quarter q = quarters[0] + quarters[1];
    return q[0] + q[1] + q[2] + q[3];
}

static float inverse_rms(const float *x, i64 n, float eps) {
    return 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
}

/* out may be x. */
static void rms_norm(float *out, const float *x, const float *w, i64 n, float eps) {
    const float scale = inverse_rms(x, n, eps);
    for (i64 i = 0; i < n; i++) out[i] = x[i] * scale * (w ? w[i] : 1.0f);
}

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static void silu_and_mul(float *restrict out, const float *restrict gate_up, i64 width) {
    for (i64 i = 0; i < width; i++) out[i] = gate_up[i] * sigmoid(gate_up[i]) * gate_up[width + i];
}

/* ---- lightning attention: norm, q/k/v/gate, q/k norm, RoPE, state and tail, group norm, gate ---- */

typedef struct {
    i64 hidden, heads, dim, rotary_half, groups, tail, linear_silu;
    float eps;
    const float *w_norm, *w_qkvg, *w_qk_norm, *w_g_norm, *w_dense;
    const float *decode, *decode_query, *fold, *carry; /* tables; fold has `chunk` columns */
    i64 anchor, chunk;
    float *states, *tail_k, *tail_v;
    float *scratch; /* hidden + 5 * heads * dim + anchor floats */
} Lightning;

static void rope_half_split(float *x, const float *cos, const float *sin, i64 half) {
    for (i64 j = 0; j < half; j++) {
        const float a = x[j], b = x[j + half];
        x[j] = a * cos[j] - b * sin[j];
        x[j + half] = b * cos[j] + a * sin[j];
    }
}

/* x [hidden] += attention(norm(x)); the token goes to place `offset` of its slot's tail. */
void ling_lightning(const Lightning *p, float *x, const float *cos, const float *sin, i64 slot,
                    i64 offset) {
    const i64 d = p->dim, inner = p->heads * d, anchor = p->anchor;
    float *u = p->scratch, *fused = u + p->hidden, *gate = fused + 3 * inner;
    float *scores = fused + 4 * inner, *y = scores + anchor;
    rms_norm(u, x, p->w_norm, p->hidden, p->eps);
    matvec(fused, u, p->w_qkvg, p->hidden, 4 * inner, 0);
    if (p->linear_silu)
        for (i64 i = 0; i < 3 * inner; i++) fused[i] *= sigmoid(fused[i]);
    for (i64 h = 0; h < p->heads; h++) {
        float *q = fused + h * d, *k = fused + inner + h * d, *v = fused + 2 * inner + h * d;
        if (p->w_qk_norm) {
            rms_norm(q, q, p->w_qk_norm, d, p->eps);
            rms_norm(k, k, p->w_qk_norm + d, d, p->eps);
        }
        rope_half_split(q, cos, sin, p->rotary_half);
        rope_half_split(k, cos, sin, p->rotary_half);
        float *keys = p->tail_k + (slot * p->heads + h) * p->tail * d;
        float *values = p->tail_v + (slot * p->heads + h) * p->tail * d;
        float *state = p->states + (slot * p->heads + h) * d * d, *out = y + h * d;
        memcpy(keys + offset * d, k, (size_t)d * sizeof(float));
        memcpy(values + offset * d, v, (size_t)d * sizeof(float));
        const float *row = p->decode + (offset * p->heads + h) * anchor;
        const float from_state = p->decode_query[offset * p->heads + h];
        for (i64 j = 0; j <= offset; j++) scores[j] = row[j] * dot(q, keys + j * d, d);
        for (i64 j = 0; j < d; j++) q[j] *= from_state;
        matvec(out, q, state, d, d, 0);
        matvec(out, scores, values, offset + 1, d, 1);
        if (offset == anchor - 1) {
            const float *weight = p->fold + (p->heads + h) * p->chunk, decay = p->carry[p->heads + h];
            for (i64 i = 0; i < d * d; i++) state[i] *= decay;
            for (i64 j = 0; j < anchor; j++)
                for (i64 a = 0; a < d; a++) {
                    const float kj = keys[j * d + a] * weight[j];
                    for (i64 b = 0; b < d; b++) state[a * d + b] += kj * values[j * d + b];
                }
        }
    }
    const i64 width = inner / p->groups;
    for (i64 g = 0; g < p->groups; g++) {
        const float scale = inverse_rms(y + g * width, width, p->eps);
        for (i64 i = g * width; i < (g + 1) * width; i++)
            y[i] *= scale * p->w_g_norm[i] * sigmoid(gate[i]);
    }
    matvec(x, y, p->w_dense, inner, p->hidden, 1);
}

/* ---- MLA, absorbed form over a paged cache of latents ---- */

enum { CHUNK = 64 }; /* keys whose latents stay in the first-level cache from scores to sums */

/* 2^x for x <= 0, which is taken as -125 at least; NaN stays. Error 3e-7 of the result. */
static inline float power_of_2(float x) {
    x = x < -125.0f ? -125.0f : x;
    const float whole = rintf(x), f = x - whole;
    float y = 1.339887440e-3f;
    y = y * f + 9.618437357e-3f;
    y = y * f + 5.550332548e-2f;
    y = y * f + 2.402264791e-1f;
    y = y * f + 6.931472028e-1f;
    y = y * f + 1.0f;
    union { float number; int32_t bits; } result = {y};
    result.bits += (int32_t)((uint32_t)(int32_t)whole << 23);
    return x == x ? result.number : x;
}

/* Latents of one sequence: [blocks][block_size][row], of which `rank` numbers are values. */
typedef struct {
    const float *latents;
    const i64 *blocks;
    i64 block_size, row, rank;
} Keys;

static inline const float *key_at(const Keys *p, i64 t) {
    return p->latents + (p->blocks[t / p->block_size] * p->block_size + t % p->block_size) * p->row;
}

/* mixed [heads][rank] = softmax(scale query . latents) latents over keys first .. last - 1, for
 * query [heads][row]. `scores` is room for heads * (CHUNK + 2). Keys outside; four at a time, since
 * a sum waits for the one before. */
static void attend(const Keys *p, const float *query, i64 heads, i64 first, i64 last, float scale,
                   float *restrict mixed, float *restrict scores) {
    const i64 row = p->row, rank = p->rank;
    float *top = scores + heads * CHUNK, *sum = top + heads;
    const float to_power = scale * 1.44269504f;
    memset(mixed, 0, (size_t)(heads * rank) * sizeof(float));
    for (i64 h = 0; h < heads; h++) {
        top[h] = -INFINITY;
        sum[h] = 0;
    }
    for (i64 from = first; from < last; from += CHUNK) {
        const i64 n = last - from < CHUNK ? last - from : CHUNK;
        const float *key[CHUNK + 3];
        for (i64 t = 0; t < n + 3; t++) key[t] = t < n ? key_at(p, from + t) : key[n - 1];
        for (i64 t = 0; t < n; t += 4) {
            const float *a = key[t], *b = key[t + 1], *c = key[t + 2], *d = key[t + 3];
            for (i64 h = 0; h < heads; h++) {
                const float *q = query + h * row;
                Vec v0 = {0}, v1 = v0, v2 = v0, v3 = v0;
                i64 r = 0;
                for (; r + 16 <= row; r += 16) {
                    const Vec x = load(q + r);
                    v0 += x * load(a + r);
                    v1 += x * load(b + r);
                    v2 += x * load(c + r);
                    v3 += x * load(d + r);
                }
                float s0 = total(v0), s1 = total(v1), s2 = total(v2), s3 = total(v3);
                for (; r < row; r++) {
                    s0 += q[r] * a[r];
                    s1 += q[r] * b[r];
                    s2 += q[r] * c[r];
                    s3 += q[r] * d[r];
                }
                float *s = scores + h * CHUNK + t;
                s[0] = s0 * to_power;
                s[1] = s1 * to_power;
                s[2] = s2 * to_power;
                s[3] = s3 * to_power;
            }
        }
        for (i64 h = 0; h < heads; h++) {
            float *s = scores + h * CHUNK, *m = mixed + h * rank, best = top[h], part = 0;
            for (i64 t = 0; t < n; t++) best = s[t] > best ? s[t] : best;
            if (best > top[h]) {
                const float fade = power_of_2(top[h] - best);
                sum[h] *= fade;
                for (i64 r = 0; r < rank; r++) m[r] *= fade;
                top[h] = best;
            }
            for (i64 t = 0; t < n; t++) part += s[t] = power_of_2(s[t] - best);
            sum[h] += part;
            for (i64 t = n; t < CHUNK && t < n + 3; t++) s[t] = 0; /* those are the last key again */
            for (i64 t = 0; t < n; t += 4) {
                const float *a = key[t], *b = key[t + 1], *c = key[t + 2], *d = key[t + 3];
                const float p0 = s[t], p1 = s[t + 1], p2 = s[t + 2], p3 = s[t + 3];
                i64 r = 0;
                for (; r + 16 <= rank; r += 16)
                    *(Vec *)(m + r) += p0 * load(a + r) + p1 * load(b + r) + p2 * load(c + r) +
                                       p3 * load(d + r);
                for (; r < rank; r++) m[r] += p0 * a[r] + p1 * b[r] + p2 * c[r] + p3 * d[r];
            }
        }
    }
    for (i64 h = 0; h < heads; h++)
        for (i64 r = 0; r < rank; r++) mixed[h * rank + r] /= sum[h];
}

/* One query token of each of `count` sequences; mirrors MlaRowsStruct. */
typedef struct {
    i64 count, heads, rank, row, block_size, table_width;
    double scale;
    const float *query;        /* [count][heads][row] */
    const float *latents;      /* [blocks][block_size][row] */
    const i64 *tables;         /* [count][table_width] */
    const i64 *firsts, *lasts; /* [count], keys that each attends to */
    float *mixed;              /* [count][heads][rank] */
} MlaRows;

/* Returns -1 without memory. */
int ling_mla_rows(const MlaRows *p) {
    float *scores = malloc((size_t)(p->heads * (CHUNK + 2)) * sizeof(float));
    if (!scores) return -1;
    for (i64 i = 0; i < p->count; i++) {
        const i64 *blocks = p->tables + i * p->table_width;
        const Keys keys = {p->latents, blocks, p->block_size, p->row, p->rank};
        attend(&keys, p->query + i * p->heads * p->row, p->heads, p->firsts[i], p->lasts[i],
               (float)p->scale, p->mixed + i * p->heads * p->rank, scores);
    }
    free(scores);
    return 0;
}

typedef struct {
    i64 hidden, heads, nope, rope, value, rank, q_rank; /* q_rank 0: queries straight from w_in */
    float eps, scale;
    const float *w_norm, *w_in, *w_q_norm, *w_q_b, *w_kv_norm, *w_kvb, *w_dense;
    float *latents; /* [blocks][block_size][rank + rope] */
    i64 block_size;
} Mla;

static void rope_interleaved(float *x, const float *cos, const float *sin, i64 half) {
    for (i64 j = 0; j < half; j++) {
        const float a = x[2 * j], b = x[2 * j + 1];
        x[2 * j] = a * cos[j] - b * sin[j];
        x[2 * j + 1] = b * cos[j] + a * sin[j];
    }
}

/* x [hidden] += attention(norm(x)); the token is the last of `length`. Returns -1 without memory. */
int ling_mla(const Mla *p, float *x, const float *cos, const float *sin, const i64 *blocks,
             i64 length) {
    const i64 H = p->heads, row = p->rank + p->rope, q_dim = p->nope + p->rope;
    const i64 first = p->q_rank ? p->q_rank : H * q_dim, in_width = first + row;
    const i64 floats = p->hidden + in_width + H * (2 * q_dim + 2 * row + p->value + CHUNK + 2);
    float *scratch = malloc((size_t)floats * sizeof(float));
    if (!scratch) return -1;
    float *u = scratch, *fused = u + p->hidden, *q = fused + in_width, *query = q + H * q_dim;
    float *mixed = query + H * row, *out = mixed + H * row, *scores = out + H * p->value;
    rms_norm(u, x, p->w_norm, p->hidden, p->eps);
    matvec(fused, u, p->w_in, p->hidden, in_width, 0);
    if (p->q_rank) {
        rms_norm(fused, fused, p->w_q_norm, p->q_rank, p->eps);
        matvec(q, fused, p->w_q_b, p->q_rank, H * q_dim, 0);
    } else {
        memcpy(q, fused, (size_t)(H * q_dim) * sizeof(float));
    }
    const i64 last = length - 1;
    float *own = p->latents + (blocks[last / p->block_size] * p->block_size + last % p->block_size) * row;
    rms_norm(own, fused + first, p->w_kv_norm, p->rank, p->eps);
    memcpy(own + p->rank, fused + first + p->rank, (size_t)p->rope * sizeof(float));
    rope_interleaved(own + p->rank, cos, sin, p->rope / 2);
    for (i64 h = 0; h < H; h++) {
        float *qh = q + h * q_dim, *to = query + h * row;
        rope_interleaved(qh + p->nope, cos, sin, p->rope / 2);
        matvec(to, qh, p->w_kvb + h * (p->nope + p->value) * p->rank, p->nope, p->rank, 0);
        memcpy(to + p->rank, qh + p->nope, (size_t)p->rope * sizeof(float));
    }
    const Keys keys = {p->latents, blocks, p->block_size, row, p->rank};
    attend(&keys, query, H, 0, length, p->scale, mixed, scores);
    for (i64 h = 0; h < H; h++) {
        const float *w = p->w_kvb + (h * (p->nope + p->value) + p->nope) * p->rank;
        for (i64 v = 0; v < p->value; v++)
            out[h * p->value + v] = dot(mixed + h * p->rank, w + v * p->rank, p->rank);
    }
    matvec(x, out, p->w_dense, H * p->value, p->hidden, 1);
    free(scratch);
    return 0;
}

/* ---- feed-forward: one MLP, or routed experts and a shared one ---- */

typedef struct {
    i64 hidden, width, shared_width, experts, topk, groups, topk_groups, normalise;
    float eps, scaling;
    const float *w_norm, *w_gate, *bias; /* w_gate [experts][hidden]; experts 0: shared MLP only */
    const float *w_gate_up, *w_down;     /* [experts][hidden][2 width], [experts][width][hidden] */
    const float *shared_gate_up, *shared_down;
    float *scratch; /* 2 hidden + 3 max(width, shared_width) + 3 experts + 2 groups floats */
} FeedForward;

/* Index of the largest of n values not yet taken; the first one where none compares larger. */
static i64 take_best(const float *value, char *taken, i64 n) {
    i64 best = -1;
    for (i64 i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || value[i] > value[best])) best = i;
    taken[best] = 1;
    return best;
}

static void mlp(float *x, const float *u, const float *gate_up, const float *down, i64 hidden,
                i64 width, float weight, float *scratch) {
    float *act = scratch + 2 * width;
    matvec(scratch, u, gate_up, hidden, 2 * width, 0);
    silu_and_mul(act, scratch, width);
    for (i64 i = 0; i < width; i++) act[i] *= weight;
    matvec(x, act, down, width, hidden, 1);
}

/* x [hidden] += ffn(norm(x)). */
void ling_feed_forward(const FeedForward *p, float *x) {
    float *u = p->scratch, *rest = u + p->hidden;
    rms_norm(u, x, p->w_norm, p->hidden, p->eps);
    if (p->experts) {
        const i64 E = p->experts, size = E / p->groups;
        float *score = rest, *biased = score + E, *group = biased + E;
        char taken[4096] = {0}; /* checked by the caller: experts <= 2048, groups <= 2048 */
        char *taken_group = taken + 2048;
        rest = group + p->groups;
        for (i64 e = 0; e < E; e++) {
            score[e] = sigmoid(dot(p->w_gate + e * p->hidden, u, p->hidden));
            biased[e] = score[e] + (p->bias ? p->bias[e] : 0.0f);
        }
        if (p->topk_groups < p->groups) {
            for (i64 g = 0; g < p->groups; g++) {
                const float *b = biased + g * size;
                float first = -INFINITY, second = -INFINITY;
                for (i64 e = 0; e < size; e++) {
                    if (b[e] > first) {
                        second = first;
                        first = b[e];
                    } else if (b[e] > second) {
                        second = b[e];
                    }
                }
                group[g] = size > 1 ? first + second : first;
            }
            for (i64 i = 0; i < p->topk_groups; i++) take_best(group, taken_group, p->groups);
            for (i64 e = 0; e < E; e++) taken[e] = !taken_group[e / size];
        }
        i64 chosen[64]; /* checked by the caller: topk <= 64 */
        float sum = 1e-20f;
        for (i64 i = 0; i < p->topk; i++) {
            chosen[i] = take_best(biased, taken, E);
            sum += score[chosen[i]];
        }
        for (i64 i = 0; i < p->topk; i++) {
            const i64 e = chosen[i];
            const float weight = score[e] / (p->normalise ? sum : 1.0f) * p->scaling;
            mlp(x, u, p->w_gate_up + e * p->hidden * 2 * p->width, p->w_down + e * p->width * p->hidden,
                p->hidden, p->width, weight, rest);
        }
    }
    if (p->shared_width)
        mlp(x, u, p->shared_gate_up, p->shared_down, p->hidden, p->shared_width, 1.0f, rest);
}

/* out[n] = x [k] w [k][n]: the head, without torch's threads, whose start costs more at this size. */
void ling_matvec(float *out, const float *x, const float *w, i64 k, i64 n) {
    matvec(out, x, w, k, n, 0);
}
