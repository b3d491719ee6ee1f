// One-dimensional profiles: Gaussians and their derivatives, integrated over each tap.
//
// As kernels/profiles.py: order n is the difference over each tap of T_0 = Phi(z) - 1/2, T_1 = phi(z),
// T_(n+1) = -z T_n - (n - 1) T_(n-1).
#pragma once

#include "api.h"
#include "simd.h"

namespace dogfit {
namespace {

constexpr float kInverseRootTwoPi = 0.39894228f;

// Phi(z) - 1/2, and the same less its linear part for |z| < 1.
struct Cumulative {
  Lanes value, nonlinear;
};

DOGFIT_INLINE Cumulative cumulative(Lanes z, Lanes square, Lanes exponent) {
  // Taylor inside 1: odd, so that differences of nearby edges keep their digits.
  Lanes q = square * -1.0f / 9676800.0f + 1.0f / 599040.0f;
  q = q * square + -1.0f / 42240.0f;
  q = q * square + 1.0f / 3456.0f;
  q = q * square + -1.0f / 336.0f;
  q = q * square + 1.0f / 40.0f;
  q = q * square + -1.0f / 6.0f;
  const Lanes linear = z * kInverseRootTwoPi;
  const Lanes nonlinear = linear * square * q;
  // Outside: exp(z^2 / 2) (1 - Phi(|z|)) as a polynomial in 1 / (1 + p |z|), fitted for least error after
  // the exponential: 5e-9.
  const Lanes t = 1.0f / (1.0f + 0.275f * absolute(z));
  Lanes tail = t * -0.11485908f + 0.45200179f;
  tail = tail * t + -0.33099842f;
  tail = tail * t + 0.33393635f;
  tail = tail * t + 0.04210985f;
  tail = tail * t + 0.11780951f;
  const Lanes outside = 0.5f - exponent * tail * t;
  const Lanes value = select(square < 1.0f, linear + nonlinear, select(z < 0.0f, -outside, outside));
  return {value, nonlinear};
}

// Profiles of orders 0 to TOP along one axis: raw, and about their means over the taps.
template <int TOP, int MAX>
struct Axis {
  Lanes raw[TOP + 1][MAX];
  Lanes mean[TOP + 1];

  // `centred` (orders 0 to CENTRED, `[CENTRED + 1][MAX]`) sum to zero over the taps. Of a Gaussian much
  // wider than the kernel almost all is constant, and goes before it can cancel the other digits.
  template <int CENTRED>
  DOGFIT_INLINE void compute(Lanes center, Lanes inverse_width, int size, Lanes (*centred)[MAX]) {
    const Lanes first = (splat(-0.5f * size) - center) * inverse_width;
    const Lanes final = (splat(0.5f * size) - center) * inverse_width;
    const Mask wide = (absolute(first) < 1.0f) & (absolute(final) < 1.0f);
    Lanes before[TOP + 1], start[TOP + 1], flat_before = splat(0), flat_start = splat(0);
    for (int edge = 0; edge <= size; ++edge) {
      const Lanes z = (splat(edge - 0.5f * size) - center) * inverse_width;
      const Lanes square = z * z, exponent = exponential(-0.5f * square);
      const Cumulative c = cumulative(z, square, exponent);
      const Lanes flat = select(wide, c.nonlinear, c.value);
      Lanes now[TOP + 1];
      now[0] = c.value;
      now[1] = exponent * kInverseRootTwoPi;
      unrolled<1, TOP>([&](auto n) __attribute__((always_inline)) {
        now[n + 1] = -z * now[n] - (n - 1.0f) * now[n - 1];
      });
      if (edge == 0) {
        for (int n = 0; n <= TOP; ++n) start[n] = now[n];
        flat_start = flat;
      } else {
        unrolled<0, TOP + 1>([&](auto n) __attribute__((always_inline)) {
          raw[n][edge - 1] = now[n] - before[n];
        });
        centred[0][edge - 1] = flat - flat_before;
      }
      for (int n = 0; n <= TOP; ++n) before[n] = now[n];
      flat_before = flat;
    }
    const float share = 1.0f / size;
    for (int n = 0; n <= TOP; ++n) mean[n] = (before[n] - start[n]) * share;
    const Lanes flat_mean = (flat_before - flat_start) * share;
    for (int u = 0; u < size; ++u) {
      centred[0][u] -= flat_mean;
      raw[0][u] = centred[0][u] + mean[0];
      for (int n = 1; n <= CENTRED; ++n) centred[n][u] = raw[n][u] - mean[n];
    }
  }
};

}  // namespace
}  // namespace dogfit
