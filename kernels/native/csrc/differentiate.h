// The second half of evaluate.h: from sums over the taps to gradient and Hessian.
#pragma once

#include "evaluate.h"

namespace dogfit {
namespace {

// Parameters by position; the last two only where there are two widths, or a shared amplitude.
enum : int { kX, kY, kWidth, kRatio, kSurroundWeight };

// Where derivatives so far were for a surround weight of profiles of fixed scale, and it is that of profiles
// which grow by sigma**order, a change of ratio is also one of the weight: chain rule.
template <int P>
DOGFIT_INLINE void scale_surround(int order, Lanes surround_weight, Derivatives<P>& out) {
  Lanes* h = out.hessian;
  const float n = order;
  const Lanes by = n * surround_weight, slope = out.gradient[kSurroundWeight];
  const Lanes kk = h[triangle(kSurroundWeight, kSurroundWeight)], rk = h[triangle(kSurroundWeight, kRatio)];
  out.gradient[kRatio] += by * slope;
  h[triangle(kRatio, kRatio)] += 2.0f * by * rk + by * by * kk + n * by * slope;
  h[triangle(kSurroundWeight, kRatio)] += n * slope + by * kk;
  for (int a = 0; a < kRatio; ++a) h[triangle(kRatio, a)] += by * h[triangle(kSurroundWeight, a)];
  for (int a = kSurroundWeight + 1; a < P; ++a) h[triangle(a, kRatio)] += by * h[triangle(a, kSurroundWeight)];
}

template <int ORDER_, Pairing PAIRING_, int SIZE>
DOGFIT_INLINE void Energy<ORDER_, PAIRING_, SIZE>::differentiate(const Lanes* point,
                                                                 Derivatives<P>& out) const {
  constexpr int one = kOrder + 1, two = kOrder + 2;  // total orders of first derivatives
  Lanes lambda[kWidths];                             // first width / this width
  lambda[0] = splat(1);
  if constexpr (kWidths == 2) lambda[1] = exponential(-point[3]);

  // Derivatives of the model as weights of terms.
  Vector by_x = {}, by_y = {}, by_width = {}, by_ratio = {}, by_weight = {};
  unrolled<0, kWidths>([&](auto w) __attribute__((always_inline)) {
    unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
      const Lanes u = gain[w] * weight[w][i];
      by_x[w][i + 1] = by_y[w][i] = -lambda[w] * u;
      by_width[w][i + 2] += u;
      by_width[w][i] += u;
      if constexpr (w == 1) {
        by_ratio[1][i + 2] += u;
        by_ratio[1][i] += u;
        by_weight[1][i] = -weight[1][i];
      }
    });
  });

  // Inner products of each with the terms of the basis, and with those of first derivatives.
  Vector low[P], middle[P], high[P];
  apply<kOrder, one>(by_x, low[kX]);
  apply<kOrder, one>(by_y, low[kY]);
  apply<kOrder, two>(by_width, low[kWidth]);
  apply<one, one>(by_x, middle[kX]);
  apply<one, one>(by_y, middle[kY]);
  apply<one, two>(by_width, middle[kWidth]);
  apply<two, two>(by_width, high[kWidth]);
  if constexpr (kWidths == 2) {
    apply<kOrder, two>(by_ratio, low[kRatio]);
    apply<one, two>(by_ratio, middle[kRatio]);
    apply<two, two>(by_ratio, high[kRatio]);
  }
  if constexpr (kShared) apply<kOrder, kOrder>(by_weight, low[kSurroundWeight]);

  // L^-1 v_a, with v_a of each basis function.
  Lanes v[P][kBasis];
  unrolled<0, kBasis>([&](auto t) __attribute__((always_inline)) {
    for (int a = 0; a < P; ++a) v[a][t] = splat(0);
    unrolled<0, kWidths>([&](auto w) __attribute__((always_inline)) {
      if constexpr (!kFree || w == t) {
        constexpr int i = kFree ? 0 : int(t), j = kOrder - i;
        const auto& m = moment[w];
        const Lanes laplacian = m[i + 2][j] + m[i][j + 2];
        v[kX][t] += gain[w] * (-lambda[w] * m[i + 1][j] - low[kX][w][i]);
        v[kY][t] += gain[w] * (-lambda[w] * m[i][j + 1] - low[kY][w][i]);
        v[kWidth][t] += gain[w] * (laplacian - low[kWidth][w][i]);
        if constexpr (kWidths == 2) {
          v[kRatio][t] -= gain[w] * low[kRatio][w][i];
          if constexpr (w == 1) v[kRatio][t] += gain[1] * laplacian;
        }
        if constexpr (kShared) {
          v[kSurroundWeight][t] -= gain[w] * low[kSurroundWeight][w][i];
          if constexpr (w == 1) v[kSurroundWeight][t] -= m[i][j];
        }
      }
    });
  });
  for (int a = 0; a < P; ++a) forward(v[a]);

  // <r, m_a> and <r, m_ab>: moments against the model, raised by one to four orders.
  for (int a = 0; a < P; ++a) out.gradient[a] = splat(0);
  Lanes second[P * (P + 1) / 2];
  for (auto& entry : second) entry = splat(0);
  unrolled<0, kWidths>([&](auto w) __attribute__((always_inline)) {
    const Lanes x = -lambda[w] * raised(w, 1, 0), y = -lambda[w] * raised(w, 0, 1);
    const Lanes xx = raised(w, 2, 0), xy = raised(w, 1, 1), yy = raised(w, 0, 2), laplacian = xx + yy;
    const Lanes laplacian_x = -lambda[w] * (raised(w, 3, 0) + raised(w, 1, 2));
    const Lanes laplacian_y = -lambda[w] * (raised(w, 2, 1) + raised(w, 0, 3));
    // Widths are searched in their logarithm: d2 / dlog2 = L^2 + 2 L.
    const Lanes twice = raised(w, 4, 0) + 2.0f * raised(w, 2, 2) + raised(w, 0, 4) + 2.0f * laplacian;
    const Lanes g = gain[w], steep = g * lambda[w] * lambda[w];
    out.gradient[kX] += g * x;
    out.gradient[kY] += g * y;
    out.gradient[kWidth] += g * laplacian;
    second[triangle(kX, kX)] += steep * xx;
    second[triangle(kY, kX)] += steep * xy;
    second[triangle(kY, kY)] += steep * yy;
    second[triangle(kWidth, kX)] += g * laplacian_x;
    second[triangle(kWidth, kY)] += g * laplacian_y;
    second[triangle(kWidth, kWidth)] += g * twice;
    if constexpr (w == 1) {
      out.gradient[kRatio] = g * laplacian;
      second[triangle(kRatio, kX)] = g * laplacian_x;
      second[triangle(kRatio, kY)] = g * laplacian_y;
      second[triangle(kRatio, kWidth)] = second[triangle(kRatio, kRatio)] = g * twice;
      if constexpr (kShared) {
        out.gradient[kSurroundWeight] = -raised(1, 0, 0);
        second[triangle(kSurroundWeight, kX)] = -x;
        second[triangle(kSurroundWeight, kY)] = -y;
        second[triangle(kSurroundWeight, kWidth)] = second[triangle(kSurroundWeight, kRatio)] = -laplacian;
      }
    }
  });

  unrolled<0, P>([&](auto a) __attribute__((always_inline)) {
    unrolled<0, a + 1>([&](auto b) __attribute__((always_inline)) {
      Lanes value = second[triangle(a, b)];
      if constexpr (a == kSurroundWeight) value -= dot<kOrder>(by_weight, low[b]);
      else if constexpr (a == kY) value -= dot<one>(by_y, middle[b]);
      else if constexpr (a == kX) value -= dot<one>(by_x, middle[b]);
      else if constexpr (b == kX) value -= dot<one>(by_x, middle[a]);
      else if constexpr (b == kY) value -= dot<one>(by_y, middle[a]);
      else if constexpr (a == kRatio) value -= dot<two>(by_ratio, high[b]);
      else value -= dot<two>(by_width, high[b]);
      for (int t = 0; t < kBasis; ++t) value += v[a][t] * v[b][t] * pivot[t];
      out.hessian[triangle(a, b)] = value;
    });
  });

  if constexpr (kShared) scale_surround(kOrder, point[kSurroundWeight], out);
}

}  // namespace
}  // namespace dogfit
