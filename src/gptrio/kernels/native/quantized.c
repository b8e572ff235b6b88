/* Products with int8 and int4 weights; the rows of x are quantized to int8 on the way, UNIT values to a scale.
 *
 * Integer sums are exact, so that results depend neither on threads nor on how the rows are batched. */
#include <stdlib.h>

#include "product.h"

#define UNIT 64      /* elements of a row that meet one register of weights */
#define TILE 64      /* weight rows of one task */
#define BLOCK 4      /* rows of x that share one pass over the weight's registers */
#define AHEAD 4096   /* bytes between a load and the prefetch beside it */

/* One unit of weights in registers, and its products with a unit of x: LANES partial sums of neighbours. */
#if defined(__AVX512VNNI__)
#define OFFSET 128 /* added to weights to make them unsigned */
typedef __m512i Unit;
INLINE Unit int8_unit(const int8_t *w) {
  return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8((char)0x80));
}
INLINE Unit int4_unit(const uint8_t *w) {
  __m256i packed = _mm256_loadu_si256((const __m256i *)w), mask = _mm256_set1_epi8(15);
  __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(packed, mask)), high, 1);
}
INLINE vi unit_dot(Unit w, const int8_t *x, vi start, int bits) {
  (void)bits;
  return (vi)_mm512_dpbusd_epi32((__m512i)start, w, _mm512_loadu_si512(x));
}
#elif defined(__AVX2__)
#define OFFSET 0
typedef struct {
  __m256i low, high;
} Unit;
INLINE Unit int8_unit(const int8_t *w) {
  return (Unit){_mm256_loadu_si256((const __m256i *)w), _mm256_loadu_si256((const __m256i *)(w + 32))};
}
INLINE Unit int4_unit(const uint8_t *w) {
  __m256i packed = _mm256_loadu_si256((const __m256i *)w), mask = _mm256_set1_epi8(15);
  return (Unit){_mm256_and_si256(packed, mask), _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask)};
}
/* |w| <= 127 and |x| <= 127, so that no sum of two products leaves 16 bits. */
INLINE __m256i half_dot(__m256i w, const int8_t *x, int bits) {
  __m256i xv = _mm256_loadu_si256((const __m256i *)x);
  __m256i pairs = bits == 4 ? _mm256_maddubs_epi16(w, xv) : _mm256_maddubs_epi16(_mm256_abs_epi8(xv), _mm256_sign_epi8(w, xv));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
INLINE vi unit_dot(Unit w, const int8_t *x, vi start, int bits) {
  __m256i low = half_dot(w.low, x, bits), high = half_dot(w.high, x + 32, bits);
#if LANES == 16
  return start + (vi)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
  __m256i sums = _mm256_hadd_epi32(low, high); /* lanes 0 1 4 5: low, 2 3 6 7: high */
  return start + (vi)_mm256_permute4x64_epi64(sums, 0xd8);
#endif
}
#else
#define OFFSET 0
typedef struct {
  int8_t v[UNIT];
} Unit;
INLINE Unit int8_unit(const int8_t *w) {
  Unit u;
  memcpy(u.v, w, UNIT);
  return u;
}
INLINE Unit int4_unit(const uint8_t *w) {
  Unit u;
  for (int j = 0; j < 32; j++) u.v[j] = w[j] & 15, u.v[j + 32] = w[j] >> 4;
  return u;
}
INLINE vi unit_dot(Unit w, const int8_t *x, vi start, int bits) {
  (void)bits;
  for (int j = 0; j < UNIT; j++) start[j * LANES / UNIT] += (int32_t)w.v[j] * x[j];
  return start;
}
#endif

typedef struct {
  Product p;
  const int8_t *x;      /* (m, k) */
  const float *x_scale; /* (m, k / UNIT) */
  const vi *start;      /* (m, k / UNIT): sums that cancel the offset of unsigned weights */
  const void *scale;    /* int8: float32 (n); int4: float16 (n, k / group) */
  int group_bits; /* a group has 1 << group_bits elements */
} Quantized;

/* Scales of the two halves of unit u, one per lane. */
INLINE vf unit_scales(const uint16_t *scale, long u, int group_bits) {
  if (group_bits > 5) return splat(half_to_float(scale[u >> (group_bits - 6)]));
  vf low = splat(half_to_float(scale[2 * u])), high = splat(half_to_float(scale[2 * u + 1]));
#if LANES == 16
  return (vf)_mm512_mask_blend_ps(0xff00, (__m512)low, (__m512)high);
#elif LANES == 8
  return (vf)_mm256_blend_ps((__m256)low, (__m256)high, 0xf0);
#else
  return (vf){low[0], low[0], high[0], high[0]};
#endif
}

/* Products of `rows` rows of x with `cols` rows of the weight. */
INLINE void dots(const Quantized *q, long row, long col, const int rows, const int cols, float out[][TILE], long at,
                 const int bits) {
  long k = q->p.k, units = k / UNIT, groups = k >> q->group_bits;
  const uint8_t *w = (const uint8_t *)q->p.w + col * k * bits / 8;
  const uint16_t *scale = (const uint16_t *)q->scale + col * groups;
  vf acc[BLOCK][4] = {{{0}}};
  for (long u = 0; u < units; u++) {
    Unit unit[4];
    vf s[4];
    for (int c = 0; c < cols; c++) {
      const uint8_t *here = w + (c * k + u * UNIT) * bits / 8;
      if (bits == 8 || u % 2 == 0) __builtin_prefetch(here + AHEAD);
      unit[c] = bits == 8 ? int8_unit((const int8_t *)here) : int4_unit(here);
      if (bits == 4) s[c] = unit_scales(scale + c * groups, u, q->group_bits);
    }
    for (int r = 0; r < rows; r++) {
      long place = (row + r) * units + u;
      const int8_t *x = q->x + (row + r) * k + u * UNIT;
      vf x_scale = splat(q->x_scale[place]);
      for (int c = 0; c < cols; c++) {
        vf sums = __builtin_convertvector(unit_dot(unit[c], x, q->start[place], bits), vf);
        acc[r][c] += sums * (bits == 8 ? x_scale : x_scale * s[c]);
      }
    }
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < cols; c++)
      out[r][at + c] = sum(acc[r][c]) * (bits == 8 ? ((const float *)q->scale)[col + c] : 1.0f);
}

INLINE void dots_of_rows(const Quantized *q, long row, long rows, long col, int cols, float out[][TILE], long at,
                         const int bits) {
#define CASE(R)                                                                                                        \
  case R:                                                                                                              \
    if (cols == 4) dots(q, row, col, R, 4, out, at, bits);                                                             \
    else for (int c = 0; c < cols; c++) dots(q, row, col + c, R, 1, out, at + c, bits);                                \
    break;
  switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

INLINE void task(const Quantized *q, long start, int dtype, const int bits) {
  long count = q->p.n - start < TILE ? q->p.n - start : TILE;
  for (long row = 0; row < q->p.m; row += BLOCK) {
    float out[BLOCK][TILE];
    long rows = q->p.m - row < BLOCK ? q->p.m - row : BLOCK;
    for (long c = 0; c < count; c += 4)
      dots_of_rows(q, row, rows, start + c, count - c < 4 ? (int)(count - c) : 4, out, c, bits);
    for (long r = 0; r < rows; r++) finish(&q->p, row + r, start, out[r], count, dtype);
  }
}

/* Quantize `count` values, a multiple of LANES, to [-127, 127]; the scale that takes them back. */
INLINE float quantize(const void *x, long at, int8_t *out, long count, int dtype) {
  typedef int8_t bytes __attribute__((vector_size(LANES)));
  vf most = {0}, poison = {0}; /* 0, or NaN where a value is not finite */
  for (long i = 0; i < count; i += LANES) {
    vf v = load(x, at + i, dtype);
    vf size = choose(v < 0, -v, v);
    most = choose(most >= size, most, size);
    poison += v * 0.0f;
  }
  float top = 0;
  for (int l = 0; l < LANES; l++) top = top >= most[l] ? top : most[l];
  int usable = sum(poison) == 0;
  float inverse = usable && top > 0 ? 127.0f / top : 0.0f;
  for (long i = 0; i < count; i += LANES) {
    vf v = usable ? load(x, at + i, dtype) * inverse + 12582912.0f - 12582912.0f : splat(0); /* rounds to even */
    bytes b = __builtin_convertvector(__builtin_convertvector(v, vi), bytes);
    memcpy(out + i, &b, LANES);
  }
  return usable ? top / 127.0f : NAN;
}

/* Quantize rows of x (m, k) to out, `group` values to a scale (m, k / group). */
void gptrio_quantize(int dtype, const void *x, int8_t *out, float *scale, long m, long k, long group, int threads) {
  long count = m * k / group;
  if (m * k < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long g = 0; g < count; g++) {
    if (dtype == F32) scale[g] = quantize(x, g * group, out + g * group, group, F32);
    else if (dtype == BF16) scale[g] = quantize(x, g * group, out + g * group, group, BF16);
    else scale[g] = quantize(x, g * group, out + g * group, group, F16);
  }
}

/* Sums to begin a unit with, so that the offset of unsigned weights cancels. */
static void cancel_offset(const int8_t *x, vi *start, long units, int offset) {
  for (long u = 0; u < units; u++) {
    int32_t halves[2] = {0, 0};
    for (int j = 0; j < UNIT; j++) halves[j / 32] += x[u * UNIT + j];
    start[u] = (vi){0};
    start[u][0] = -offset * halves[0];
    start[u][LANES / 2] = -offset * halves[1];
  }
}

/* y (m, n) = activation(x (m, k) @ W.T + bias) + residual with W of 8 or 4 bits.
 *
 * int8: w (n, k), scale float32 (n). int4: w (n, k / 2) whose byte j of each 32 holds elements j (low) and j + 32 (high)
 * of a unit, plus 8; scale float16 (n, k / group), group 32, 64 or 128. k is a multiple of 64 and of the group.
*/
void gptrio_quantized(int bits, int dtype, const void *x, const void *w, const void *scale, const void *bias,
                      const void *residual, void *y, long m, long n, long k, long group, int activation, int threads) {
  int8_t *rows = aligned_alloc(64, (size_t)(m * k) * 2 + (m * k / UNIT * 4 + 63) / 64 * 64);
  if (!rows) abort();
  vi *starts = (vi *)(rows + m * k);
  float *scales = (float *)(rows + m * k * 2);
  gptrio_quantize(dtype, x, rows, scales, m, k, UNIT, 1);
  cancel_offset(rows, starts, m * k / UNIT, bits == 8 ? OFFSET : 8);
  Quantized q = {{w, bias, residual, 0, y, m, n, k, activation}, rows, scales, starts, scale, __builtin_ctzl(group)};
  if (n * k < SMALL) threads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (long s = 0; s < n; s += TILE) {
#define CASES(DTYPE)                                                                                                   \
  if (bits == 8) task(&q, s, DTYPE, 8);                                                                                \
  else task(&q, s, DTYPE, 4);
    if (dtype == F32) { CASES(F32) }
    else if (dtype == BF16) { CASES(BF16) }
    else { CASES(F16) }
#undef CASES
  }
  free(rows);
}

/* y (m, n) = activation(sums (m, n) * x_scale (m) * scale (n) + bias) + residual */
void gptrio_rescale(int dtype, const int32_t *sums, const float *x_scale, const float *scale, const void *bias,
                    const void *residual, void *y, long m, long n, int activation, int threads) {
  Product p = {0, bias, residual, 0, y, m, n, 0, activation};
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long row = 0; row < m; row++)
    for (long col = 0; col < n; col += TILE) {
      long count = n - col < TILE ? n - col : TILE;
      float out[TILE];
      for (long j = 0; j < count; j++) out[j] = (float)sums[row * n + col + j] * x_scale[row] * scale[col + j];
      if (dtype == F32) finish(&p, row, col, out, count, F32);
      else if (dtype == BF16) finish(&p, row, col, out, count, BF16);
      else finish(&p, row, col, out, count, F16);
    }
}
