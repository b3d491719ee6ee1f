// Explained energy of a model with its gradient and exact Hessian, one kernel per lane.
//
// The mathematics is that of kernels/derivatives.py (variable projection: Golub and Pereyra, 1973). With
// B the centred basis, u the weights, r the residual, m = B u, and subscripts for derivatives:
//     F_a  / 2 = <r, m_a>
//     F_ab / 2 = <r, m_ab> - <m_a, m_b> + v_a' G^-1 v_b,   v_a = B_a' r - B' m_a,   G = B' B.
// Terms are products of 1-D profiles, so every inner product is made of 1-D sums. Derivatives stay terms:
// along x / sigma minus the next order, along a logarithm of a width the Laplacian.
#pragma once

#include "profiles.h"

namespace dogfit {
namespace {

// Half the derivatives; lengths in units of the (first) width. `hessian` is the lower triangle by rows.
template <int P>
struct Derivatives {
  Lanes energy;
  Lanes gradient[P];
  Lanes hessian[P * (P + 1) / 2];
};

constexpr int triangle(int row, int column) { return row * (row + 1) / 2 + column; }

// Where a column depends on earlier ones to rounding it gets no weight.
constexpr float kLeastPivot = 1e-6f, kLeastNorm = 1e-30f;

template <int ORDER_, Pairing PAIRING_, int SIZE>
struct Energy {
  static constexpr int kOrder = ORDER_;
  static constexpr Pairing kPairing = PAIRING_;
  static constexpr bool kElliptic = false;
  static constexpr bool kShared = kPairing == Pairing::kShared, kFree = kPairing == Pairing::kFree;
  static constexpr int kWidths = kPairing == Pairing::kSingle ? 1 : 2;
  static constexpr int P = 2 + kWidths + kShared;
  static constexpr int kBasis = kFree ? 2 : kOrder + 1;
  static constexpr int kTop = kOrder + 4;
  static constexpr int kGram = kOrder + 2;  // highest order in inner products of derivatives
  static constexpr int kMax = SIZE ? SIZE : kMaxSize;
  static_assert(!kFree || kOrder == 0, "weights of their own: for Gaussians alone");

  using Vector = Lanes[kWidths][kGram + 1];  // weights of terms (i, total - i) of one total order

  int size;
  Profiles<kTop, kGram, kMax> profile[kWidths];
  // Inner products of profiles about their means, and of raw ones.
  Lanes about[2][kWidths][kWidths][kGram + 1][kGram + 1], plain[2][kWidths][kWidths][kGram + 1][kGram + 1];
  Lanes residual[kMax * kMax];
  Lanes wide[kFree ? kMax * kMax : 1];
  Lanes moment[kWidths][kTop + 1][kTop + 1];  // <residual, term>
  Lanes gain[kWidths];                        // what multiplies the shared weights, per width
  Lanes weight[kWidths][kOrder + 1];
  Lanes lower[3], pivot[3];  // G = L D L'; here 1 / D, 0 where unusable

  DOGFIT_INLINE int taps() const { return SIZE ? SIZE : size; }

  DOGFIT_INLINE void prepare(const Lanes* point) {
    const Lanes inverse = exponential(-point[2]);
    for (int w = 0; w < kWidths; ++w) {
      Lanes inverse_width = inverse;
      if constexpr (kWidths == 2) {
        if (w == 1) inverse_width = inverse * exponential(-point[3]);
      }
      profile[w].compute(point, inverse_width, taps());
    }
    gain[0] = splat(1);
    if constexpr (kWidths == 2) gain[1] = splat(1);
    if constexpr (kShared) gain[1] = -point[4];
    const float count = taps();
    for (int a = 0; a < 2; ++a) {
      unrolled<0, kWidths>([&](auto v) __attribute__((always_inline)) {
        unrolled<0, kWidths - v>([&](auto step) __attribute__((always_inline)) {
          constexpr int w = v + step;
          for (int i = 0; i <= kGram; ++i) {
            Lanes sum[kGram + 1] = {};
            for (int u = 0; u < taps(); ++u) {
              const Lanes p = profile[v].centred[a][i][u];
              unrolled<0, kGram + 1>([&](auto j) __attribute__((always_inline)) {
                sum[j] += p * profile[w].centred[a][j][u];
              });
            }
            unrolled<0, kGram + 1>([&](auto j) __attribute__((always_inline)) {
              const Lanes raw = sum[j] + count * profile[v].mean[a][i] * profile[w].mean[a][j];
              about[a][v][w][i][j] = about[a][w][v][j][i] = sum[j];
              plain[a][v][w][i][j] = plain[a][w][v][j][i] = raw;
            });
          }
        });
      });
    }
  }

  // <term (v, i, j), term (w, k, l)> about the means: no product of means is taken from a whole.
  DOGFIT_INLINE Lanes inner(int v, int i, int j, int w, int k, int l) const {
    const Lanes means = plain[0][v][w][i][k] - about[0][v][w][i][k];
    return about[0][v][w][i][k] * plain[1][v][w][j][l] + means * about[1][v][w][j][l];
  }

  // Inner products of the terms of total order ROW with a function of terms of total order COLUMN.
  template <int ROW, int COLUMN>
  DOGFIT_INLINE void apply(const Vector& function, Vector& out) const {
    unrolled<0, kWidths*(ROW + 1)>([&](auto row) __attribute__((always_inline)) {
      constexpr int v = row / (ROW + 1), i = row % (ROW + 1);
      if constexpr (!absent(ROW, i)) {
        Lanes sum = splat(0);
        unrolled<0, kWidths*(COLUMN + 1)>([&](auto column) __attribute__((always_inline)) {
          constexpr int w = column / (COLUMN + 1), k = column % (COLUMN + 1);
          if constexpr (!absent(COLUMN, k)) sum += inner(v, i, ROW - i, w, k, COLUMN - k) * function[w][k];
        });
        out[v][i] = sum;
      }
    });
  }

  // Terms no derivative of this order has: the Laplacian of a Gaussian has no mixed one.
  static constexpr bool absent(int total, int i) { return kOrder == 0 && total == 2 && i == 1; }

  template <int TOTAL>
  DOGFIT_INLINE static Lanes dot(const Vector& a, const Vector& b) {
    Lanes sum = splat(0);
    unrolled<0, kWidths*(TOTAL + 1)>([&](auto index) __attribute__((always_inline)) {
      constexpr int w = index / (TOTAL + 1), i = index % (TOTAL + 1);
      if constexpr (!absent(TOTAL, i)) sum += a[w][i] * b[w][i];
    });
    return sum;
  }

  // Solves for the weights. Two Gaussians of nearly one width need Gram-Schmidt on images: their Gram matrix has
  // no digits to spare in float32. `wide` is what the first leaves of the second, and `residual` lacks its part.
  DOGFIT_INLINE void project_free(const Lanes* kernel) {
    const int n = taps();
    const auto& first = profile[0];
    const auto& other = profile[1];
    const Lanes square = inner(0, 0, 0, 0, 0, 0), whole = inner(1, 0, 0, 1, 0, 0);
    Lanes along = splat(0), square_left = splat(0), along_left = splat(0);
    for (int y = 0; y < n; ++y) {
      Lanes product = splat(0), sum = splat(0);
      for (int x = 0; x < n; ++x) {
        product += first.centred[0][0][x] * kernel[y * n + x];
        sum += kernel[y * n + x];
      }
      along += product * first.raw[1][0][y] + first.mean[0][0] * first.centred[1][0][y] * sum;
    }
    pivot[0] = select(square > kLeastNorm, 1.0f / square, splat(0));
    lower[0] = inner(0, 0, 0, 1, 0, 0) * pivot[0];
    weight[0][0] = along * pivot[0];
    Lanes constant[kMax], fitted[kMax];
    for (int y = 0; y < n; ++y) {
      const Lanes about_mean = first.mean[0][0] * first.centred[1][0][y];
      constant[y] = other.mean[0][0] * other.centred[1][0][y] - lower[0] * about_mean;
      fitted[y] = weight[0][0] * about_mean;
    }
    for (int x = 0; x < n; ++x) {
      const Lanes a = first.centred[0][0][x], b = other.centred[0][0][x];
      const Lanes shared = lower[0] * a, part = weight[0][0] * a;
      for (int y = 0; y < n; ++y) {
        const int tap = y * n + x;
        const Lanes left = b * other.raw[1][0][y] + (constant[y] - shared * first.raw[1][0][y]);
        const Lanes value = kernel[tap] - fitted[y] - part * first.raw[1][0][y];
        square_left += left * left;
        along_left += left * value;
        wide[tap] = left;
        residual[tap] = value;
      }
    }
    pivot[1] = select(square_left > 4e-12f * whole, 1.0f / square_left, splat(0));
    weight[1][0] = along_left * pivot[1];
    weight[0][0] -= lower[0] * weight[1][0];
  }

  DOGFIT_INLINE void project_shared(const Lanes* kernel) {
    const int n = taps();
    Lanes solution[kBasis] = {};
    // <kernel, basis>; the kernel sums to zero, so the basis need not.
    Lanes rows[kWidths][kOrder + 1];
    for (int y = 0; y < n; ++y) {
      for (int w = 0; w < kWidths; ++w) {
        unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) { rows[w][i] = splat(0); });
      }
      for (int x = 0; x < n; ++x) {
        const Lanes value = kernel[y * n + x];
        for (int w = 0; w < kWidths; ++w) {
          unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
            rows[w][i] += profile[w].raw[0][i][x] * value;
          });
        }
      }
      for (int w = 0; w < kWidths; ++w) {
        unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
          solution[i] += gain[w] * rows[w][i] * profile[w].raw[1][kOrder - i][y];
        });
      }
    }
    // L D L' and the solution.
    Lanes entry[kBasis][kBasis];
    unrolled<0, kBasis>([&](auto i) __attribute__((always_inline)) {
      unrolled<0, i + 1>([&](auto j) __attribute__((always_inline)) {
        Lanes sum = splat(0);
        for (int v = 0; v < kWidths; ++v) {
          for (int w = 0; w < kWidths; ++w) {
            sum += gain[v] * gain[w] * inner(v, i, kOrder - i, w, j, kOrder - j);
          }
        }
        entry[i][j] = sum;
      });
    });
    Lanes diagonal[kBasis];
    unrolled<0, kBasis>([&](auto i) __attribute__((always_inline)) {
      unrolled<0, i>([&](auto j) __attribute__((always_inline)) {
        Lanes value = entry[i][j];
        unrolled<0, j>([&](auto k) __attribute__((always_inline)) {
          value -= unit(i, k) * unit(j, k) * diagonal[k];
        });
        lower[triangle(i - 1, j)] = value * pivot[j];
      });
      Lanes value = entry[i][i];
      unrolled<0, i>([&](auto k) __attribute__((always_inline)) {
        value -= unit(i, k) * unit(i, k) * diagonal[k];
      });
      diagonal[i] = value;
      const Mask usable = (value > kLeastPivot * entry[i][i]) & (value > kLeastNorm);
      pivot[i] = select(usable, 1.0f / value, splat(0));
    });
    forward(solution);
    for (int i = 0; i < kBasis; ++i) solution[i] *= pivot[i];
    unrolled<0, kBasis>([&](auto reverse) __attribute__((always_inline)) {
      constexpr int i = kBasis - 1 - reverse;
      unrolled<i + 1, kBasis>([&](auto k) __attribute__((always_inline)) {
        solution[i] -= unit(k, i) * solution[k];
      });
      for (int w = 0; w < kWidths; ++w) weight[w][i] = solution[i];
    });
    subtract(kernel);
  }

  // Entry of L below the diagonal.
  DOGFIT_INLINE Lanes unit(int row, int column) const { return lower[triangle(row - 1, column)]; }

  // Solves L y = x in place.
  DOGFIT_INLINE void forward(Lanes* x) const {
    unrolled<0, kBasis>([&](auto i) __attribute__((always_inline)) {
      unrolled<0, i>([&](auto k) __attribute__((always_inline)) { x[i] -= unit(i, k) * x[k]; });
    });
  }

  // residual = kernel - model, about the mean.
  DOGFIT_INLINE void subtract(const Lanes* kernel) {
    const int n = taps();
    Lanes column[kWidths][kOrder + 1][kMax], about_column[kWidths][kOrder + 1][kMax];
    for (int w = 0; w < kWidths; ++w) {
      for (int i = 0; i <= kOrder; ++i) {
        const Lanes u = gain[w] * weight[w][i], mean = u * profile[w].mean[0][i];
        for (int y = 0; y < n; ++y) {
          column[w][i][y] = u * profile[w].raw[1][kOrder - i][y];
          about_column[w][i][y] = mean * profile[w].centred[1][kOrder - i][y];
        }
      }
    }
    for (int y = 0; y < n; ++y) {
      Lanes constant = splat(0);
      for (int w = 0; w < kWidths; ++w) {
        unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
          constant += about_column[w][i][y];
        });
      }
      for (int x = 0; x < n; ++x) {
        Lanes value = kernel[y * n + x] - constant;
        for (int w = 0; w < kWidths; ++w) {
          unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
            value -= profile[w].centred[0][i][x] * column[w][i][y];
          });
        }
        residual[y * n + x] = value;
      }
    }
  }

  // Moments of the residual; returns its energy.
  DOGFIT_INLINE Lanes compute_moments() {
    const int n = taps();
    Lanes rows[kWidths][kTop + 1][kMax], left = splat(0);
    for (int y = 0; y < n; ++y) {
      Lanes sum[kWidths][kTop + 1] = {};
      for (int x = 0; x < n; ++x) {
        Lanes value = residual[y * n + x];
        if constexpr (kFree) value -= weight[1][0] * wide[y * n + x];
        left += value * value;
        unrolled<0, kWidths*(kTop + 1)>([&](auto index) __attribute__((always_inline)) {
          constexpr int w = index / (kTop + 1), i = index % (kTop + 1);
          sum[w][i] += profile[w].raw[0][i][x] * value;
        });
      }
      unrolled<0, kWidths*(kTop + 1)>([&](auto index) __attribute__((always_inline)) {
        constexpr int w = index / (kTop + 1), i = index % (kTop + 1);
        rows[w][i][y] = sum[w][i];
      });
    }
    unrolled<0, kWidths*(kTop + 1)>([&](auto index) __attribute__((always_inline)) {
      constexpr int w = index / (kTop + 1), i = index % (kTop + 1);
      constexpr int least = i < kOrder ? kOrder - i : 0;
      Lanes sum[kTop + 1 - i] = {};
      for (int y = 0; y < n; ++y) {
        const Lanes value = rows[w][i][y];
        unrolled<least, kTop + 1 - i>([&](auto j) __attribute__((always_inline)) {
          sum[j] += value * profile[w].raw[1][j][y];
        });
      }
      unrolled<least, kTop + 1 - i>([&](auto j) __attribute__((always_inline)) { moment[w][i][j] = sum[j]; });
    });
    return left;
  }

  // Weighted sum over the terms of a width, each raised by these orders, of moments of the residual.
  DOGFIT_INLINE Lanes raised(int w, int along_x, int along_y) const {
    Lanes sum = splat(0);
    unrolled<0, kOrder + 1>([&](auto i) __attribute__((always_inline)) {
      sum += weight[w][i] * moment[w][i + along_x][kOrder - i + along_y];
    });
    return sum;
  }

  static __attribute__((noinline)) void evaluate(Energy& work, const Lanes* kernel, Lanes total,
                                                 const Lanes* point, Derivatives<P>& out) {
    work.prepare(point);
    if constexpr (kFree) work.project_free(kernel);
    else work.project_shared(kernel);
    out.energy = total - work.compute_moments();
    work.differentiate(point, out);
  }

  DOGFIT_INLINE void differentiate(const Lanes* point, Derivatives<P>& out) const;
};

}  // namespace
}  // namespace dogfit
