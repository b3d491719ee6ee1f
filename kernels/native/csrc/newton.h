// One step of box-constrained, damped Newton ascent, as kernels/newton.py.
#pragma once

#include "differentiate.h"

namespace dogfit {
namespace {

// Longest step: one width in position, and so much in log width, log ratio, surround weight and shape.
template <class E>
constexpr float max_step(int parameter) {
  return parameter < 2 || (parameter == kRatio && E::kWidths == 2) ? 1.0f : parameter == kWidth ? 0.8f : 0.5f;
}
// Smallest curvature trusted, for kernels of unit energy.
constexpr float kLeastCurvature = 1e-5f;

// Solves (matrix + shift) x = right with each pivot of L D L' replaced by max(|pivot|, floor): an ascent
// direction where the matrix is indefinite, the exact solution where it is positive.
template <int P>
DOGFIT_INLINE void descent_solve(const Lanes* matrix, const Lanes* right, Lanes shift, Lanes* x) {
  Lanes unit[P * (P + 1) / 2], pivots[P], inverse[P];
  unrolled<0, P>([&](auto j) __attribute__((always_inline)) {
    constexpr int column = j;
    Lanes pivot = matrix[triangle(j, j)] + shift;
    unrolled<0, column>([&](auto p) __attribute__((always_inline)) {
      pivot -= unit[triangle(column, p)] * unit[triangle(column, p)] * pivots[p];
    });
    pivots[j] = larger(absolute(pivot), splat(kLeastCurvature));
    inverse[j] = reciprocal(pivots[j]);
    unrolled<column + 1, P>([&](auto i) __attribute__((always_inline)) {
      constexpr int row = i;
      Lanes value = matrix[triangle(row, column)];
      unrolled<0, column>([&](auto p) __attribute__((always_inline)) {
        value -= unit[triangle(row, p)] * unit[triangle(column, p)] * pivots[p];
      });
      unit[triangle(row, column)] = value * inverse[column];
    });
  });
  unrolled<0, P>([&](auto i) __attribute__((always_inline)) {
    constexpr int row = i;
    x[row] = right[row];
    unrolled<0, row>([&](auto p) __attribute__((always_inline)) { x[row] -= unit[triangle(row, p)] * x[p]; });
  });
  for (int i = 0; i < P; ++i) x[i] *= inverse[i];
  unrolled<0, P>([&](auto reverse) __attribute__((always_inline)) {
    constexpr int row = P - 1 - reverse;
    unrolled<row + 1, P>([&](auto p) __attribute__((always_inline)) { x[row] -= unit[triangle(p, row)] * x[p]; });
  });
}

// State of an ascent in each lane.
template <class E>
struct Ascent {
  static constexpr int P = E::P;
  Lanes point[P], energy, predicted_gain;  // best met
  Lanes gradient[P], hessian[P * (P + 1) / 2];
  Lanes trial[P], predicted, damping;

  // Takes up what was found at the trial, and proposes the next inside the box.
  DOGFIT_INLINE void advance(const Derivatives<P>& found, const Lanes* lower, const Lanes* upper) {
    const Lanes gain = found.energy - energy;
    const Mask accepted = gain >= 0.0f;  // false for what is not a number
    const Lanes agreement = gain / larger(predicted, splat(1.2e-38f));
    const Lanes factor = select(agreement > 0.75f, splat(0.2f), select(agreement > 0.25f, splat(1), splat(2)));
    damping = select(accepted, damping * factor, 4.0f * larger(damping, splat(1e-2f)));
    energy = select(accepted, found.energy, energy);
    for (int a = 0; a < P; ++a) {
      point[a] = select(accepted, trial[a], point[a]);
      gradient[a] = select(accepted, found.gradient[a], gradient[a]);
    }
    for (int e = 0; e < P * (P + 1) / 2; ++e) hessian[e] = select(accepted, found.hessian[e], hessian[e]);
    propose(lower, upper);
  }

  DOGFIT_INLINE void propose(const Lanes* lower, const Lanes* upper) {
    const Lanes sigma = exponential(point[2]), inverse_sigma = exponential(-point[2]);
    // Active set: what sits on a bound and pushes outwards is held fixed.
    Mask at_bound[P];
    Lanes slope[P], matrix[P * (P + 1) / 2], step[P], undamped[P];
    for (int a = 0; a < P; ++a) {
      at_bound[a] = ((point[a] <= lower[a]) & (gradient[a] < 0.0f)) |
                    ((point[a] >= upper[a]) & (gradient[a] > 0.0f));
      slope[a] = select(at_bound[a], splat(0), gradient[a]);
      for (int b = 0; b <= a; ++b) {
        matrix[triangle(a, b)] = select(at_bound[a] | at_bound[b], splat(a == b), -hessian[triangle(a, b)]);
      }
    }
    descent_solve<P>(matrix, slope, damping, step);
    descent_solve<P>(matrix, slope, splat(0), undamped);
    predicted_gain = splat(0);
    Lanes excess = splat(1);
    for (int a = 0; a < P; ++a) {
      // Of the undamped step: a row is not at an optimum because its step is damped.
      predicted_gain += slope[a] * undamped[a];
      excess = larger(absolute(step[a]) * (1.0f / max_step<E>(a)), excess);
    }
    const Lanes shorten = reciprocal(excess);
    predicted = splat(0);
    Lanes moved[P];
    for (int a = 0; a < P; ++a) {
      const Lanes length = step[a] * shorten * (a < 2 ? sigma : splat(1));
      trial[a] = smaller(larger(point[a] + length, lower[a]), upper[a]);
      moved[a] = (trial[a] - point[a]) * (a < 2 ? inverse_sigma : splat(1));
      predicted += 2.0f * slope[a] * moved[a];
      for (int b = 0; b <= a; ++b) {
        predicted += (a == b ? 1.0f : 2.0f) * hessian[triangle(a, b)] * moved[a] * moved[b];
      }
    }
  }
};

}  // namespace
}  // namespace dogfit
