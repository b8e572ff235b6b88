/* Vectors of LANES floats, and how values of each storage type become one. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

enum { F32, BF16, F16 };
enum { NO_ACTIVATION, RELU, GELU_TANH, GELU_ERF };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

INLINE float half_to_float(uint16_t bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}

/* LANES values from element i on. */
INLINE vf load(const void *p, long i, int dtype) {
  if (dtype == F32) return *(const vf_any *)((const float *)p + i);
  const vh_any *q = (const vh_any *)((const uint16_t *)p + i);
  if (dtype == BF16) return (vf)(__builtin_convertvector(*q, vi) << 16);
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)*q);
#elif defined(__F16C__) && LANES == 8
  return (vf)_mm256_cvtph_ps((__m128i)*q);
#else
  vf out;
  for (int j = 0; j < LANES; j++) out[j] = half_to_float((*q)[j]);
  return out;
#endif
}

INLINE float load1(const void *p, long i, int dtype) {
  if (dtype == F32) return ((const float *)p)[i];
  uint16_t bits = ((const uint16_t *)p)[i];
  return dtype == BF16 ? bits_to_float((uint32_t)bits << 16) : half_to_float(bits);
}

/* Store one value, rounded to nearest even. */
INLINE void store1(void *p, long i, float value, int dtype) {
  if (dtype == F32) {
    ((float *)p)[i] = value;
  } else if (dtype == BF16) {
    uint32_t bits = float_to_bits(value);
    bits = value != value ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
  } else {
    _Float16 half = (_Float16)value;
    memcpy((uint16_t *)p + i, &half, 2);
  }
}

/* Store LANES values, rounded to nearest even. */
INLINE void store(void *p, long i, vf v, int dtype) {
  if (dtype == F32) {
    *(vf_any *)((float *)p + i) = v;
    return;
  }
#if defined(__AVX512F__)
  if (dtype == F16) {
    *(vh_any *)((uint16_t *)p + i) = (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
    return;
  }
#endif
  for (int j = 0; j < LANES; j++) store1(p, i + j, v[j], dtype);
}

INLINE vf splat(float value) { return value - (vf){0}; }

typedef float quad __attribute__((vector_size(16)));

INLINE float sum(vf v) {
  quad part[LANES / 4];
  memcpy(part, &v, sizeof v);
#if LANES == 16
  part[0] += part[2];
  part[1] += part[3];
#endif
#if LANES >= 8
  part[0] += part[1];
#endif
  return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

/* a where the mask is set, b elsewhere. */
INLINE vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* exp, relative error below 3e-7: 2^n times a polynomial on [-ln2/2, ln2/2]. */
INLINE vf vexp(vf x) {
  x = choose(x < -87.0f, splat(-87.0f), x);
  x = choose(x > 88.0f, splat(88.0f), x);
  vf shifted = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
  vf n = shifted - 12582912.0f;
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}

/* erf, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26). */
INLINE vf verf(vf x) {
  vf a = choose(x < 0, -x, x);
  vf t = 1.0f / (1.0f + 0.3275911f * a);
  vf p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  vf y = 1.0f - p * vexp(-a * a);
  return choose(x < 0, -y, y);
}

INLINE vf activate(vf x, int activation) {
  if (activation == RELU) return choose(x <= 0, splat(0), x);
  if (activation == GELU_ERF) return 0.5f * x * (1.0f + verf(x * 0.70710678f));
  if (activation == GELU_TANH) return x / (1.0f + vexp(-1.59576912f * (x + 0.044715f * x * x * x)));
  return x;
}
