/* Vectors as wide as the processor's, and the product of small float32 matrices that they make.
 *
 * Everything that includes this is one source for all processors: LANES numbers in a vector, and
 * TALL x WIDE vectors of sums that fit into its registers beside their operands.
 */
#ifndef LING_VECTORS_H
#define LING_VECTORS_H
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef int64_t i64;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HAS_AVX512 1
#define HAS_AVX2 1
enum { LANES = 16, TALL = 8, WIDE = 3 }; /* 32 registers */
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HAS_AVX512 0
#define HAS_AVX2 1
enum { LANES = 8, TALL = 6, WIDE = 2 }; /* 16 */
#else
#define HAS_AVX512 0
#define HAS_AVX2 0
enum { LANES = 4, TALL = 4, WIDE = 3 };
#endif

typedef float Floats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load_floats(const float *x) { return *(const Floats *)x; }
INLINE void store_floats(float *to, Floats x) { *(Floats *)to = x; }
/* a where the mask is all ones, b where it is 0. */
INLINE Floats choose(Ints mask, Floats a, Floats b) {
    return (Floats)((mask & (Ints)a) | (~mask & (Ints)b));
}

/* a b + c, rounded once where the processor can; no compiler may change the order of such sums. */
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if HAS_AVX512
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif HAS_AVX2
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* c [tall][wide * LANES] += a b: row i of a has its k numbers `a_next` apart from a + i * a_row. */
INLINE void multiply_tile(float *c, i64 c_row, const float *a, i64 a_row, i64 a_next, const float *b,
                          i64 b_row, i64 k, const int tall, const int wide) {
    Floats sum[TALL][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) sum[i][j] = load_floats(c + i * c_row + j * LANES);
    for (i64 p = 0; p < k; p++) {
        Floats y[WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) y[j] = load_floats(b + p * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < tall; i++) {
            const float x = a[i * a_row + p * a_next];
#pragma GCC unroll 8
            for (int j = 0; j < wide; j++) sum[i][j] = multiply_add((Floats){0} + x, y[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) store_floats(c + i * c_row + j * LANES, sum[i][j]);
}

/* `tall` rows of it and all columns. */
INLINE void multiply_strip(float *c, i64 c_row, const float *a, i64 a_row, i64 a_next, const float *b,
                           i64 b_row, i64 k, i64 columns, const int tall) {
    i64 j = 0;
    for (; j + WIDE * LANES <= columns; j += WIDE * LANES)
        multiply_tile(c + j, c_row, a, a_row, a_next, b + j, b_row, k, tall, WIDE);
    if (columns - j == 2 * LANES)
        multiply_tile(c + j, c_row, a, a_row, a_next, b + j, b_row, k, tall, 2);
    else if (columns - j == LANES)
        multiply_tile(c + j, c_row, a, a_row, a_next, b + j, b_row, k, tall, 1);
}

/* c [rows][columns] += a [rows][k] b [k][columns]; columns a multiple of LANES. A number of c is
 * summed in the order of k, whatever the rest of the shape. */
static void multiply(float *c, i64 c_row, const float *a, i64 a_row, i64 a_next, const float *b,
                     i64 b_row, i64 rows, i64 k, i64 columns) {
    i64 i = 0;
    for (; i + TALL <= rows; i += TALL)
        multiply_strip(c + i * c_row, c_row, a + i * a_row, a_row, a_next, b, b_row, k, columns, TALL);
    for (; i < rows; i++)
        multiply_strip(c + i * c_row, c_row, a + i * a_row, a_row, a_next, b, b_row, k, columns, 1);
}
#endif
