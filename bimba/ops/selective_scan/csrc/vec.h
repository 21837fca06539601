// One register of floats at a time, and the functions of them that the scan needs. One lane is one channel.
//
// GCC's and Clang's vector extension: the code is the same for AVX-512, AVX2 and what has only four lanes. Only exp2
// and exp2_product use instructions of their own under AVX-512.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;  // what is wider than a register compiles to code that is ten times slower
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES)));

static inline vec splat(float x) { return x - vec{}; }
static inline vec load(const float* p) { vec x; std::memcpy(&x, p, sizeof x); return x; }
static inline void store(float* p, vec x) { std::memcpy(p, &x, sizeof x); }

static inline float sum(vec x) {  // by halves: one lane after another would be four times as slow
  float lanes[LANES];
  store(lanes, x);
#pragma GCC unroll 4
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The first `lanes` channels at p, zeros behind them.
static inline vec load_part(const float* p, int lanes) {
  if (lanes == LANES) return load(p);
  float x[LANES] = {};
  std::memcpy(x, p, lanes * sizeof(float));
  return load(x);
}

static inline vec load_part(const uint16_t* p, int lanes) {  // bfloat16: the upper half of a float
  half_vec x = {};
  if (lanes == LANES) std::memcpy(&x, p, sizeof x);
  else std::memcpy(&x, p, lanes * sizeof(uint16_t));
  return (vec)(__builtin_convertvector(x, ivec) << 16);
}

static inline void store_part(float* p, vec x, int lanes) {
  if (lanes == LANES) store(p, x);
  else std::memcpy(p, &x, lanes * sizeof(float));
}

static inline float to_float(float x) { return x; }
static inline float to_float(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// 2^x. x = n + f with n whole and |f| <= 1/2; 2^f by a polynomial of degree 5, 2^n in the exponent bits. The relative
// error is at most 9.2e-8, with rounding 2e-7, and none at 0: a state that decays by almost nothing for fifty thousand
// tokens would multiply it by fifty thousand. From 128 on it is infinite, below -126 denormal (AVX-512) or 0; NaN stays
// NaN. Infinite x is right as well: of AVX-512, scalef has it that anything, NaN included, times 2^-inf is 0.
template <int K>
static inline void exp2_polynomial(const vec (&f)[K], vec (&p)[K]) {
  constexpr float COEFFICIENTS[] = {9.671512688e-3f, 5.550733744e-2f, 2.402224208e-1f, 6.931469776e-1f, 1.0f};
  for (int k = 0; k < K; ++k) p[k] = splat(1.326472725e-3f);
#pragma GCC unroll 5
  for (float c : COEFFICIENTS)
    for (int k = 0; k < K; ++k) p[k] = p[k] * f[k] + c;
}

// In place, of K vectors whose instructions take turns: one alone is a chain, each instruction of which waits for the
// last.
template <int K>
static inline void exp2(vec (&x)[K]) {
  vec n[K], f[K], p[K];
#if defined(__AVX512F__)
  for (int k = 0; k < K; ++k)
    n[k] = (vec)_mm512_roundscale_ps((__m512)x[k], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  for (int k = 0; k < K; ++k) f[k] = x[k] - n[k];
  exp2_polynomial(f, p);
  for (int k = 0; k < K; ++k) x[k] = (vec)_mm512_scalef_ps((__m512)p[k], (__m512)n[k]);
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits
  const float most = 0x1.fffffep6f;  // the last before 128: there n = 128 but f < 0, so that the bits stay finite
  for (int k = 0; k < K; ++k) {
    const vec bounded = x[k] < -126.0f ? splat(-126.0f) : x[k] > most ? splat(most) : x[k];
    n[k] = bounded + magic;
    f[k] = bounded - (n[k] - magic);
  }
  exp2_polynomial(f, p);
  for (int k = 0; k < K; ++k) {
    const vec power = (vec)((ivec)p[k] + ((ivec)n[k] << 23));
    x[k] = x[k] <= most ? (x[k] < -126.0f ? vec{} : power) : x[k] + __builtin_inff();  // or NaN
  }
#endif
}

constexpr float BOUND = 126.0f;

// 2^(a b) where no lane of the product is beyond BOUND: fewer instructions than exp2 takes, and a b is not rounded.
// Under AVX-512 a b = k / 32 + f with k whole and |f| <= 1/64. The lowest 5 bits of k choose 2^(k mod 32 / 32) from two
// registers, scalef multiplies it by two to the whole part of k / 32; 2^f by a polynomial of degree 2. The relative
// error is at most 2e-7, none at 0; that of 1 - 2^x, next to 0, 1.2e-5: there, rounding 2^x to a float alone makes it
// as large.
static inline vec exp2_product(vec a, vec b) {
#if defined(__AVX512F__)
  alignas(64) static const float POWERS[] = {
      1.0f, 1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
      1.1892071f, 1.2152474f, 1.2418578f, 1.269051f, 1.2968396f, 1.3252367f, 1.3542556f, 1.38391f,
      1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
      1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f};
  const __m512 low = _mm512_load_ps(POWERS), high = _mm512_load_ps(POWERS + LANES);
  const __m512 magic = (__m512)splat(0x1.8p18f);  // 1.5 * 2^18: adding it leaves k in the lowest bits
  const __m512 k = _mm512_fmadd_ps((__m512)a, (__m512)b, magic);
  const __m512 whole = k - magic;  // k / 32
  const vec f = (vec)_mm512_fmsub_ps((__m512)a, (__m512)b, whole);
  const vec power = (vec)_mm512_scalef_ps(_mm512_permutex2var_ps(low, (__m512i)k, high), whole);
  return power * ((f * 0.240227681f + 0.693155311f) * f) + power;
#else
  const float magic = 12582912.0f;
  const vec x = a * b, n = x + magic;
  const vec f[1] = {x - (n - magic)};
  vec power[1];
  exp2_polynomial(f, power);
  return (vec)((ivec)power[0] + ((ivec)n << 23));
#endif
}

static inline vec exp2(vec x) {
  vec one[1] = {x};
  exp2(one);
  return one[0];
}

constexpr float LOG2_E = 1.44269504088896341f;

// The larger; NaN where x is.
static inline vec at_least(float bound, vec x) { return x < bound ? splat(bound) : x; }

static inline vec magnitude(vec x) { return (vec)((ivec)x & 0x7fffffff); }

// Of a comparison: whether it holds in every lane.
static inline bool all(ivec holds) {
  int32_t lanes[LANES], every = -1;
  std::memcpy(lanes, &holds, sizeof lanes);
  for (int i = 0; i < LANES; ++i) every &= lanes[i];
  return every != 0;
}

// -|x| in powers of two
static inline vec minus_magnitude_log2(vec x) { return (vec)((ivec)x | (ivec)splat(-0.0f)) * LOG2_E; }

// log(1 + exp(x)) in place, of K vectors. Its derivative is the logistic function of x. With t = exp(-|x|), log(1 + t)
// is t + t^2 times a polynomial of degree 7: a relative error of 3.3e-8, with rounding and with that of t 2e-7. Below 0
// the rounding of x LOG2_E adds 1.2e-7 |x|; above it x outweighs t.
template <int K>
static inline void softplus(vec (&x)[K]) {
  constexpr float COEFFICIENTS[] = {-3.00658140e-2f, 7.92045668e-2f,  -1.37538046e-1f, 1.91536561e-1f,
                                    -2.48571634e-1f, 3.33213240e-1f, -4.99996483e-1f, 1.0f};
  vec t[K], p[K];
  for (int k = 0; k < K; ++k) t[k] = minus_magnitude_log2(x[k]);
  exp2(t);
  for (int k = 0; k < K; ++k) p[k] = splat(5.36483014e-3f);
#pragma GCC unroll 8
  for (float c : COEFFICIENTS)
    for (int k = 0; k < K; ++k) p[k] = p[k] * t[k] + c;
  for (int k = 0; k < K; ++k) x[k] = p[k] * t[k] + at_least(0.0f, x[k]);
}

static inline vec logistic(vec x) {
  vec t = exp2(minus_magnitude_log2(x));
  return (x < 0.0f ? t : splat(1.0f)) / (t + 1.0f);
}
