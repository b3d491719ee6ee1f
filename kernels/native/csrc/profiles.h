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
  // Odd inside 1, so that differences of nearby edges keep their digits: Taylor, the last terms fitted.
  Lanes q = square * -1.98770776e-5f + 2.86118243e-4f;
  q = q * square + -2.9750443e-3f;
  q = q * square + 2.49998563e-2f;
  q = q * square + -1.66666664e-1f;
  const Lanes linear = z * kInverseRootTwoPi;
  const Lanes nonlinear = linear * square * q;
  // Outside: exp(z^2 / 2) (1 - Phi(|z|)) as a polynomial in 1 / (1 + p |z|), fitted for least error after
  // the exponential: 5e-9.
  const Lanes t = reciprocal(1.0f + 0.275f * absolute(z));
  Lanes tail = t * -0.11485908f + 0.45200179f;
  tail = tail * t + -0.33099842f;
  tail = tail * t + 0.33393635f;
  tail = tail * t + 0.04210985f;
  tail = tail * t + 0.11780951f;
  const Lanes outside = 0.5f - exponent * tail * t;
  const Lanes value = select(square < 1.0f, linear + nonlinear, select(z < 0.0f, -outside, outside));
  return {value, nonlinear};
}

// Profiles of orders 0 to TOP along x and y: raw, and about their means over the taps.
template <int TOP, int CENTRED, int MAX>
struct Profiles {
  Lanes raw[2][TOP + 1][MAX];
  Lanes centred[2][CENTRED + 1][MAX];  // sum to zero over the taps
  Lanes mean[2][TOP + 1];

  // Of a Gaussian much wider than the kernel almost all is constant. That part goes before it can cancel
  // the digits of the rest. Both axes in one loop: two chains of dependent operations side by side.
  DOGFIT_INLINE void compute(const Lanes* center, Lanes inverse_width, int size) {
    Lanes before[2][TOP + 1], start[2][TOP + 1], flat_before[2], flat_start[2];
    Mask wide[2];
    for (int a = 0; a < 2; ++a) {
      wide[a] = (0.5f * size + absolute(center[a])) * inverse_width < 1.0f;
    }
    for (int edge = 0; edge <= size; ++edge) {
      unrolled<0, 2>([&](auto a) __attribute__((always_inline)) {
        const Lanes z = (splat(edge - 0.5f * size) - center[a]) * inverse_width;
        const Lanes square = z * z, exponent = exponential(-0.5f * square);
        const Cumulative c = cumulative(z, square, exponent);
        const Lanes flat = select(wide[a], c.nonlinear, c.value);
        Lanes now[TOP + 1];
        now[0] = c.value;
        now[1] = exponent * kInverseRootTwoPi;
        unrolled<1, TOP>([&](auto n) __attribute__((always_inline)) {
          now[n + 1] = -z * now[n];
          if constexpr (n > 1) now[n + 1] -= (n - 1.0f) * now[n - 1];
        });
        if (edge == 0) {
          unrolled<0, TOP + 1>([&](auto n) __attribute__((always_inline)) { start[a][n] = now[n]; });
          flat_start[a] = flat;
        } else {
          unrolled<1, TOP + 1>([&](auto n) __attribute__((always_inline)) {
            raw[a][n][edge - 1] = now[n] - before[a][n];
          });
          centred[a][0][edge - 1] = flat - flat_before[a];
        }
        unrolled<0, TOP + 1>([&](auto n) __attribute__((always_inline)) { before[a][n] = now[n]; });
        flat_before[a] = flat;
      });
    }
    const float share = 1.0f / size;
    for (int a = 0; a < 2; ++a) {
      unrolled<0, TOP + 1>([&](auto n) __attribute__((always_inline)) {
        mean[a][n] = (before[a][n] - start[a][n]) * share;
      });
      const Lanes flat_mean = (flat_before[a] - flat_start[a]) * share;
      for (int u = 0; u < size; ++u) {
        centred[a][0][u] -= flat_mean;
        raw[a][0][u] = centred[a][0][u] + mean[a][0];
        unrolled<1, CENTRED + 1>([&](auto n) __attribute__((always_inline)) {
          centred[a][n][u] = raw[a][n][u] - mean[a][n];
        });
      }
    }
  }
};

}  // namespace
}  // namespace dogfit
