// Explained energy of elliptic models with its gradient and exact Hessian, one kernel per lane.
//
// The mathematics is that of kernels/derivatives.py. Terms are no products of profiles: images are made in full.
#pragma once

#include "ellipse_terms.h"
#include "newton.h"

namespace dogfit {
namespace {

// Width of the shorter axis, in taps, from which the terms of pairs of Gaussians are made by series.
constexpr float kWide = 3;

template <int ORDER_, Pairing PAIRING_>
struct EllipticEnergy {
  static constexpr int kOrder = ORDER_;
  static constexpr Pairing kPairing = PAIRING_;
  static constexpr bool kElliptic = true;
  static constexpr bool kShared = kPairing == Pairing::kShared, kFree = kPairing == Pairing::kFree;
  static constexpr int kWidths = kPairing == Pairing::kSingle ? 1 : 2;
  static constexpr int P = 4 + kWidths + kShared;
  static constexpr int kBasis = kFree ? 2 : kOrder + 1;
  static constexpr int kMax = kMaxSize;
  static constexpr int kTop = kOrder + 4;  // highest order of moments of the residual
  static constexpr int kImages = place(kOrder, kOrder + 3, 0);
  static constexpr int kMoments = place(kOrder, kTop + 1, 0);
  static constexpr int kNodes = kOrder == 0 ? 8 : 1;  // to rounding for axes as 5 to 1
  static constexpr int kE1 = P - 2, kE2 = P - 1;

  int size;
  Ellipse ellipse;
  Lanes x[kWidths][kMax + 1], y[kWidths][kMax + 1];  // edges of taps, in widths from the centre
  Corner corner[kWidths][(kMax + 1) * (kMax + 1)];
  Lanes image[kWidths][kImages][kMax * kMax];
  Lanes direction[kBasis][kMax * kMax];  // the basis, centred and orthogonal
  Lanes residual[kMax * kMax];
  Lanes change[P][kMax * kMax];  // of the model by each parameter
  Lanes moment[kWidths][kMoments];
  Lanes lambda[kWidths];  // first width / this width
  Lanes side[kWidths];    // of a tap, in widths
  Mask wide[kWidths];     // whether that is small
  Lanes gain[kWidths];    // what multiplies the shared weights, per width
  Lanes weight[kWidths][kOrder + 1];
  Lanes lower[3], pivot[3];  // G = L D L'; here 1 / D, 0 where unusable
  // Nodes over the correlation: what each makes of squares and products of coordinates, and its part.
  Lanes stretch[kNodes], bend[kNodes], part[kNodes];

  static __attribute__((noinline)) void evaluate(EllipticEnergy& work, const Lanes* kernel, Lanes total,
                                                 const Lanes* point, Derivatives<P>& out) {
    work.prepare(point);
    for (int w = 0; w < kWidths; ++w) work.make_images(w);
    out.energy = total - work.project(kernel);
    for (int w = 0; w < kWidths; ++w) work.compute_moments(w);
    work.change_model();
    work.differentiate(point, out);
  }

  DOGFIT_INLINE void prepare(const Lanes* point) {
    ellipse.compute(point[kE1], point[kE2]);
    if constexpr (kOrder == 0) place_nodes();
    lambda[0] = gain[0] = splat(1);
    if constexpr (kWidths == 2) lambda[1] = exponential(-point[3]), gain[1] = splat(1);
    if constexpr (kShared) gain[1] = -point[4];
    const Lanes inverse = exponential(-point[2]);
    const Lanes half = 0.5f * square_root(point[kE1] * point[kE1] + point[kE2] * point[kE2]);
    for (int w = 0; w < kWidths; ++w) {
      side[w] = inverse * lambda[w];
      wide[w] = exponential(half) * side[w] < 1 / kWide;
      for (int edge = 0; edge <= size; ++edge) {
        const float at = edge - 0.5f * size;
        x[w][edge] = (at - point[0]) * side[w];
        y[w][edge] = (at - point[1]) * side[w];
      }
    }
  }

  // Images of the terms of the basis and of its first derivatives, and what their corners are made of.
  __attribute__((noinline)) void make_images(int w) {
    const Ellipse& k = ellipse;
    const int n = size;
    Lanes marginal[kMax + 1], before[kMax + 1][kImages], now[kImages];
    for (int v = 0; v <= n; ++v) marginal[v] = marginal_density(y[w][v], k.inverse_y, k.root_y);
    for (int u = 0; u <= n; ++u) {
      const Lanes at_x = x[w][u], of_x = marginal_density(at_x, k.inverse_x, k.root_x);
      Lanes left[kImages];
      for (int v = 0; v <= n; ++v) {
        const Lanes at_y = y[w][v];
        Corner& c = corner[w][v * (n + 1) + u];
        c.density = density_at(k, at_x, at_y);
        c.along_x = of_x * cumulative((at_y - k.slope_x * at_x) * k.narrow_x);
        c.along_y = marginal[v] * cumulative((at_x - k.slope_y * at_y) * k.narrow_y);
        expand<kOrder, kOrder + 2>(k, at_x, at_y, c, now);
        if constexpr (kOrder == 0) now[0] = correlated_mass(at_x, at_y);
        for (int t = 0; t < kImages; ++t) {
          const Lanes along = v > 0 ? now[t] - left[t] : splat(0);
          if (u > 0 && v > 0) image[w][t][(v - 1) * n + u - 1] = along - before[v][t];
          before[v][t] = along;
          left[t] = now[t];
        }
      }
    }
    if constexpr (kOrder == 0) add_product(w);
    if constexpr (kFree) {
      if (bits(wide[w])) {
        for_taps(w, [&](int tap, Lanes at_x, Lanes at_y) __attribute__((always_inline)) {
          expand_wide<2>(k, at_x, at_y, side[w], now);
          for (int t = 0; t < kImages; ++t) image[w][t][tap] = select(wide[w], now[t], image[w][t][tap]);
        });
      }
    }
  }

  // Calls `body` with each tap and where its centre is, in widths.
  template <class Body>
  DOGFIT_INLINE void for_taps(int w, const Body& body) const {
    for (int u = 0; u < size; ++u) {
      for (int v = 0; v < size; ++v) {
        body(v * size + u, x[w][u] + 0.5f * side[w], y[w][v] + 0.5f * side[w]);
      }
    }
  }

  DOGFIT_INLINE static Lanes cumulative(Lanes z) {
    const Lanes square = z * z;
    return dogfit::cumulative(z, square, exponential(-0.5f * square)).value;
  }
  DOGFIT_INLINE static Lanes marginal_density(Lanes z, Lanes inverse, Lanes root) {
    return kInverseRootTwoPi * root * exponential(-0.5f * inverse * z * z);
  }

  // What correlation adds to the mass beyond a corner: the integral of the density over the correlation r from
  // zero, here over t = r / sqrt(1 - r^2), which ends at K_xy since K has determinant one.
  DOGFIT_INLINE void place_nodes() {
    constexpr float node[8] = {0.019855072f, 0.10166676f, 0.2372338f,  0.40828268f,
                               0.59171732f,  0.7627662f,  0.89833324f, 0.98014493f};
    constexpr float share[8] = {0.050614268f, 0.11119052f, 0.15685332f, 0.18134189f,
                                0.18134189f,  0.15685332f, 0.11119052f, 0.050614268f};
    for (int i = 0; i < kNodes; ++i) {
      const Lanes t = node[i] * ellipse.xy;
      stretch[i] = 1.0f + t * t;
      bend[i] = t * square_root(stretch[i]);
      part[i] = kInverseRootTwoPi * kInverseRootTwoPi * share[i] * ellipse.xy / stretch[i];
    }
  }
  DOGFIT_INLINE Lanes correlated_mass(Lanes at_x, Lanes at_y) const {
    const Lanes a = at_x * ellipse.root_x, b = at_y * ellipse.root_y;
    const Lanes squares = -0.5f * (a * a + b * b), product = a * b;
    Lanes sum = splat(0);
    for (int i = 0; i < kNodes; ++i) sum += part[i] * exponential(squares * stretch[i] + product * bend[i]);
    return sum;
  }

  // The mass of the product of the marginals.
  DOGFIT_INLINE void add_product(int w) {
    const int n = size;
    Lanes along_y[kMax], last = cumulative(y[w][0] * ellipse.root_y);
    for (int v = 0; v < n; ++v) {
      const Lanes next = cumulative(y[w][v + 1] * ellipse.root_y);
      along_y[v] = next - last;
      last = next;
    }
    last = cumulative(x[w][0] * ellipse.root_x);
    for (int u = 0; u < n; ++u) {
      const Lanes next = cumulative(x[w][u + 1] * ellipse.root_x), along_x = next - last;
      for (int v = 0; v < n; ++v) image[w][0][v * n + u] += along_x * along_y[v];
      last = next;
    }
  }

  // Solves for the weights by Gram-Schmidt on images, which keeps the digits of nearly dependent functions.
  // Returns the energy of what is left, `residual`.
  __attribute__((noinline)) Lanes project(const Lanes* kernel) {
    const int taps = size * size;
    Lanes along[kBasis], left = splat(0);
    for (int tap = 0; tap < taps; ++tap) residual[tap] = kernel[tap];
    unrolled<0, kBasis>([&](auto t) __attribute__((always_inline)) {
      Lanes mean = splat(0), whole = splat(0), square = splat(0);
      for (int tap = 0; tap < taps; ++tap) {
        Lanes value = splat(0);
        if constexpr (kFree) value = image[t][0][tap];
        else for (int w = 0; w < kWidths; ++w) value += gain[w] * image[w][t][tap];
        direction[t][tap] = value;
        mean += value;
      }
      mean *= 1.0f / taps;
      for (int tap = 0; tap < taps; ++tap) {
        direction[t][tap] -= mean;
        whole += direction[t][tap] * direction[t][tap];
      }
      unrolled<0, t>([&](auto s) __attribute__((always_inline)) {
        Lanes shared = splat(0);
        for (int tap = 0; tap < taps; ++tap) shared += direction[s][tap] * direction[t][tap];
        shared *= pivot[s];
        for (int tap = 0; tap < taps; ++tap) direction[t][tap] -= shared * direction[s][tap];
        lower[triangle(t - 1, s)] = shared;
      });
      Lanes sum = splat(0);
      for (int tap = 0; tap < taps; ++tap) {
        square += direction[t][tap] * direction[t][tap];
        sum += direction[t][tap] * residual[tap];
      }
      pivot[t] = select((square > 4e-12f * whole) & (square > kLeastNorm), 1.0f / square, splat(0));
      along[t] = sum * pivot[t];
      for (int tap = 0; tap < taps; ++tap) residual[tap] -= along[t] * direction[t][tap];
    });
    unrolled<0, kBasis>([&](auto reverse) __attribute__((always_inline)) {
      constexpr int i = kBasis - 1 - reverse;
      unrolled<i + 1, kBasis>([&](auto k) __attribute__((always_inline)) {
        along[i] -= lower[triangle(k - 1, i)] * along[k];
      });
    });
    if constexpr (kFree) weight[0][0] = along[0], weight[1][0] = along[1];
    else for (int w = 0; w < kWidths; ++w) for (int i = 0; i < kBasis; ++i) weight[w][i] = along[i];
    for (int tap = 0; tap < taps; ++tap) left += residual[tap] * residual[tap];
    return left;
  }

  // Products of the residual with terms. Summed by parts: differences of the residual times corners.
  __attribute__((noinline)) void compute_moments(int w) {
    const int n = size;
    Lanes sum[kMoments] = {}, value[kMoments];
    for (int u = 0; u <= n; ++u) {
      for (int v = 0; v <= n; ++v) {
        const auto at = [&](int i, int j) __attribute__((always_inline)) {
          return i < 0 || i >= n || j < 0 || j >= n ? splat(0) : residual[j * n + i];
        };
        const Lanes bend = (at(u - 1, v - 1) - at(u, v - 1)) - (at(u - 1, v) - at(u, v));
        expand<kOrder, kTop>(ellipse, x[w][u], y[w][v], corner[w][v * (n + 1) + u], value);
        unrolled<(kOrder == 0), kMoments>([&](auto t) __attribute__((always_inline)) { sum[t] += bend * value[t]; });
      }
    }
    for (int t = 0; t < kMoments; ++t) moment[w][t] = sum[t];
    if constexpr (kFree) {
      if (!bits(wide[w])) return;
      for (int t = 0; t < kMoments; ++t) sum[t] = splat(0);
      for_taps(w, [&](int tap, Lanes at_x, Lanes at_y) __attribute__((always_inline)) {
        expand_wide<kTop>(ellipse, at_x, at_y, side[w], value);
        for (int t = 0; t < kMoments; ++t) sum[t] += residual[tap] * value[t];
      });
      for (int t = 0; t < kMoments; ++t) moment[w][t] = select(wide[w], sum[t], moment[w][t]);
    }
  }

  DOGFIT_INLINE static Lanes apply(const Quadratic& form, Lanes xx, Lanes xy, Lanes yy) {
    return form.xx * xx + form.xy * xy + form.yy * yy;
  }

  // Derivatives of the model's image by each parameter, for fixed weights, about their means.
  __attribute__((noinline)) void change_model() {
    const int taps = size * size;
    Lanes mean[P] = {};
    for (int tap = 0; tap < taps; ++tap) {
      Lanes by[P] = {};
      unrolled<0, kWidths>([&](auto w) __attribute__((always_inline)) {
        const auto raised = [&](auto along_x, auto along_y) __attribute__((always_inline)) {
          Lanes value = splat(0);
          unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
            constexpr int total = kOrder + along_x + along_y;
            value += weight[w][i] * image[w][place(kOrder, total, i + along_x)][tap];
          });
          return value;
        };
        by[kX] -= gain[w] * lambda[w] * raised(Index<1>{}, Index<0>{});
        by[kY] -= gain[w] * lambda[w] * raised(Index<0>{}, Index<1>{});
        const Lanes xx = gain[w] * raised(Index<2>{}, Index<0>{}), xy = gain[w] * raised(Index<1>{}, Index<1>{}),
                    yy = gain[w] * raised(Index<0>{}, Index<2>{});
        const Lanes widened = apply(ellipse.width, xx, xy, yy);
        by[kWidth] += widened;
        by[kE1] += apply(ellipse.by_e1, xx, xy, yy);
        by[kE2] += apply(ellipse.by_e2, xx, xy, yy);
        if constexpr (w == 1) by[kRatio] = widened;
        if constexpr (w == 1 && kShared) by[kSurroundWeight] = -raised(Index<0>{}, Index<0>{});
      });
      for (int a = 0; a < P; ++a) {
        change[a][tap] = by[a];
        mean[a] += by[a];
      }
    }
    for (int a = 0; a < P; ++a) {
      mean[a] *= 1.0f / taps;
      for (int tap = 0; tap < taps; ++tap) change[a][tap] -= mean[a];
    }
  }

  // Weighted sum over the terms of a width, each raised by these orders, of moments of the residual.
  DOGFIT_INLINE Lanes raised(int w, int along_x, int along_y) const {
    Lanes sum = splat(0);
    unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
      sum += weight[w][i] * moment[w][place(kOrder, kOrder + along_x + along_y, i + along_x)];
    });
    return sum;
  }

  // The gradient, and <residual, second derivatives of the model>.
  __attribute__((noinline)) void differentiate_residual(Derivatives<P>& out) const {
    const auto entry = [&](int a, int b) __attribute__((always_inline)) -> Lanes& {
      return out.hessian[a > b ? triangle(a, b) : triangle(b, a)];
    };
    for (int e = 0; e < P * (P + 1) / 2; ++e) out.hessian[e] = splat(0);
    for (int a = 0; a < P; ++a) out.gradient[a] = splat(0);

    unrolled<0, kWidths>([&](auto w) __attribute__((always_inline)) {
      const Lanes xx = raised(w, 2, 0), xy = raised(w, 1, 1), yy = raised(w, 0, 2);
      const Lanes third[4] = {raised(w, 3, 0), raised(w, 2, 1), raised(w, 1, 2), raised(w, 0, 3)};
      const Lanes fourth[5] = {raised(w, 4, 0), raised(w, 3, 1), raised(w, 2, 2), raised(w, 1, 3),
                               raised(w, 0, 4)};
      const Ellipse& k = ellipse;
      constexpr int shape[3] = {kWidth, kE1, kE2};
      const Quadratic* form[3] = {&k.width, &k.by_e1, &k.by_e2};
      const Lanes g = gain[w], step = -lambda[w];
      // By x, y, width, e1, e2, before the gain.
      Lanes first[5] = {step * raised(w, 1, 0), step * raised(w, 0, 1)};
      out.gradient[kX] += g * first[0];
      out.gradient[kY] += g * first[1];
      entry(kX, kX) += g * step * step * xx;
      entry(kY, kX) += g * step * step * xy;
      entry(kY, kY) += g * step * step * yy;
      // Second derivatives of K itself: twice the first ones along the width.
      const Lanes bent[3][3] = {{2.0f * apply(k.width, xx, xy, yy), splat(0), splat(0)},
                                {2.0f * apply(k.by_e1, xx, xy, yy), apply(k.by_e1_e1, xx, xy, yy), splat(0)},
                                {2.0f * apply(k.by_e2, xx, xy, yy), apply(k.by_e2_e1, xx, xy, yy),
                                 apply(k.by_e2_e2, xx, xy, yy)}};
      unrolled<0, 3>([&](auto s) __attribute__((always_inline)) {
        const Quadratic& f = *form[s];
        first[2 + s] = apply(f, xx, xy, yy);
        out.gradient[shape[s]] += g * first[2 + s];
        const Lanes by_x = step * apply(f, third[0], third[1], third[2]);
        const Lanes by_y = step * apply(f, third[1], third[2], third[3]);
        entry(shape[s], kX) += g * by_x;
        entry(shape[s], kY) += g * by_y;
        Lanes twice[3];
        unrolled<0, 3>([&](auto t) __attribute__((always_inline)) {
          const Quadratic& h = *form[t];
          const Lanes inner[3] = {apply(h, fourth[0], fourth[1], fourth[2]),
                                  apply(h, fourth[1], fourth[2], fourth[3]),
                                  apply(h, fourth[2], fourth[3], fourth[4])};
          twice[t] = apply(f, inner[0], inner[1], inner[2]) + bent[s > t ? s : t][s > t ? t : s];
          if constexpr (t <= s) entry(shape[s], shape[t]) += g * twice[t];
        });
        if constexpr (w == 1) {
          entry(kRatio, shape[s]) = g * twice[0];
          if constexpr (s == 0) {
            entry(kRatio, kRatio) = g * twice[0];
            entry(kRatio, kX) = g * by_x;
            entry(kRatio, kY) = g * by_y;
            out.gradient[kRatio] = g * first[2];
          }
        }
      });
      if constexpr (w == 1 && kShared) {
        out.gradient[kSurroundWeight] = -raised(1, 0, 0);
        entry(kSurroundWeight, kX) = -first[0];
        entry(kSurroundWeight, kY) = -first[1];
        entry(kSurroundWeight, kWidth) = entry(kSurroundWeight, kRatio) = -first[2];
        entry(kSurroundWeight, kE1) = -first[3];
        entry(kSurroundWeight, kE2) = -first[4];
      }
    });
  }

  // L^-1 v_a of each parameter, with v_a of each basis function.
  __attribute__((noinline)) void couple(Lanes (*v)[kBasis]) const {
    const int taps = size * size;
    for (int a = 0; a < P; ++a) for (int t = 0; t < kBasis; ++t) v[a][t] = splat(0);
    unrolled<0, kBasis>([&](auto t) __attribute__((always_inline)) {
      unrolled<0, kWidths>([&](auto w) __attribute__((always_inline)) {
        if constexpr (!kFree || w == t) {
          constexpr int i = kFree ? 0 : int(t);
          const auto term = [&](int along_x, int along_y) __attribute__((always_inline)) {
            return moment[w][place(kOrder, kOrder + along_x + along_y, i + along_x)];
          };
          const Lanes xx = term(2, 0), xy = term(1, 1), yy = term(0, 2), g = gain[w];
          const Lanes widened = g * apply(ellipse.width, xx, xy, yy);
          v[kX][t] -= g * lambda[w] * term(1, 0);
          v[kY][t] -= g * lambda[w] * term(0, 1);
          v[kWidth][t] += widened;
          v[kE1][t] += g * apply(ellipse.by_e1, xx, xy, yy);
          v[kE2][t] += g * apply(ellipse.by_e2, xx, xy, yy);
          if constexpr (w == 1) v[kRatio][t] = widened;
          if constexpr (w == 1 && kShared) v[kSurroundWeight][t] = -term(0, 0);
        }
      });
    });
    for (int a = 0; a < P; ++a) {
      unrolled<0, kBasis>([&](auto t) __attribute__((always_inline)) {
        unrolled<0, t>([&](auto s) __attribute__((always_inline)) {
          v[a][t] -= lower[triangle(t - 1, s)] * v[a][s];
        });
      });
      // The directions are the basis times L^-1 already.
      Lanes with_basis[kBasis] = {};
      for (int tap = 0; tap < taps; ++tap) {
        for (int t = 0; t < kBasis; ++t) with_basis[t] += direction[t][tap] * change[a][tap];
      }
      for (int t = 0; t < kBasis; ++t) v[a][t] -= with_basis[t];
    }
  }

  __attribute__((noinline)) void differentiate(const Lanes* point, Derivatives<P>& out) const {
    const int taps = size * size;
    Lanes v[P][kBasis];
    differentiate_residual(out);
    couple(v);
    unrolled<0, P>([&](auto a) __attribute__((always_inline)) {
      Lanes with_change[P] = {};
      for (int tap = 0; tap < taps; ++tap) {
        unrolled<0, a + 1>([&](auto b) __attribute__((always_inline)) {
          with_change[b] += change[a][tap] * change[b][tap];
        });
      }
      unrolled<0, a + 1>([&](auto b) __attribute__((always_inline)) {
        Lanes value = splat(0);
        for (int t = 0; t < kBasis; ++t) value += v[a][t] * v[b][t] * pivot[t];
        out.hessian[triangle(a, b)] += value - with_change[b];
      });
    });
    if constexpr (kShared) scale_surround(kOrder, point[4], out);
  }
};

}  // namespace
}  // namespace dogfit
