/* Products of float32 rows with packed weights, which are never turned into a matrix of numbers.
 *
 * Values and scales lie transposed: [columns / 8][rows] words of eight 4-bit values, or
 * [columns][rows] FP8 numbers. LANES rows of the weight are LANES lanes, so sums need no shuffles, and
 * with one row of activations memory is read in a few long streams.
 *
 * A number of the result is summed in the order of the columns, with the same roundings whatever the
 * number of rows and threads: its bits depend on its own row alone.
 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "vectors.h"

/* One product; mirrors _ProductStruct. Steps are in numbers (words, bytes). */
typedef struct {
    i64 rows, columns, outputs;          /* of the activations; of the weight */
    i64 block_rows, block_columns;       /* that share a scale */
    i64 digits;                          /* of 8 bits, of activations for INT4 */
    i64 x_row, out_row, values_step, scale_row, scale_step;
    i64 is_packed, scale_kind;           /* 0 float32, 1 bfloat16, 2 float16 */
    const float *x;
    const void *values, *scale;
    float *out; /* [rows][outputs], is set */
} Product;

typedef struct {
    const Product *products;
    uint32_t *const *digits; /* of each product with INT4 */
    i64 count, index, parts;
    int failed;
} ProductPart;

#if HAS_AVX2
typedef uint32_t Words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#if HAS_AVX512
typedef __m512i Raw;
INLINE Floats from_float16(Halves x) { return (Floats)_mm512_cvtph_ps((__m256i)x); }
/* Compilers make more than one instruction of a conversion that is not spelt out. */
INLINE Words widen_halves(Halves x) { return (Words)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE Halves widen_bytes(Bytes x) { return (Halves)_mm256_cvtepi8_epi16((__m128i)x); }
#else
typedef __m256i Raw;
INLINE Floats from_float16(Halves x) { return (Floats)_mm256_cvtph_ps((__m128i)x); }
INLINE Words widen_halves(Halves x) { return (Words)_mm256_cvtepu16_epi32((__m128i)x); }
INLINE Halves widen_bytes(Bytes x) {
    int64_t bytes;
    memcpy(&bytes, &x, 8);
    return (Halves)_mm_cvtepi8_epi16(_mm_cvtsi64_si128(bytes));
}
#endif

/* Sums of 32 columns: 16-bit numbers in pairs where there is no instruction for four at once, which
 * hold 8 products of 2 x 15 x 128. */
#if HAS_AVX512 && defined(__AVX512VNNI__)
#define HAS_BYTE_SUMS 1
INLINE Raw begin_sums(Ints sum) { return (Raw)sum; }
INLINE Raw add_products(Raw sum, Words w, Words x) {
    return _mm512_dpbusd_epi32(sum, (Raw)w, (Raw)x);
}
INLINE Ints end_sums(Raw sums, Ints before) { (void)before; return (Ints)sums; }
#elif HAS_AVX512
#define HAS_BYTE_SUMS 0
INLINE Raw begin_sums(Ints sum) { (void)sum; return _mm512_setzero_si512(); }
INLINE Raw add_products(Raw sum, Words w, Words x) {
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16((Raw)w, (Raw)x));
}
INLINE Ints end_sums(Raw sums, Ints before) {
    return before + (Ints)_mm512_madd_epi16(sums, _mm512_set1_epi16(1));
}
#elif defined(__AVXVNNI__)
#define HAS_BYTE_SUMS 1
INLINE Raw begin_sums(Ints sum) { return (Raw)sum; }
INLINE Raw add_products(Raw sum, Words w, Words x) {
    return _mm256_dpbusd_avx_epi32(sum, (Raw)w, (Raw)x);
}
INLINE Ints end_sums(Raw sums, Ints before) { (void)before; return (Ints)sums; }
#else
#define HAS_BYTE_SUMS 0
INLINE Raw begin_sums(Ints sum) { (void)sum; return _mm256_setzero_si256(); }
INLINE Raw add_products(Raw sum, Words w, Words x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16((Raw)w, (Raw)x));
}
INLINE Ints end_sums(Raw sums, Ints before) {
    return before + (Ints)_mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}
#endif

/* LANES scales in a row of memory. */
INLINE Floats load_scales(const void *scale, i64 at, i64 kind) {
    if (kind == 0) return load_floats((const float *)scale + at);
    const Halves x = *(const Halves *)((const uint16_t *)scale + at);
    if (kind == 2) return from_float16(x);
    return (Floats)(widen_halves(x) << 16);
}

INLINE float load_scale(const void *scale, i64 at, i64 kind) {
    if (kind == 0) return ((const float *)scale)[at];
    const uint16_t x = ((const uint16_t *)scale)[at];
    if (kind == 2) return _cvtsh_ss(x);
    const uint32_t bits = (uint32_t)x << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

/* ---- INT4 ---- */

/* Rows as whole numbers: of each 8 columns and digit a word of the even ones and one of the odd ones,
 * digits from the highest on; per group the factor and, times 8, what the digits sum up to. */
typedef struct {
    uint32_t *words; /* [rows][columns / 8][digits][2] */
    float *factors;  /* [rows][groups] */
    int32_t *sums;   /* [rows][groups][digits] */
} Digits;

static i64 words_of(const Product *p) { /* that take_digits fills */
    if (!p->is_packed) return 0;
    const i64 groups = p->columns / p->block_columns;
    return p->rows * (p->columns / 8 * p->digits * 2 + groups * (1 + p->digits));
}

static int has_same_digits(const Product *a, const Product *b) {
    return a->is_packed && b->is_packed && a->x == b->x && a->rows == b->rows &&
           a->columns == b->columns && a->x_row == b->x_row && a->block_columns == b->block_columns &&
           a->digits == b->digits;
}

static Digits digits_at(const Product *p, void *memory) {
    Digits d = {.words = memory};
    d.factors = (float *)(d.words + p->rows * (p->columns / 8) * p->digits * 2);
    d.sums = (int32_t *)(d.factors + p->rows * (p->columns / p->block_columns));
    return d;
}

static void take_digits(const Product *p, void *memory) {
    const Digits d = digits_at(p, memory);
    const i64 size = p->block_columns, groups = p->columns / size, digits = p->digits;
    const float greatest = digits == 1 ? 127 : 127 * 256;
    for (i64 row = 0; row < p->rows; row++)
        for (i64 g = 0; g < groups; g++) {
            const float *x = p->x + row * p->x_row + g * size;
            int8_t *to = (int8_t *)(d.words + (row * groups + g) * (size / 8) * digits * 2);
            int32_t most = 0, sum[2] = {0, 0}; /* in bits, where NaN is more than any number */
            for (i64 i = 0; i < size; i++) {
                int32_t bits;
                memcpy(&bits, x + i, 4);
                bits &= 0x7fffffff;
                most = bits > most ? bits : most;
            }
            float found;
            memcpy(&found, &most, 4);
            const float scale = found < 1e-30f ? 0 : greatest / found;
            for (i64 i = 0; i < size; i++) {
                const int32_t n = (int32_t)rintf(x[i] * scale);
                const i64 place = i / 8 * digits * 8 + i % 2 * 4 + i % 8 / 2;
                if (digits == 1) {
                    to[place] = (int8_t)n;
                    sum[0] += (int8_t)n;
                } else {
                    const int32_t low = (int8_t)n, high = (n - low) >> 8;
                    to[place] = (int8_t)high;
                    to[place + 8] = (int8_t)low;
                    sum[0] += (int8_t)high;
                    sum[1] += low;
                }
            }
            d.factors[row * groups + g] = found / greatest; /* NaN and infinity spoil the row */
            for (i64 j = 0; j < digits; j++) d.sums[(row * groups + g) * digits + j] = 8 * sum[j];
        }
}

/* out [tall][wide * LANES] += of groups first .. last - 1; the outputs begin at `at`. */
INLINE void int4_tile(const Product *p, const Digits *d, i64 row, i64 at, i64 first, i64 last,
                      const int tall, const int wide, const int digits) {
    const i64 groups = p->columns / p->block_columns, words = p->block_columns / 8;
    const i64 ahead = words * p->values_step;
    const Words low = (Words){0} + 0x0f0f0f0fu;
    Floats total[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++)
            total[i][j] = load_floats(p->out + (row + i) * p->out_row + at + j * LANES);
    for (i64 g = first; g < last; g++) {
        Ints sum[4][4][2];
#pragma GCC unroll 4
        for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++)
#pragma GCC unroll 2
                for (int k = 0; k < digits; k++)
                    sum[i][j][k] = (Ints){0} - d->sums[((row + i) * groups + g) * digits + k];
        for (i64 w = 0; w < words; w += 4) {
            Raw part[4][4][2];
#pragma GCC unroll 4
            for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
                for (int j = 0; j < wide; j++)
#pragma GCC unroll 2
                    for (int k = 0; k < digits; k++) part[i][j][k] = begin_sums(sum[i][j][k]);
#pragma GCC unroll 4
            for (int step = 0; step < 4; step++) {
                const i64 word = g * words + w + step;
                const uint32_t *values = (const uint32_t *)p->values + word * p->values_step + at;
                Words even[4], odd[4];
#pragma GCC unroll 4
                for (int j = 0; j < wide; j++) {
                    const Words both = *(const Words *)(values + j * LANES);
                    if (tall == 1) /* the same place of the words that come next */
                        __builtin_prefetch(values + ahead + j * LANES, 0, 2);
                    even[j] = both & low;
                    odd[j] = (both >> 4) & low;
                }
#pragma GCC unroll 4
                for (int i = 0; i < tall; i++)
#pragma GCC unroll 2
                    for (int k = 0; k < digits; k++) {
                        const uint32_t *x =
                            d->words + (((row + i) * (p->columns / 8) + word) * digits + k) * 2;
                        const Words x0 = (Words){0} + x[0], x1 = (Words){0} + x[1];
#pragma GCC unroll 4
                        for (int j = 0; j < wide; j++) {
                            part[i][j][k] = add_products(part[i][j][k], even[j], x0);
                            part[i][j][k] = add_products(part[i][j][k], odd[j], x1);
                        }
                    }
            }
#pragma GCC unroll 4
            for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
                for (int j = 0; j < wide; j++)
#pragma GCC unroll 2
                    for (int k = 0; k < digits; k++)
                        sum[i][j][k] = end_sums(part[i][j][k], sum[i][j][k]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) {
            const Floats scale = load_scales(p->scale, g * p->scale_step + at + j * LANES, p->scale_kind);
#pragma GCC unroll 4
            for (int i = 0; i < tall; i++) {
                Ints whole = sum[i][j][0];
                if (digits == 2) whole = (whole << 8) + sum[i][j][1];
                const Floats factor = scale * d->factors[(row + i) * groups + g];
                total[i][j] =
                    multiply_add(__builtin_convertvector(whole, Floats), factor, total[i][j]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++)
            store_floats(p->out + (row + i) * p->out_row + at + j * LANES, total[i][j]);
}

/* Rows that are computed with at once, and vectors of outputs, so that sums stay in registers. */
enum { MANY = HAS_AVX512 ? 4 : 2, BROAD = HAS_AVX512 ? 2 : 1, ALONE = HAS_AVX512 ? 4 : 2 };

INLINE void int4_rows(const Product *p, const Digits *d, i64 begin, i64 end, i64 first, i64 last,
                      const int digits) {
    i64 row = 0;
    for (; row + MANY <= p->rows; row += MANY) {
        i64 at = begin;
        for (; at + BROAD * LANES <= end; at += BROAD * LANES)
            int4_tile(p, d, row, at, first, last, MANY, BROAD, digits);
        for (; at < end; at += LANES) int4_tile(p, d, row, at, first, last, MANY, 1, digits);
    }
    for (; row < p->rows; row++) {
        i64 at = begin;
        for (; at + ALONE * LANES <= end; at += ALONE * LANES)
            int4_tile(p, d, row, at, first, last, 1, ALONE, digits);
        for (; at < end; at += LANES) int4_tile(p, d, row, at, first, last, 1, 1, digits);
    }
}

/* Outputs begin .. end - 1, of all rows. */
static void multiply_int4(const Product *p, void *memory, i64 begin, i64 end) {
    const Digits d = digits_at(p, memory);
    const i64 groups = p->columns / p->block_columns;
    /* Few words at once: one row reads memory in as many streams. Many rows keep what they read in
     * the second-level cache, and their sums in registers for longer. */
    const i64 step = p->rows < MANY ? 1 : (512 + p->block_columns - 1) / p->block_columns;
    for (i64 first = 0; first < groups; first += step) {
        const i64 last = first + step < groups ? first + step : groups;
if (p->digits == 1)
            int4_rows(p, &d, begin, end, first, last, 1);
        else
            int4_rows(p, &d, begin, end, first, last, 2);
    }
}

/* ---- FP8 ---- */

/* LANES FP8 numbers times 2^-8: the bits, shifted, are those of a float16. */
INLINE Floats load_fp8(const int8_t *x, const int may_be_nan) {
    Halves bits = widen_bytes(*(const Bytes *)x) << 7;
    bits &= (uint16_t)~0x4000; /* where the sign was carried to */
    if (may_be_nan) bits |= (Halves)((bits & 0x3f80) == 0x3f80) & 0x7e00;
    return from_float16(bits);
}

enum { PANEL = 128, ACROSS = WIDE * LANES }; /* columns, rows of the weight that are numbers at once */

/* Scales, times 2^8, of LANES outputs from `at` on and the columns of `column`'s block. */
INLINE Floats fp8_scales(const Product *p, i64 at, i64 column) {
    const i64 block = column / p->block_columns * p->scale_step;
    if (p->block_rows > 1)
        return (Floats){0} + 256.0f * load_scale(p->scale, at / p->block_rows * p->scale_row + block,
                                                 p->scale_kind);
    Floats scale = {0};
    for (i64 i = 0; i < LANES; i++)
        scale[i] = 256.0f * load_scale(p->scale, (at + i) * p->scale_row + block, p->scale_kind);
    return scale;
}

static int has_nan(const int8_t *values, i64 step, i64 rows, i64 count) {
    int8_t most = 0;
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < count; j++) {
            const int8_t x = values[i * step + j] & 0x7f;
            most = x > most ? x : most;
        }
    return most == 0x7f;
}

/* sums [width] += of `rows` columns of the weight and as many numbers. */
INLINE void fp8_columns(float *sums, const float *x, const int8_t *values, i64 step, i64 width,
                        const int rows, const int may_be_nan) {
    for (i64 at = 0; at < width; at += LANES) {
        Floats sum = load_floats(sums + at);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            if (rows > 1) __builtin_prefetch(values + (i + rows) * step + at, 0, 2);
            sum = multiply_add((Floats){0} + x[i], load_fp8(values + i * step + at, may_be_nan), sum);
        }
        store_floats(sums + at, sum);
    }
}

/* Columns `first` on, `count` of them, of outputs begin .. end - 1, for one row. */
static void fp8_row(const Product *p, i64 first, i64 count, i64 begin, i64 end, float *sums) {
    enum { AT_ONCE = 8 };
    const i64 step = p->values_step, width = end - begin;
    memset(sums, 0, (size_t)width * sizeof(float));
    for (i64 k = 0; k < count; k += AT_ONCE) {
        const float *x = p->x + first + k;
        const int8_t *values = (const int8_t *)p->values + (first + k) * step + begin;
        const i64 rows = count - k < AT_ONCE ? count - k : AT_ONCE;
        if (rows < AT_ONCE || has_nan(values, step, rows, width))
            for (i64 i = 0; i < rows; i++)
                fp8_columns(sums, x + i, values + i * step, step, width, 1, 1);
        else
            fp8_columns(sums, x, values, step, width, AT_ONCE, 0);
    }
}

/* Columns `first` on, `count` of them, of outputs `at` on, `across` of them, for all rows. */
static void fp8_panel(const Product *p, i64 first, i64 count, i64 at, i64 across, float *panel,
                      float *sums) {
    const int8_t *values = (const int8_t *)p->values + first * p->values_step + at;
    for (i64 k = 0; k < count; k++)
        for (i64 j = 0; j < across; j += LANES)
            store_floats(panel + k * ACROSS + j, load_fp8(values + k * p->values_step + j, 1));
    memset(sums, 0, (size_t)(p->rows * across) * sizeof(float));
    multiply(sums, across, p->x + first, p->x_row, 1, panel, ACROSS, p->rows, count, across);
}

/* Outputs begin .. end - 1, of all rows. Of PANEL columns the sum is made without scales. Returns -1
 * without memory. */
static int multiply_fp8(const Product *p, i64 begin, i64 end) {
    const i64 width = p->rows == 1 ? end - begin : ACROSS;
    float *panel = malloc((size_t)(PANEL * ACROSS + p->rows * width) * sizeof(float));
    if (!panel) return -1;
    float *sums = panel + PANEL * ACROSS;
    for (i64 first = 0; first < p->columns; first += PANEL) {
        const i64 count = p->columns - first < PANEL ? p->columns - first : PANEL;
        for (i64 at = begin; at < end; at += width) {
            const i64 across = end - at < width ? end - at : width;
            if (p->rows == 1)
                fp8_row(p, first, count, begin, end, sums);
            else
                fp8_panel(p, first, count, at, across, panel, sums);
            for (i64 j = 0; j < across; j += LANES) {
                const Floats scale = fp8_scales(p, at + j, first);
                for (i64 row = 0; row < p->rows; row++) {
                    float *to = p->out + row * p->out_row + at + j;
                    const Floats sum = load_floats(sums + row * across + j);
                    store_floats(to, multiply_add(sum, scale, load_floats(to)));
                }
            }
        }
    }
    free(panel);
    return 0;
}

/* ---- several products, on several threads ---- */

static void *multiply_part(void *argument) {
    ProductPart *part = argument;
    for (i64 i = 0; i < part->count; i++) {
        const Product *p = part->products + i;
        const i64 vectors = p->outputs / LANES;
        const i64 begin = vectors * part->index / part->parts * LANES;
        const i64 end = vectors * (part->index + 1) / part->parts * LANES;
        for (i64 row = 0; row < p->rows && end > begin; row++)
            memset(p->out + row * p->out_row + begin, 0, (size_t)(end - begin) * sizeof(float));
        if (p->is_packed) {
            multiply_int4(p, part->digits[i], begin, end);
        } else if (multiply_fp8(p, begin, end)) {
            part->failed = 1;
        }
    }
    return NULL;
}

/* Whether ling_products can be called, and products of bytes are summed by one instruction. */
int ling_has_products(void) { return 1; }
int ling_has_byte_sums(void) { return HAS_BYTE_SUMS; }

/* The outputs of each product are a multiple of ling_lanes(), INT4 columns of the group's size, FP8
 * blocks of PANEL columns or all, and of a multiple of ling_lanes() rows or one. Returns -1 without
 * memory. */
int ling_products(const Product *products, i64 count, i64 num_threads) {
    enum { MOST = 64 };
    ProductPart parts[MOST];
    pthread_t threads[MOST];
    i64 words = count * 2; /* of addresses, then of digits */
    for (i64 i = 0; i < count; i++) words += words_of(products + i);
    uint32_t *memory = malloc((size_t)words * 4);
    if (!memory) return -1;
    uint32_t **digits = (uint32_t **)memory, *next = memory + count * 2;
    for (i64 i = 0; i < count; i++) {
        digits[i] = i && has_same_digits(products + i, products + i - 1) ? digits[i - 1] : next;
        if (digits[i] != next || !products[i].is_packed) continue;
        take_digits(products + i, next);
        next += words_of(products + i);
    }
    const i64 n = num_threads < MOST ? num_threads : MOST;
    int failed = 0;
    for (i64 i = n - 1; i >= 0; i--) {
        parts[i] = (ProductPart){products, digits, count, i, n, 0};
        threads[i] = 0;
        /* The first part, and what gets no thread of its own, is done here. */
        if (!i || pthread_create(&threads[i], NULL, multiply_part, &parts[i])) {
            threads[i] = 0;
            multiply_part(&parts[i]);
        }
    }
    for (i64 i = 0; i < n; i++) {
        if (threads[i]) pthread_join(threads[i], NULL);
        failed |= parts[i].failed;
    }
    free(memory);
    return failed ? -1 : 0;
}
#else
int ling_has_products(void) { return 0; }
int ling_products(const Product *products, i64 count, i64 num_threads) {
    (void)products, (void)count, (void)num_threads;
    return -1;
}
#endif
