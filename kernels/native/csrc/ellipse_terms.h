// Terms of elliptic models: derivatives of an elliptic Gaussian, integrated over taps.
//
// As kernels/ellipses.py: over a tap, the difference of a function of its four corners. Lengths are in units of the
// width, in which the covariance K has determinant one.
#pragma once

#include "profiles.h"

namespace dogfit {
namespace {

// K and its derivatives by the shape parameters e1, e2, each as what it does to second derivatives of a term:
// weights of those along xx, xy and yy of half of it.
struct Quadratic {
  Lanes xx, xy, yy;
};

struct Ellipse {
  Lanes xx, xy, yy;            // K
  Lanes slope_x, slope_y;      // of the mean of y over x, and of x over y
  Lanes inverse_x, inverse_y;  // 1 / xx, 1 / yy
  Lanes root_x, root_y;        // their roots
  Lanes narrow_x, narrow_y;    // 1 / width of y where x is known, and of x where y is
  Quadratic width, by_e1, by_e2, by_e1_e1, by_e2_e1, by_e2_e2;

  DOGFIT_INLINE void compute(Lanes e1, Lanes e2) {
    const Lanes square = e1 * e1 + e2 * e2;
    // K = s0 + s1 E, with E the matrix of e1 and e2, s0 = cosh|e| and ds_m / de = e s_(m+1).
    Lanes s[4];
    for (int shift = 0; shift < 4; ++shift) {
      s[shift] = splat(0);
      for (int n = 9; n >= 0; --n) {
        float term = 1;
        for (int m = 0; m < shift; ++m) term *= 2.0f * (n + shift - m);
        for (int m = 2; m <= 2 * (n + shift); ++m) term /= m;
        s[shift] = s[shift] * square + term;
      }
    }
    xx = s[0] + s[1] * e1, xy = s[1] * e2, yy = s[0] - s[1] * e1;
    inverse_x = 1.0f / xx, inverse_y = 1.0f / yy;
    slope_x = xy * inverse_x, slope_y = xy * inverse_y;
    root_x = square_root(inverse_x), root_y = square_root(inverse_y);
    narrow_x = xx * root_x, narrow_y = yy * root_y;
    const auto half = [](Lanes diagonal, Lanes along_e1, Lanes along_e2) __attribute__((always_inline)) {
      return Quadratic{0.5f * (diagonal + along_e1), along_e2, 0.5f * (diagonal - along_e1)};
    };
    // The logarithm of the width doubles the covariance.
    width = {xx, 2.0f * xy, yy};
    by_e1 = half(s[1] * e1, s[2] * e1 * e1 + s[1], s[2] * e1 * e2);
    by_e2 = half(s[1] * e2, s[2] * e1 * e2, s[2] * e2 * e2 + s[1]);
    by_e1_e1 = half(s[2] * e1 * e1 + s[1], (s[3] * e1 * e1 + 3.0f * s[2]) * e1, (s[3] * e1 * e1 + s[2]) * e2);
    by_e2_e1 = half(s[2] * e1 * e2, (s[3] * e1 * e1 + s[2]) * e2, (s[3] * e2 * e2 + s[2]) * e1);
    by_e2_e2 = half(s[2] * e2 * e2 + s[1], (s[3] * e2 * e2 + s[2]) * e1, (s[3] * e2 * e2 + 3.0f * s[2]) * e2);
  }
};

// What the functions of a corner are made of.
struct Corner {
  Lanes density, along_x, along_y;  // the density, and its integrals along y and along x
};

DOGFIT_INLINE Lanes density_at(const Ellipse& k, Lanes x, Lanes y) {
  const Lanes p = k.xy * y - k.yy * x, q = k.xy * x - k.xx * y;
  return kInverseRootTwoPi * kInverseRootTwoPi * exponential(0.5f * (p * x + q * y));
}

// Place of the term (i, total - i) among those of total orders from LOWEST.
constexpr int place(int lowest, int total, int i) {
  return (total * (total + 1) - lowest * (lowest + 1)) / 2 + i;
}

// Derivatives of the density up to a total order, by order along x and y, from the density itself.
template <int TOP>
DOGFIT_INLINE void differentiate_density(const Ellipse& k, Lanes x, Lanes y, Lanes (*density)[TOP + 1]) {
  const Lanes p = k.xy * y - k.yy * x, q = k.xy * x - k.xx * y;
  unrolled<0, TOP>([&](auto total) __attribute__((always_inline)) {
    constexpr int n = total;
    unrolled<0, n + 1>([&](auto order) __attribute__((always_inline)) {
      constexpr int i = order, j = n - i;
      Lanes value = q * density[i][j];
      if constexpr (j > 0) value -= float(j) * k.xx * density[i][j - 1];
      if constexpr (i > 0) value += float(i) * k.xy * density[i - 1][j];
      density[i][j + 1] = value;
    });
    density[n + 1][0] = p * density[n][0];
    if constexpr (n > 0) density[n + 1][0] -= float(n) * k.yy * density[n - 1][0];
  });
}

// The terms of total orders LOW to HIGH (but 0) at a corner, before differences are taken.
template <int LOW, int HIGH>
DOGFIT_INLINE void expand(const Ellipse& k, Lanes x, Lanes y, const Corner& corner, Lanes* out) {
  constexpr int top = HIGH - 2;
  Lanes density[top + 1][top + 1], along_x[HIGH], along_y[HIGH];
  density[0][0] = corner.density;
  differentiate_density<top>(k, x, y, density);
  along_x[0] = corner.along_x, along_y[0] = corner.along_y;
  unrolled<0, HIGH - 1>([&](auto order) __attribute__((always_inline)) {
    constexpr int n = order;
    Lanes by_x = x * along_x[n], by_y = y * along_y[n];
    if constexpr (n > 0) by_x += float(n) * along_x[n - 1], by_y += float(n) * along_y[n - 1];
    along_x[n + 1] = -k.inverse_x * by_x - k.slope_x * density[n][0];
    along_y[n + 1] = -k.inverse_y * by_y - k.slope_y * density[0][n];
  });
  unrolled<(LOW > 0 ? LOW : 1), HIGH + 1>([&](auto total) __attribute__((always_inline)) {
    unrolled<0, total + 1>([&](auto order) __attribute__((always_inline)) {
      constexpr int n = total, i = order, j = n - i;
      Lanes& value = out[place(LOW, n, i)];
      if constexpr (j == 0) value = along_x[n - 1];
      else if constexpr (i == 0) value = along_y[n - 1];
      else value = density[i - 1][j - 1];
    });
  });
}

// The terms of a tap that is small beside the Gaussian, by Taylor series about its centre; `side` is its side in
// widths. Differences between the corners would have no digits left.
template <int HIGH>
DOGFIT_INLINE void expand_wide(const Ellipse& k, Lanes x, Lanes y, Lanes side, Lanes* out) {
  // Terms of higher orders than images have stand in curvatures alone, and do without the fourth power.
  constexpr int images = 2, top = HIGH > images ? HIGH + 2 : HIGH + 4;
  static_assert(top >= images + 4);
  Lanes d[top + 1][top + 1];
  d[0][0] = side * side * density_at(k, x, y);
  differentiate_density<top>(k, x, y, d);
  const Lanes square = side * side, second = square * (1.0f / 24), fourth = square * square * (1.0f / 1920),
              mixed = square * square * (1.0f / 576);
  unrolled<0, HIGH + 1>([&](auto total) __attribute__((always_inline)) {
    unrolled<0, total + 1>([&](auto order) __attribute__((always_inline)) {
      constexpr int i = order, j = total - i;
      Lanes value = d[i][j] + second * (d[i + 2][j] + d[i][j + 2]);
      if constexpr (total <= images) value += fourth * (d[i + 4][j] + d[i][j + 4]) + mixed * d[i + 2][j + 2];
      out[place(0, total, i)] = value;
    });
  });
}

}  // namespace
}  // namespace dogfit
