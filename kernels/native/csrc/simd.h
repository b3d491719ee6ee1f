// Vectors of one kernel per lane, by the vector extensions of GCC and Clang.
//
// Nothing from the standard library is used in what is compiled once per instruction set: the linker keeps
// one copy of an inline function, and it must not be the one that an older processor cannot run.
#pragma once

#include <stdint.h>

#define DOGFIT_INLINE inline __attribute__((always_inline))

namespace dogfit {
namespace {

typedef float Lanes __attribute__((vector_size(4 * DOGFIT_LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * DOGFIT_LANES)));  // 0 or -1 per lane
constexpr int kLanes = DOGFIT_LANES;

template <int N>
struct Index {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

// Calls `body(Index<BEGIN>)` to `body(Index<END - 1>)`: loops whose counters are constants.
template <int BEGIN, int END, class Body>
DOGFIT_INLINE void unrolled(const Body& body) {
  if constexpr (BEGIN < END) {
    body(Index<BEGIN>{});
    unrolled<BEGIN + 1, END>(body);
  }
}

DOGFIT_INLINE Lanes splat(float value) { return Lanes{} + value; }
DOGFIT_INLINE Lanes select(Mask mask, Lanes yes, Lanes no) { return mask ? yes : no; }
DOGFIT_INLINE Mask select(Mask mask, Mask yes, Mask no) { return mask ? yes : no; }
DOGFIT_INLINE Lanes absolute(Lanes a) { return (Lanes)((Mask)a & 0x7fffffff); }
// The second where either is not a number.
DOGFIT_INLINE Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
DOGFIT_INLINE Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }

DOGFIT_INLINE Lanes load(const float* from) {
  Lanes out;
  __builtin_memcpy(&out, from, sizeof out);
  return out;
}
DOGFIT_INLINE Mask load(const int32_t* from) {
  Mask out;
  __builtin_memcpy(&out, from, sizeof out);
  return out;
}
DOGFIT_INLINE void store(float* to, Lanes value) { __builtin_memcpy(to, &value, sizeof value); }
DOGFIT_INLINE void store(int32_t* to, Mask value) { __builtin_memcpy(to, &value, sizeof value); }

// Lanes of a mask as bits.
DOGFIT_INLINE unsigned bits(Mask mask) {
#if defined(__AVX512DQ__) && DOGFIT_LANES == 16
  typedef int Native __attribute__((vector_size(64)));
  return __builtin_ia32_cvtd2mask512((Native)mask);
#elif defined(__AVX2__) && DOGFIT_LANES == 8
  typedef float Native __attribute__((vector_size(32)));
  return __builtin_ia32_movmskps256((Native)mask);
#else
  unsigned out = 0;
  for (int lane = 0; lane < kLanes; ++lane) out |= (mask[lane] & 1u) << lane;
  return out;
#endif
}

DOGFIT_INLINE Lanes square_root(Lanes x) {
  Lanes out;
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = __builtin_sqrtf(x[lane]);
  return out;
}

// 1 / x, to a rounding or two.
DOGFIT_INLINE Lanes reciprocal(Lanes x) {
#if defined(__AVX512F__) && DOGFIT_LANES == 16
  typedef float Native __attribute__((vector_size(64)));
  const Lanes near = (Lanes)__builtin_ia32_rcp14ps512_mask((Native)x, Native{}, 0xffff);
  return near + near * (1.0f - x * near);
#else
  return 1.0f / x;
#endif
}

// Relative error 2e-7, beside that of rounding x; arguments are clamped to where the result is normal.
DOGFIT_INLINE Lanes exponential(Lanes x) {
  x = smaller(larger(x, splat(-87.0f)), splat(87.0f));
  const Lanes shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Lanes f = x * 1.44269504f - (shifted - 12582912.0f);
  // 2^f for |f| <= 1/2, least relative error.
  Lanes p = f * 1.32764589e-3f + 9.67554222e-3f;
  p = p * f + 5.55071332e-2f;
  p = p * f + 2.40221197e-1f;
  p = p * f + 6.93146967e-1f;
  p = p * f + 1.0f;
  const Mask exponent = ((Mask)shifted - 0x4b400000) << 23;
  return (Lanes)((Mask)p + exponent);
}

}  // namespace
}  // namespace dogfit
