/* vec.h: one vector of floats per instruction set, and the operations on it.
 *
 * Every operation rounds once, in the same way on every ISA with FMA, so the kernels above give the same bits
 * on AVX2, AVX-512 and NEON.  Arithmetic + - * / is written with the operators of GCC's vector extension.
 * The generic table has no FMA: v_fma rounds twice there, hence its bits differ. */
#ifndef FRNN_VEC_H
#define FRNN_VEC_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VLEN 16
#elif defined(__AVX2__)
#define VLEN 8
#else
#define VLEN 4
#endif

typedef float vf __attribute__((vector_size(VLEN * 4)));
typedef int32_t vi __attribute__((vector_size(VLEN * 4)));
typedef uint32_t vu __attribute__((vector_size(VLEN * 4))); /* where arithmetic wraps */
#if defined(__AVX512F__)
typedef __mmask16 vmask;
#else
typedef vi vmask; /* all ones or all zeros in each lane */
#endif

static inline vf v_load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void v_store(float *p, vf x) { memcpy(p, &x, sizeof x); }

static inline vf v_set(float x) { return x - (vf){0}; }

#if defined(__AVX512F__)

static inline vf v_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static inline vf v_fnma(vf a, vf b, vf c) { return (vf)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); } /* c - a b */
static inline vf v_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }                      /* a > b ? a : b */
static inline vf v_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }                      /* a < b ? a : b */
static inline vmask v_less(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
static inline vmask v_same(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
static inline vf v_select(vmask m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
static inline vf v_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }

/* Two halves, each of a vector or from memory, as one vector. */
static inline vf v_low_halves(vf a, vf b) { return (vf)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44); }
static inline vf v_high_halves(vf a, vf b) { return (vf)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee); }
static inline vf v_load_halves(const float *low, const float *high)
{
    return (vf)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
}
static inline void v_store_halves(float *low, float *high, vf x)
{
    _mm256_storeu_ps(low, _mm512_castps512_ps256((__m512)x));
    _mm256_storeu_ps(high, _mm512_extractf32x8_ps((__m512)x, 1));
}

#elif defined(__AVX2__)

static inline vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static inline vf v_fnma(vf a, vf b, vf c) { return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static inline vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vmask v_less(vf a, vf b) { return a < b; }
static inline vmask v_same(vf a, vf b) { return a == b; }
static inline vf v_select(vmask m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
static inline vf v_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }

#else

static inline vmask v_less(vf a, vf b) { return a < b; }
static inline vmask v_same(vf a, vf b) { return a == b; }
static inline vf v_select(vmask m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
static inline vf v_max(vf a, vf b) { return v_select(b < a, a, b); }
static inline vf v_min(vf a, vf b) { return v_select(a < b, a, b); }
#if defined(__ARM_NEON)
static inline vf v_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
static inline vf v_fnma(vf a, vf b, vf c) { return (vf)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
static inline vf v_sqrt(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
#else
static inline vf v_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf v_fnma(vf a, vf b, vf c) { return c - a * b; }
static inline vf v_sqrt(vf a)
{
    for (int k = 0; k < VLEN; k++) a[k] = __builtin_sqrtf(a[k]);
    return a;
}
#endif
#endif

static inline vf v_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
static inline vf v_negative_abs(vf a) { return (vf)((vi)a | (int32_t)0x80000000); }
static inline vf v_copy_sign(vf a, vf sign) { return (vf)(((vi)a & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000)); }

/* The first n lanes from p, zeros in the others; nothing beyond p[n - 1] is read. */
static inline vf v_load_first(const float *p, size_t n)
{
    vf x = {0};
    memcpy(&x, p, n * sizeof *p);
    return x;
}

static inline void v_store_first(float *p, vf x, size_t n) { memcpy(p, &x, n * sizeof *p); }

#endif
