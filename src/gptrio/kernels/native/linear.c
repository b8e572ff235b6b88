/* Products of a few rows with a large weight that is read once, at the speed of memory.
 *
 * Storage is float32, bfloat16 or float16; sums are float32, rounded once at the end. Every sum runs in one fixed order
 * whatever the number of threads, so results do not depend on it. */
#include <stdlib.h>

#include "product.h"

#define BLOCK 4      /* rows of x that share one pass over the weight's registers */
#define PASS 8       /* rows of x that share one read of an (in, out) weight */
#define CHUNK 512    /* columns of an (in, out) weight that one task accumulates */
#define AHEAD 3072   /* elements between a load and the prefetch beside it */

/* Dot products of `rows` rows of x with `cols` rows of an (out, in) weight. */
INLINE void dots(const Product *p, long row, long col, const int rows, const int cols, float out[][64], long at, int dtype) {
  const uint8_t *w = (const uint8_t *)p->w + col * p->k * (dtype == F32 ? 4 : 2);
  vf acc[BLOCK][4] = {{{0}}};
  long k = 0;
  for (; k + LANES <= p->k; k += LANES) {
    vf wv[4];
    for (int c = 0; c < cols; c++) {
      long at = c * p->k + k;
      __builtin_prefetch(w + (at + AHEAD) * (dtype == F32 ? 4 : 2));
      wv[c] = load(w, at, dtype);
    }
    for (int r = 0; r < rows; r++) {
      vf xv = load(p->x, (row + r) * p->k + k, F32);
      for (int c = 0; c < cols; c++) acc[r][c] += xv * wv[c];
    }
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < cols; c++) {
      float total = sum(acc[r][c]);
      for (long j = k; j < p->k; j++) total += p->x[(row + r) * p->k + j] * load1(w, c * p->k + j, dtype);
      out[r][at + c] = total;
    }
}

INLINE void dots_of_rows(const Product *p, long row, long rows, long col, int cols, float out[][64], long at, int dtype) {
#define CASE(R)                                                                                                        \
  case R:                                                                                                              \
    if (cols == 4) dots(p, row, col, R, 4, out, at, dtype);                                                            \
    else for (int c = 0; c < cols; c++) dots(p, row, col + c, R, 1, out, at + c, dtype);                               \
    break;
  switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

/* One task of an (out, in) weight: up to 64 of its rows. */
INLINE void task_out_in(const Product *p, long start, int dtype) {
  long count = p->n - start < 64 ? p->n - start : 64;
  for (long row = 0; row < p->m; row += BLOCK) {
    float out[BLOCK][64];
    long rows = p->m - row < BLOCK ? p->m - row : BLOCK;
    for (long c = 0; c < count; c += 4)
      dots_of_rows(p, row, rows, start + c, count - c < 4 ? (int)(count - c) : 4, out, c, dtype);
    for (long r = 0; r < rows; r++) finish(p, row + r, start, out[r], count, dtype);
  }
}

/* acc[r] += x[row + r, k:k + depth] @ w[k:k + depth, start:start + count] */
INLINE void add_rows(const Product *p, long row, const int rows, long k, const int depth, long start, long count,
                     float acc[][CHUNK], int dtype) {
  long j = 0;
  for (; j + LANES <= count; j += LANES) {
    vf a[BLOCK];
    for (int r = 0; r < rows; r++) a[r] = load(acc[r], j, F32);
    for (int d = 0; d < depth; d++) {
      long at = (k + d) * p->n + start + j;
      if (row == 0) __builtin_prefetch((const uint8_t *)p->w + (at + depth * p->n) * (dtype == F32 ? 4 : 2));
      vf wv = load(p->w, at, dtype);
      for (int r = 0; r < rows; r++) a[r] += p->x[(row + r) * p->k + k + d] * wv;
    }
    for (int r = 0; r < rows; r++) store(acc[r], j, a[r], F32);
  }
  for (; j < count; j++)
    for (int d = 0; d < depth; d++)
      for (int r = 0; r < rows; r++)
        acc[r][j] += p->x[(row + r) * p->k + k + d] * load1(p->w, (k + d) * p->n + start + j, dtype);
}

INLINE void add_all_rows(const Product *p, long first, long rows, long k, const int depth, long start, long count,
                         float acc[][CHUNK], int dtype) {
  for (long r = 0; r < rows; r += BLOCK) {
    switch (rows - r < BLOCK ? rows - r : BLOCK) {
      case 1: add_rows(p, first + r, 1, k, depth, start, count, acc + r, dtype); break;
      case 2: add_rows(p, first + r, 2, k, depth, start, count, acc + r, dtype); break;
      case 3: add_rows(p, first + r, 3, k, depth, start, count, acc + r, dtype); break;
      case 4: add_rows(p, first + r, 4, k, depth, start, count, acc + r, dtype); break;
    }
  }
}

/* One task of an (in, out) weight: up to CHUNK of its columns. */
INLINE void task_in_out(const Product *p, long start, long width, int dtype) {
  long count = p->n - start < width ? p->n - start : width;
  for (long first = 0; first < p->m; first += PASS) {
    float acc[PASS][CHUNK];
    long rows = p->m - first < PASS ? p->m - first : PASS, k = 0;
    memset(acc, 0, sizeof(acc[0]) * rows);
    for (; k + 8 <= p->k; k += 8) add_all_rows(p, first, rows, k, 8, start, count, acc, dtype);
    for (; k < p->k; k++) add_all_rows(p, first, rows, k, 1, start, count, acc, dtype);
    for (long r = 0; r < rows; r++) finish(p, first + r, start, acc[r], count, dtype);
  }
}

#define TASKS(NAME, DTYPE)                                                                                             \
  static void NAME(const Product *p, int transposed, long width, int threads) {                                        \
    _Pragma("omp parallel for schedule(dynamic, 1) num_threads(threads)") for (long s = 0; s < p->n; s += width) {     \
      if (transposed) task_in_out(p, s, width, DTYPE);                                                                 \
      else task_out_in(p, s, DTYPE);                                                                                   \
    }                                                                                                                  \
  }
TASKS(tasks_f32, F32)
TASKS(tasks_bf16, BF16)
TASKS(tasks_f16, F16)

static long task_width(long n, int transposed, int threads) {
  if (!transposed) return 64;
  long width = (n / threads + 63) / 64 * 64; /* whole cache lines */
  return width < 64 ? 64 : width > CHUNK ? CHUNK : width;
}

static const float *widen(const void *x, float *out, long count, int dtype) {
  long i = 0;
  for (; i + LANES <= count; i += LANES) *(vf_any *)(out + i) = dtype == BF16 ? load(x, i, BF16) : load(x, i, F16);
  for (; i < count; i++) out[i] = load1(x, i, dtype);
  return out;
}

/* y (m, n) = activation(x (m, k) @ W + bias) + residual.
 *
 * The weight is (n, k), or (k, n) if `transposed`; x, bias, residual and y have the weight's dtype and are contiguous;
 * bias and residual may be null. */
void gptrio_linear(int dtype, int transposed, const void *x, const void *w, const void *bias, const void *residual,
                   void *y, long m, long n, long k, int activation, int threads) {
  float *wide = dtype == F32 ? 0 : malloc((size_t)(m * k) * sizeof(float));
  if (dtype != F32 && !wide) abort();
  const float *rows = dtype == F32 ? x : widen(x, wide, m * k, dtype);
  Product p = {w, bias, residual, rows, y, m, n, k, activation};
  if (n * k < SMALL) threads = 1;
  long width = task_width(n, transposed, threads);
  if (dtype == F32) tasks_f32(&p, transposed, width, threads);
  else if (dtype == BF16) tasks_bf16(&p, transposed, width, threads);
  else tasks_f16(&p, transposed, width, threads);
  free(wide);
}
