/* What a product is of, and how its sums become results. */
#pragma once
#include "vectors.h"

#define SMALL 65536 /* weights with fewer elements are not worth waking a thread */

typedef struct {
  const void *w, *bias, *residual;
  const float *x; /* (m, k) */
  void *y;        /* (m, n) */
  long m, n, k;
  int activation;
} Product;

/* y[row, col:col + count] = activation(values + bias) + residual */
INLINE void finish(const Product *p, long row, long col, const float *values, long count, int dtype) {
  long at = row * p->n + col, j = 0;
  for (; j + LANES <= count; j += LANES) {
    vf v = load(values, j, F32);
    if (p->bias) v += load(p->bias, col + j, dtype);
    v = activate(v, p->activation);
    if (p->residual) v += load(p->residual, at + j, dtype);
    store(p->y, at + j, v, dtype);
  }
  for (; j < count; j++) {
    vf v = splat(values[j] + (p->bias ? load1(p->bias, col + j, dtype) : 0.0f));
    float residual = p->residual ? load1(p->residual, at + j, dtype) : 0.0f;
    store1(p->y, at + j, activate(v, p->activation)[0] + residual, dtype);
  }
}
