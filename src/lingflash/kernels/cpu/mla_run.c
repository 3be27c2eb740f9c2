/* Absorbed MLA attention of a run of query tokens over a paged prefix, in place, on AMX tiles.
 *
 * mixed[row] = sum_t softmax_t(query[row] . latents[t]) latents[t][:rank], causal, never a score in
 * memory for longer than a block of keys. A tile multiplies bfloat16 with sums in float32, 16 times
 * as fast as float32 vectors do. For the scores a float32 number is taken as the sum of three
 * bfloat16 numbers, which is all of it, and of the nine products the three smallest are left out:
 * float32 to the last bits. The probabilities and what they are multiplied with are sums of two, 16
 * bits: their errors do not grow with the scores, and those of many keys cancel.
 *
 * Scores are kept transposed, [key][row]: the softmax of 16 rows is then that of 16 lanes, and the
 * probabilities are in the order in which the second product wants them.
 */
#include <math.h>
#include <stdint.h>

typedef int64_t i64;

/* One call; mirrors MlaRunStruct. */
typedef struct {
    i64 rows, heads, rank, width, block_size, length, threads; /* rows: tokens x heads */
    const float *query;   /* [rows][width]; the scores are powers of 2, so log2(e) is in it */
    const float *latents; /* [blocks][block_size][width] */
    const i64 *blocks;
    float *mixed; /* [rows][rank] */
} MlaRun;

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEYS = 128, GROUP = 32 }; /* keys at a time; query rows whose scores are held at once */
enum { SCORE_PIECES = 3 }; /* 2 would be a third faster, with errors that grow with the scores */

typedef struct {
    const MlaRun *run;
    i64 width; /* in whole tiles: what is past the run's width is zero on both sides */
    i64 index, count; /* of `count` parts this one has groups index, index + count, ... */
    int failed;
} Part;

/* The nearest bfloat16, as the upper half of a float's bits. */
static inline __m512i upper(__m512 x) {
    const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_and_si512(rounded, _mm512_set1_epi32((int)0xffff0000));
}

/* x as the sum of `count` bfloat16 numbers, each as an upper half. */
static inline __attribute__((always_inline)) void split(__m512 x, __m512i *piece, int count) {
    for (int i = 0; i < count; i++) {
        piece[i] = upper(x);
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(piece[i]));
    }
}

/* Two bfloat16 in a word, the first one low, as a tile's second operand has them. */
static inline __m512i pair(__m512i first, __m512i second) {
    return _mm512_or_si512(_mm512_srli_epi32(first, 16), second);
}

/* 16 x 16 words; `from` and `to` are counted in words. */
static void transpose(const uint32_t *from, i64 from_row, uint32_t *to, i64 to_row) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* a[4 g + i]: rows 4 g .. 4 g + 3 of columns i, i + 4, ... */
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_row, a[i]);
}

static inline void load_a(const uint16_t *a, i64 a_row) {
    _tile_loadd(4, a, a_row * 2);
    _tile_loadd(5, a + 16 * a_row, a_row * 2);
}

static inline void load_b(const uint32_t *b) {
    _tile_loadd(6, b, GROUP * 4);
    _tile_loadd(7, b + 16, GROUP * 4);
}

/* Four tiles of sums += the products of two tiles of `a` and two of `b`. */
static inline void multiply(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* out [32][GROUP] (+)= a [32][32 steps] b [32 steps][GROUP]; a's rows are a_row numbers apart, and
 * its pieces and those of b so many numbers or words. With three pieces the six largest of the nine
 * products are taken, with two the three largest of four. */
static inline __attribute__((always_inline)) void product(float *out, const uint16_t *a, i64 a_row,
                                                          i64 a_piece, const uint32_t *b,
                                                          i64 b_piece, i64 steps, int pieces,
                                                          int accumulate) {
    if (accumulate) {
        _tile_loadd(0, out, GROUP * 4);
        _tile_loadd(1, out + 16, GROUP * 4);
        _tile_loadd(2, out + 16 * GROUP, GROUP * 4);
        _tile_loadd(3, out + 16 * GROUP + 16, GROUP * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (i64 s = 0; s < steps; s++, a += 32, b += 16 * GROUP) {
        /* In an order that keeps one side loaded. */
        load_a(a, a_row);
        if (pieces == 3) {
            load_b(b + 2 * b_piece);
            multiply();
        }
        load_b(b + b_piece);
        multiply();
        if (pieces == 3) {
            load_a(a + a_piece, a_row);
            multiply();
            load_b(b);
            multiply();
            load_a(a, a_row);
            multiply();
            load_a(a + 2 * a_piece, a_row);
            multiply();
        } else {
            load_b(b);
            multiply();
            load_a(a + a_piece, a_row);
            multiply();
        }
    }
    _tile_stored(0, out, GROUP * 4);
    _tile_stored(1, out + 16, GROUP * 4);
    _tile_stored(2, out + 16 * GROUP, GROUP * 4);
    _tile_stored(3, out + 16 * GROUP + 16, GROUP * 4);
}

/* 2^x for x <= 0, 0 from -127 on; NaN stays. Error 3e-7 of the result. */
static inline __m512 power_of_2(__m512 x) {
    /* What is added leaves no bits for a fraction: the low bits then are the whole number. */
    const __m512 shift = _mm512_set1_ps(12582912.0f);
    x = _mm512_max_ps(_mm512_set1_ps(-127.0f), x); /* of (a, NaN) the instruction gives NaN */
    const __m512 moved = _mm512_add_round_ps(x, shift, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(
        x, _mm512_sub_round_ps(moved, shift, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    __m512 y = _mm512_set1_ps(1.339887440e-3f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.618437357e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.550332548e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.402264791e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.931472028e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, _mm512_sub_ps(x, f));
}

static inline const float *latent(const MlaRun *p, i64 t) {
    return p->latents +
           (p->blocks[t / p->block_size] * p->block_size + t % p->block_size) * p->width;
}

/* Keys `from` .. from + KEYS - 1, zeros past the last, in pieces: rows [3][KEYS][width] for the
 * scores, columns [2][rank][KEYS] for the sums; `words` is room for KEYS * rank. */
static void take_keys(const MlaRun *p, i64 width, i64 from, uint16_t *rows, uint16_t *columns,
                      uint32_t *words) {
    const i64 half = KEYS / 2 * p->rank;
    for (i64 k = 0; k < KEYS; k += 2) {
        const float *at[2];
        for (i64 i = 0; i < 2; i++) {
            const i64 t = from + k + i;
            at[i] = t < p->length ? latent(p, t) : NULL;
            if (t + KEYS < p->length) /* on its way while these are computed with */
                for (i64 r = 0; r < p->width; r += 16)
                    _mm_prefetch((const char *)(latent(p, t + KEYS) + r), _MM_HINT_T1);
        }
        for (i64 r = 0; r < p->width; r += 16) {
            __m512i piece[2][3];
            for (i64 i = 0; i < 2; i++) {
                split(at[i] ? _mm512_loadu_ps(at[i] + r) : _mm512_setzero_ps(), piece[i], 3);
                for (i64 j = 0; j < 3; j++)
                    _mm256_storeu_si256((void *)(rows + (j * KEYS + k + i) * width + r),
                                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(piece[i][j], 16)));
            }
            for (i64 j = 0; r < p->rank && j < 2; j++)
                _mm512_storeu_si512(words + j * half + k / 2 * p->rank + r,
                                    pair(piece[0][j], piece[1][j]));
        }
    }
    for (i64 j = 0; j < 2; j++)
        for (i64 r = 0; r < p->rank; r += 16)
            for (i64 k = 0; k < KEYS / 2; k += 16)
                transpose(words + j * half + k * p->rank + r, p->rank,
                          (uint32_t *)columns + (j * p->rank + r) * KEYS / 2 + k, KEYS / 2);
}

/* GROUP rows of the query from row `at`, zeros past the last: pairs [3][width / 2][GROUP]. */
static void take_query(const MlaRun *p, i64 width, i64 at, uint32_t *to) {
    uint16_t rows[3][16][32] __attribute__((aligned(64)));
    for (i64 i = 0; i < GROUP; i += 16)
        for (i64 r = 0; r < width; r += 32) {
            for (i64 k = 0; k < 16; k++)
                for (i64 half = 0; half < 32; half += 16) {
                    const int is_there = at + i + k < p->rows && r + half < p->width;
                    __m512i piece[3];
                    split(is_there ? _mm512_loadu_ps(p->query + (at + i + k) * p->width + r + half)
                                   : _mm512_setzero_ps(),
                          piece, 3);
                    for (i64 j = 0; j < 3; j++)
                        _mm256_store_si256((void *)&rows[j][k][half],
                                           _mm512_cvtepi32_epi16(_mm512_srli_epi32(piece[j], 16)));
                }
            for (i64 j = 0; j < 3; j++)
                transpose((const uint32_t *)rows[j], 16, to + (j * width + r) / 2 * GROUP + i, GROUP);
        }
}

/* Scores [KEYS][GROUP] to probabilities relative to the greatest score so far, as pairs
 * [2][KEYS / 2][GROUP]; statistics and what was summed before [rank][GROUP] follow the greatest. */
static void soften(float *scores, uint32_t *probs, float *top, float *sum, float *total, i64 rank,
                   const int32_t *ends, i64 from, int is_masked) {
    for (i64 c = 0; c < GROUP; c += 16) {
        float *s = scores + c;
        if (is_masked) {
            const __m512i end = _mm512_loadu_si512(ends + c);
            for (i64 k = 0; k < KEYS; k++) {
                const __mmask16 unseen = _mm512_cmple_epi32_mask(end, _mm512_set1_epi32((int)(from + k)));
                _mm512_mask_storeu_ps(s + k * GROUP, unseen, _mm512_set1_ps(-INFINITY));
            }
        }
        const __m512 before = _mm512_loadu_ps(top + c);
        __m512 best = before, second = before;
        for (i64 k = 0; k < KEYS; k += 2) {
            best = _mm512_max_ps(best, _mm512_loadu_ps(s + k * GROUP));
            second = _mm512_max_ps(second, _mm512_loadu_ps(s + (k + 1) * GROUP));
        }
        best = _mm512_max_ps(best, second);
        __m512 part = _mm512_setzero_ps();
        for (i64 k = 0; k < KEYS; k += 2) {
            const __m512 p0 = power_of_2(_mm512_sub_ps(_mm512_loadu_ps(s + k * GROUP), best));
            const __m512 p1 = power_of_2(_mm512_sub_ps(_mm512_loadu_ps(s + (k + 1) * GROUP), best));
            part = _mm512_add_ps(part, _mm512_add_ps(p0, p1));
            __m512i first[2], next[2];
            split(p0, first, 2);
            split(p1, next, 2);
            for (i64 j = 0; j < 2; j++)
                _mm512_storeu_si512(probs + (j * KEYS + k) / 2 * GROUP + c, pair(first[j], next[j]));
        }
        if (_mm512_cmpneq_ps_mask(best, before)) {
            const __m512 fade = power_of_2(_mm512_sub_ps(before, best));
            _mm512_storeu_ps(top + c, best);
            _mm512_storeu_ps(sum + c, _mm512_mul_ps(_mm512_loadu_ps(sum + c), fade));
            for (i64 r = 0; r < rank; r++) {
                float *at = total + r * GROUP + c;
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), fade));
            }
        }
        _mm512_storeu_ps(sum + c, _mm512_add_ps(_mm512_loadu_ps(sum + c), part));
    }
}

/* One thread's groups of rows; keys outside, so that each is split once. */
static void *attend(void *argument) {
    Part *part = argument;
    const MlaRun *p = part->run;
    const i64 W = part->width, R = p->rank, first = part->index * GROUP, step = part->count * GROUP;
    const i64 groups = (p->rows - first + step - 1) / step;
    const i64 before = p->length - p->rows / p->heads;
    /* In words; each is a multiple of 16. */
    const i64 query = 3 * W / 2 * GROUP, total = R * GROUP, statistics = 3 * GROUP;
    const i64 rows_size = 3 * KEYS * W / 2, columns_size = KEYS * R, tile = KEYS * GROUP;
    const i64 of_group = query + total + statistics;
    const i64 size = groups * of_group + rows_size + 2 * columns_size + 2 * tile;
    uint32_t *scratch = aligned_alloc(64, (size_t)size * 4);
    if (!scratch) {
        part->failed = 1;
        return NULL;
    }
    uint32_t *queries = scratch, *totals = queries + groups * query;
    uint32_t *stats = totals + groups * total, *rest = stats + groups * statistics;
    uint16_t *rows = (uint16_t *)rest, *columns = (uint16_t *)(rest + rows_size);
    uint32_t *spare = rest + rows_size + columns_size, *probs = spare + columns_size;
    float *scores = (float *)(probs + tile);
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 64;
        tiles.rows[i] = 16;
    }
    _tile_loadconfig(&tiles);
    memset(totals, 0, (size_t)(groups * total) * 4);
    memset(rows, 0, (size_t)rows_size * 4); /* past the run's width it stays so */
    i64 last = 0; /* the key after the last that any row sees */
    for (i64 g = 0; g < groups; g++) {
        const i64 at = first + g * step;
        float *top = (float *)(stats + g * statistics), *sum = top + GROUP;
        int32_t *ends = (int32_t *)(sum + GROUP);
        take_query(p, W, at, queries + g * query);
        for (i64 i = 0; i < GROUP; i++) {
            const i64 row = at + i < p->rows ? at + i : p->rows - 1;
            top[i] = -INFINITY;
            sum[i] = 0;
            ends[i] = (int32_t)(before + row / p->heads + 1);
        }
        last = ends[GROUP - 1];
    }
    for (i64 from = 0; from < last; from += KEYS) {
        take_keys(p, W, from, rows, columns, spare);
        for (i64 g = 0; g < groups; g++) {
            float *sums = (float *)(totals + g * total), *top = (float *)(stats + g * statistics);
            const int32_t *ends = (int32_t *)(top + 2 * GROUP);
            if (from >= ends[GROUP - 1]) continue;
            for (i64 k = 0; k < KEYS; k += 32)
                product(scores + k * GROUP, rows + k * W, W, KEYS * W, queries + g * query,
                        query / 3, W / 32, SCORE_PIECES, 0);
            soften(scores, probs, top, top + GROUP, sums, R, ends, from, from + KEYS > ends[0]);
            for (i64 r = 0; r < R; r += 32)
                product(sums + r * GROUP, columns + r * KEYS, KEYS, R * KEYS, probs, tile / 2, KEYS / 32, 2,
                        1);
        }
    }
    _tile_release();
    for (i64 g = 0; g < groups; g++) {
        const i64 at = first + g * step;
        const float *sum = (float *)(stats + g * statistics) + GROUP;
        for (i64 i = 0; i < GROUP && at + i < p->rows; i += 16)
            for (i64 r = 0; r < R; r += 16) {
                uint32_t part[16][16] __attribute__((aligned(64)));
                transpose(totals + g * total + r * GROUP + i, GROUP, part[0], 16);
                for (i64 k = 0; k < 16 && at + i + k < p->rows; k++)
                    _mm512_storeu_ps(p->mixed + (at + i + k) * R + r,
                                     _mm512_div_ps(_mm512_load_ps(part[k]),
                                                   _mm512_set1_ps(sum[i + k])));
            }
    }
    free(scratch);
    return NULL;
}

/* Whether ling_mla_run can be called; asks the system for the tiles, which are off by default. */
int ling_has_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

/* Returns -1 without memory; the rank is a multiple of 32, the width of 16. */
int ling_mla_run(const MlaRun *p) {
    enum { MOST = 64 };
    Part parts[MOST];
    pthread_t threads[MOST];
    const i64 groups = (p->rows + GROUP - 1) / GROUP;
    i64 count = p->threads < groups ? p->threads : groups;
    if (count > MOST) count = MOST;
    int failed = 0;
    for (i64 i = count - 1; i >= 0; i--) {
        parts[i] = (Part){p, (p->width + 31) / 32 * 32, i, count, 0};
        threads[i] = 0;
        /* The first part, and what gets no thread of its own, is done here. */
        if (!i || pthread_create(&threads[i], NULL, attend, &parts[i])) {
            threads[i] = 0;
            attend(&parts[i]);
        }
    }
    for (i64 i = 0; i < count; i++) {
        if (threads[i]) pthread_join(threads[i], NULL);
        failed |= parts[i].failed;
    }
    return failed ? -1 : 0;
}
#else
int ling_has_tiles(void) { return 0; }
int ling_mla_run(const MlaRun *p) {
    (void)p;
    return -1;
}
#endif
