/* Absorbed MLA attention of a run of query tokens over a paged prefix, in place, on AMX tiles.
 *
 * mixed[row] = sum_t softmax_t(query[row] . latents[t]) latents[t][:rank], causal, never a score in
 * memory for longer than a block of keys. A tile multiplies small numbers: whole ones of 8 bits
 * with exact sums, 32 times as fast as float32 vectors do, or bfloat16 with sums in float32, at
 * half that rate.
 *
 * For the scores a vector is taken as a factor times whole numbers of 24 bits, of three digits
 * each, and of the nine products of digits the three smallest are left out: float32 to the last
 * bits. The probabilities and what they are multiplied with are sums of two bfloat16, 16 bits:
 * their errors do not grow with the scores, and those of many keys cancel.
 *
 * Scores are kept transposed, [key][row]: the softmax of 16 rows is then that of 16 lanes, and the
 * probabilities are in the order in which the second product wants them. Vector units and tiles
 * work side by side: the softmax of one group of rows is computed between the products of others.
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

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && \
    defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEYS = 128, GROUP = 32 }; /* keys at a time; query rows whose scores are held at once */

typedef struct {
    const MlaRun *run;
    i64 index, count; /* of `count` parts this one has groups index, index + count, ... */
    int failed;
} Part;

/* What is known of GROUP query rows; their scores are multiplied with `factor`. */
typedef struct {
    float top[GROUP], sum[GROUP], factor[GROUP]; /* of scores so far, of their probabilities */
    int32_t end[GROUP];                          /* the key after the last one seen */
} Group;

/* Scores of a group and KEYS keys that are becoming probabilities, in place, two keys at a time: the
 * pairs of their first pieces take the place of the one, those of the second pieces of the other. */
typedef struct {
    float *scores; /* [KEYS][GROUP] */
    i64 next;      /* key; KEYS if there is no work */
    __m512 factor[2], top[2], sum[2];
} Softmax;

/* x as the sum of two bfloat16 numbers, each the upper half of a word; what is below is any. */
static inline void split(__m512 x, __m512i *piece) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    piece[0] = _mm512_add_epi32(_mm512_castps_si512(x), half);
    const __m512i upper = _mm512_and_si512(piece[0], _mm512_set1_epi32((int)0xffff0000));
    piece[1] = _mm512_add_epi32(
        _mm512_castps_si512(_mm512_sub_ps(x, _mm512_castsi512_ps(upper))), half);
}

/* Two bfloat16 in a word, the first one low, as a tile's second operand has them. */
static inline __m512i pair(__m512i first, __m512i second) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second);
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

/* Of two tiles of `a` and two of `b`. */
static inline void load_a(const void *a, i64 tile_bytes, i64 row_bytes) {
    _tile_loadd(4, a, row_bytes);
    _tile_loadd(5, (const char *)a + tile_bytes, row_bytes);
}

static inline void load_b(const uint32_t *b, i64 row) {
    _tile_loadd(6, b, row * 4);
    _tile_loadd(7, b + 16, row * 4);
}

/* Four tiles of sums [32][GROUP] += the products of these. */
#define MULTIPLY(operation) \
    do {                    \
        operation(0, 4, 6); \
        operation(1, 4, 7); \
        operation(2, 5, 6); \
        operation(3, 5, 7); \
    } while (0)

static inline void store_sums(void *out) {
    char *at = out;
    _tile_stored(0, at, GROUP * 4);
    _tile_stored(1, at + 64, GROUP * 4);
    _tile_stored(2, at + 64 * GROUP, GROUP * 4);
    _tile_stored(3, at + 64 * GROUP + 64, GROUP * 4);
}

/* GCC does not know that loading a tile reads memory: what was stored must be there by now. */
static inline void settle_memory(void) { __asm__ volatile("" ::: "memory"); }

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

/* Where byte i of a vector of digits is, from its first on, in tiles of 16 vectors one after the
 * other: such a row of tiles is read in the order of memory. */
static inline i64 in_tiles(i64 i) { return i / 64 * 1024 + i % 64; }

/* x [width] as factor (d0 2^16 + d1 2^8 + d2) / 2^8, each d from -128 to 127. Digit j of x[i]
 * becomes byte j * step + i of `out`. Returns the factor; NaN or infinity in x makes it that, too.
 */
static inline __attribute__((always_inline)) float take_digits(const float *x, i64 width,
                                                               int8_t *out, i64 step,
                                                               int is_tiled) {
    __m512i most = _mm512_setzero_si512(); /* in bits, where NaN is more than any number */
    for (i64 r = 0; r < width; r += 16)
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(x + r),
                                                       _mm512_set1_epi32(0x7fffffff)));
    const __m128 top = _mm_castsi128_ps(_mm_cvtsi32_si128((int)_mm512_reduce_max_epu32(most)));
    const float greatest = 127 << 16, found = _mm_cvtss_f32(top);
    const float size = found < 1e-30f ? 1e-30f : found;
    const __m512 scale = _mm512_set1_ps(greatest / size);
    const __m512i middle = _mm512_set1_epi32(0x808080);
    for (i64 r = 0; r < width; r += 16) {
        __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + r), scale));
        /* 128 is added to each byte with carry and taken away without. */
        n = _mm512_xor_si512(_mm512_add_epi32(n, middle), middle);
        const __m512i digits[3] = {_mm512_srli_epi32(n, 16), _mm512_srli_epi32(n, 8), n};
        for (i64 j = 0; j < 3; j++) {
            const i64 i = j * step + r;
            _mm_storeu_si128((void *)(out + (is_tiled ? in_tiles(i) : i)),
                             _mm512_cvtepi32_epi8(digits[j]));
        }
    }
    return size / greatest * 256;
}

/* Keys `from` .. from + KEYS - 1, zeros past the last. Rows: digits 0, 1, 2 of each, `row` bytes,
 * in tiles. Columns: pieces [2][rank][KEYS], in tiles. `words` is room for KEYS * rank. */
static void take_keys(const MlaRun *p, i64 row, i64 from, int8_t *rows, float *factors,
                      uint16_t *columns, uint32_t *words) {
    const i64 half = KEYS / 2 * p->rank;
    for (i64 k = 0; k < KEYS; k += 2) {
        const float *at[2];
        for (i64 i = 0; i < 2; i++) {
            const i64 t = from + k + i;
            at[i] = t < p->length ? latent(p, t) : NULL;
            if (t + KEYS < p->length) /* on its way while these are computed with */
                for (i64 r = 0; r < p->width; r += 16)
                    _mm_prefetch((const char *)(latent(p, t + KEYS) + r), _MM_HINT_T1);
            factors[k + i] = 0;
            int8_t *to = rows + (k + i) / 16 * 16 * row + (k + i) % 16 * 64;
            if (at[i]) factors[k + i] = take_digits(at[i], p->width, to, p->width, 1);
        }
        for (i64 r = 0; r < p->rank; r += 16) {
            __m512i piece[2][2];
            for (i64 i = 0; i < 2; i++)
                split(at[i] ? _mm512_loadu_ps(at[i] + r) : _mm512_setzero_ps(), piece[i]);
            for (i64 j = 0; j < 2; j++)
                _mm512_storeu_si512(words + j * half + k / 2 * p->rank + r,
                                    pair(piece[0][j], piece[1][j]));
        }
    }
    for (i64 j = 0; j < 2; j++)
        for (i64 r = 0; r < p->rank; r += 16)
            for (i64 k = 0; k < KEYS / 2; k += 16)
                transpose(words + j * half + k * p->rank + r, p->rank,
                          (uint32_t *)columns + (j * p->rank + r) * KEYS / 2 + k * 16, 16);
}

/* GROUP rows of the query from row `at`, zeros past the last: digits 2, 1, 0 and then zeros, four
 * to a word, [row / 4 + 16][GROUP]. `bytes` is room for 16 rows. */
static void take_query(const MlaRun *p, i64 row, i64 at, uint32_t *to, float *factors,
                       int8_t *bytes) {
    for (i64 i = 0; i < GROUP; i += 16) {
        memset(bytes, 0, (size_t)(16 * row));
        for (i64 k = 0; k < 16; k++) {
            factors[i + k] = 0;
            if (at + i + k < p->rows)
                factors[i + k] = take_digits(p->query + (at + i + k) * p->width, p->width,
                                             bytes + k * row + 2 * p->width, -p->width, 0);
        }
        for (i64 r = 0; r < row / 4; r += 16)
            transpose((const uint32_t *)bytes + r, row / 4, to + r * GROUP + i, GROUP);
    }
    memset(to + row / 4 * GROUP, 0, 16 * GROUP * 4);
}

/* Two more keys' scores to probabilities relative to the group's top. */
static inline __attribute__((always_inline)) void soften(Softmax *w) {
    if (w->next == KEYS) return;
    float *s = w->scores + w->next * GROUP;
    for (i64 c = 0; c < 2; c++, s += 16) {
        const __m512 x0 = _mm512_loadu_ps(s), x1 = _mm512_loadu_ps(s + GROUP);
        const __m512 p0 = power_of_2(_mm512_fmsub_ps(x0, w->factor[c], w->top[c]));
        const __m512 p1 = power_of_2(_mm512_fmsub_ps(x1, w->factor[c], w->top[c]));
        w->sum[c] = _mm512_add_ps(w->sum[c], _mm512_add_ps(p0, p1));
        __m512i first[2], second[2];
        split(p0, first);
        split(p1, second);
        _mm512_storeu_si512(s, pair(first[0], second[0]));
        _mm512_storeu_si512(s + GROUP, pair(first[1], second[1]));
    }
    w->next += 2;
}

/* out [32][GROUP] = a b over 64 * steps digits, a in tiles; another group's softmax goes on. */
static inline __attribute__((always_inline)) void multiply_digits(int32_t *out, const int8_t *a,
                                                                  i64 row, const uint32_t *b,
                                                                  i64 width, Softmax *other) {
    settle_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (i64 i = 0; i < width; i += 64, a += 1024, b += 16 * GROUP) {
        load_a(a, 16 * row, 64);
        load_b(b, GROUP);
        MULTIPLY(_tile_dpbssd);
        soften(other);
    }
    store_sums(out);
}

/* Scores [KEYS][GROUP] without the rows' factors; `best` follows their greatest. `sums` is room for
 * 2 * 32 * GROUP. */
static void score(const MlaRun *p, const Group *group, const uint32_t *query, i64 row, i64 from,
                  const int8_t *rows, const float *factors, float *scores, int32_t *sums,
                  __m512 *best, Softmax *other) {
    enum { SIZE = 32 * GROUP };
    const i64 W = p->width;
    const __m512 byte = _mm512_set1_ps(256);
    for (i64 k = 0; k < KEYS; k += 32) {
        /* Digits 0 1 2 of a key against 2 1 0, 1 0 or 0 of a row: products of one power of 256
         * each, summed at once. What follows of the key meets the zeros after the row. */
        const int8_t *a = rows + k * row;
        int32_t *place = (int32_t *)scores + k * GROUP; /* of the first, to take less of the cache */
        multiply_digits(place, a, row, query + W / 4 * 2 * GROUP, W, other);
        multiply_digits(sums, a, row, query + W / 4 * GROUP, 2 * W, other);
        multiply_digits(sums + SIZE, a, row, query, 3 * W, other);
        const int is_masked = from + k + 32 > group->end[0];
        for (i64 i = 0; i < 32; i++)
            for (i64 c = 0; c < 2; c++) {
                const i64 at = i * GROUP + c * 16;
                const __m512i low = _mm512_loadu_si512(sums + SIZE + at);
                __m512 x = _mm512_cvtepi32_ps(_mm512_loadu_si512(place + at));
                x = _mm512_fmadd_ps(x, byte, _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + at)));
                x = _mm512_fmadd_ps(x, byte, _mm512_cvtepi32_ps(low));
                x = _mm512_mul_ps(x, _mm512_set1_ps(factors[k + i]));
                if (is_masked) {
                    const __mmask16 unseen =
                        _mm512_cmple_epi32_mask(_mm512_loadu_si512(group->end + c * 16),
                                                _mm512_set1_epi32((int)(from + k + i)));
                    x = _mm512_mask_mov_ps(x, unseen, _mm512_set1_ps(-INFINITY));
                }
                best[c] = _mm512_max_ps(best[c], x);
                _mm512_storeu_ps(place + at, x);
            }
    }
}

/* Begin the softmax of a group's scores; what was summed before [rank][GROUP] follows the top. */
static void begin_softmax(Softmax *w, Group *group, float *scores, const __m512 *best, float *total,
                          i64 rank) {
    for (i64 c = 0; c < 2; c++) {
        float *top = group->top + c * 16, *sum = group->sum + c * 16;
        const __m512 factor = _mm512_loadu_ps(group->factor + c * 16);
        const __m512 before = _mm512_loadu_ps(top);
        const __m512 now = _mm512_max_ps(before, best[c]);
        if (_mm512_cmpneq_ps_mask(now, before)) {
            const __m512 fade = power_of_2(_mm512_mul_ps(_mm512_sub_ps(before, now), factor));
            _mm512_storeu_ps(top, now);
            _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), fade));
            for (i64 r = 0; r < rank; r++) {
                float *at = total + r * GROUP + c * 16;
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), fade));
            }
        }
        w->factor[c] = factor;
        w->top[c] = _mm512_mul_ps(now, factor);
        w->sum[c] = _mm512_setzero_ps();
    }
    w->scores = scores;
    w->next = 0;
}

static void end_softmax(Softmax *w, Group *group) {
    while (w->next < KEYS) soften(w);
    for (i64 c = 0; c < 2; c++) {
        float *sum = group->sum + c * 16;
        _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), w->sum[c]));
    }
}

/* total [rank][GROUP] += columns probs, the three largest of the four products of their pieces;
 * another group's softmax goes on. */
static void mix(float *total, const uint16_t *columns, i64 rank, const float *probs,
                Softmax *other) {
    for (i64 r = 0; r < rank; r += 32, total += 32 * GROUP) {
        const uint16_t *a = columns + r * KEYS;
        const uint32_t *b = (const uint32_t *)probs;
        settle_memory();
        _tile_loadd(0, total, GROUP * 4);
        _tile_loadd(1, total + 16, GROUP * 4);
        _tile_loadd(2, total + 16 * GROUP, GROUP * 4);
        _tile_loadd(3, total + 16 * GROUP + 16, GROUP * 4);
        for (i64 k = 0; k < KEYS; k += 32, a += 512, b += 32 * GROUP) {
            /* In an order that keeps one side loaded. */
            load_a(a, 16 * KEYS * 2, 64);
            load_b(b + GROUP, 2 * GROUP);
            MULTIPLY(_tile_dpbf16ps);
            soften(other);
            load_b(b, 2 * GROUP);
            MULTIPLY(_tile_dpbf16ps);
            soften(other);
            load_a(a + rank * KEYS, 16 * KEYS * 2, 64);
            MULTIPLY(_tile_dpbf16ps);
        }
        store_sums(total);
    }
}

/* One thread's groups of rows; keys outside, so that each is split once. */
static void *attend(void *argument) {
    Part *part = argument;
    const MlaRun *p = part->run;
    const i64 R = p->rank, first = part->index * GROUP, step = part->count * GROUP;
    const i64 count = (p->rows - first + step - 1) / step;
    const i64 before = p->length - p->rows / p->heads;
    const i64 row = (3 * p->width + 63) / 64 * 64; /* bytes of digits */
    /* In words; each is a multiple of 16. */
    const i64 query = (row / 4 + 16) * GROUP, total = R * GROUP, group = sizeof(Group) / 4;
    const i64 rows_size = KEYS * row / 4, columns_size = KEYS * R, tile = KEYS * GROUP;
    const i64 spare_size = columns_size > 4 * row ? columns_size : 4 * row;
    const i64 size = count * (query + total + group) + rows_size + columns_size + spare_size +
                     2 * tile + 2 * 32 * GROUP + KEYS;
    uint32_t *scratch = aligned_alloc(64, (size_t)size * 4);
    if (!scratch) {
        part->failed = 1;
        return NULL;
    }
    uint32_t *queries = scratch, *spare = queries + count * query;
    float *totals = (float *)(spare + spare_size);
    Group *groups = (Group *)(totals + count * total);
    int8_t *rows = (int8_t *)(groups + count);
    uint16_t *columns = (uint16_t *)(rows + rows_size * 4);
    int32_t *sums = (int32_t *)(columns + columns_size * 2);
    float *scores = (float *)(sums + 2 * 32 * GROUP), *others = scores + tile;
    float *factors = others + tile;
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
    memset(totals, 0, (size_t)(count * total) * 4);
    i64 last = 0; /* the key after the last that any row sees */
    for (i64 g = 0; g < count; g++) {
        const i64 at = first + g * step;
        take_query(p, row, at, queries + g * query, groups[g].factor, (int8_t *)spare);
        for (i64 i = 0; i < GROUP; i++) {
            const i64 own = at + i < p->rows ? at + i : p->rows - 1;
            groups[g].top[i] = -INFINITY;
            groups[g].sum[i] = 0;
            groups[g].end[i] = (int32_t)(before + own / p->heads + 1);
        }
        last = groups[g].end[GROUP - 1];
    }
    for (i64 from = 0; from < last; from += KEYS) {
        take_keys(p, row, from, rows, factors, columns, spare);
        Softmax work = {.next = KEYS};
        i64 previous = -1; /* group whose scores become probabilities */
        for (i64 g = 0; g <= count; g++) {
            if (g < count && from >= groups[g].end[GROUP - 1]) continue;
            __m512 best[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
            if (g < count)
                score(p, groups + g, queries + g * query, row, from, rows, factors, scores, sums,
                      best, &work);
            if (previous >= 0) end_softmax(&work, groups + previous);
            const float *probs = work.scores;
            if (g < count) begin_softmax(&work, groups + g, scores, best, totals + g * total, R);
            if (previous >= 0) mix(totals + previous * total, columns, R, probs, &work);
            float *swap = scores;
            scores = others;
            others = swap;
            previous = g;
        }
    }
    _tile_release();
    for (i64 g = 0; g < count; g++) {
        const i64 at = first + g * step;
        for (i64 i = 0; i < GROUP && at + i < p->rows; i += 16)
            for (i64 r = 0; r < R; r += 16) {
                uint32_t part[16][16] __attribute__((aligned(64)));
                transpose((uint32_t *)totals + g * total + r * GROUP + i, GROUP, part[0], 16);
                for (i64 k = 0; k < 16 && at + i + k < p->rows; k++)
                    _mm512_storeu_ps(p->mixed + (at + i + k) * R + r,
                                     _mm512_div_ps(_mm512_load_ps(part[k]),
                                                   _mm512_set1_ps(groups[g].sum[i + k])));
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
        parts[i] = (Part){p, i, count, 0};
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
