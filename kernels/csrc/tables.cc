#include "tables.h"

#include <algorithm>
#include <cmath>

namespace dogfit {
namespace {

constexpr double kLevelStep = 1.37;  // ratio of neighbouring widths
constexpr double kWidest = 0.75;     // of the kernel's size

// Widths of the surround, in widths of the centre. The limit of equal widths needs no grid of its own: the
// pair is then a Gaussian and its Laplacian.
const std::vector<double> kPairRatios = {1.7, 3.0, 7.0};
const std::vector<double> kTiedRatios = {1.3, 2.2, 5.0};
const std::vector<double> kKappas = {0.4, 0.75, 1.0};

// Centres tried at one width, symmetric about the middle.
std::vector<double> centers(double sigma, int size) {
  std::vector<double> offsets;
  if (sigma < 0.35) offsets = {0.0, 0.25};
  else if (sigma < 0.5) offsets = {0.0, 0.25};
  std::vector<double> line;
  const double half = 0.5 * size;
  if (!offsets.empty()) {
    // Between two edges lies a tap; both edges belong to the line.
    for (int tap = 0; tap < size; ++tap) {
      const double middle = tap - half + 0.5;
      line.push_back(middle - 0.5);
      for (auto o = offsets.rbegin(); o != offsets.rend(); ++o) line.push_back(middle - *o);
      for (double o : offsets) {
        if (o > 0) line.push_back(middle + o);
      }
    }
    line.push_back(half);
    return line;
  }
  const double spacing = std::min(std::max(0.5 * sigma, 0.25), 0.17 * size);
  const int steps = 2 * static_cast<int>(std::ceil(0.5 * size / spacing));
  for (int i = 0; i <= steps; ++i) line.push_back((i - 0.5 * steps) * (size / static_cast<double>(steps)));
  return line;
}

// Scaled profiles of one order at one width, `[line, size]`.
void profiles(int order, double sigma, const std::vector<double>& line, int size, float* out) {
  auto edge = [&](double z) {
    if (order == 0) return 0.5 * std::erf(z * std::sqrt(0.5));
    const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * M_PI);
    return order == 1 ? density : -z * density;
  };
  for (size_t c = 0; c < line.size(); ++c) {
    for (int u = 0; u < size; ++u) {
      const double low = (u - 0.5 * size - line[c]) / sigma, high = (u + 1 - 0.5 * size - line[c]) / sigma;
      out[c * size + u] = static_cast<float>(edge(high) - edge(low));
    }
  }
}

// A term of a function of x and y: the product of two profiles, by number (order, + 3 for the second width).
struct Term {
  int x, y;
  double weight;
};
using Function = std::vector<Term>;

std::vector<Function> functions(const SeedPlane& plane, int order) {
  std::vector<Function> out;
  if (plane.kind == SeedPlane::kLaplacian) return {{{0, 0, 1.0}}, {{2, 0, 1.0}, {0, 2, 1.0}}};
  if (plane.kind == SeedPlane::kPair) return {{{0, 0, 1.0}}, {{3, 3, 1.0}}};
  for (int i = order; i >= 0; --i) {
    Function f = {{i, order - i, 1.0}};
    if (plane.kind == SeedPlane::kTied) f.push_back({3 + i, 3 + order - i, -plane.kappa});
    out.push_back(f);
  }
  return out;
}

// Inner products of the profiles at each centre: about their means, and size times the means' product.
struct Sums {
  double about[6][6], means[6][6];
};

// L and 1 / D of the Gram matrix at every node, `[count, count, q (q + 1) / 2]` by rows.
void whiten(const std::vector<Function>& basis, const std::vector<Sums>& sums, float* out) {
  const int q = static_cast<int>(basis.size());
  for (const Sums& x : sums) {
    for (const Sums& y : sums) {
      auto inner = [&](const Function& f, const Function& g) {
        double sum = 0;
        for (const Term& a : f) {
          for (const Term& b : g) {
            const double plain = y.about[a.y][b.y] + y.means[a.y][b.y];
            sum += a.weight * b.weight * (x.about[a.x][b.x] * plain + x.means[a.x][b.x] * y.about[a.y][b.y]);
          }
        }
        return sum;
      };
      double unit[3][3], pivots[3];
      for (int i = 0; i < q; ++i) {
        double pivot = 0;
        for (int j = 0; j <= i; ++j) {
          double value = inner(basis[i], basis[j]);
          const double whole = value;
          for (int k = 0; k < j; ++k) value -= unit[i][k] * unit[j][k] * pivots[k];
          if (j < i) {
            unit[i][j] = pivots[j] > 0 ? value / pivots[j] : 0;
            *out++ = static_cast<float>(unit[i][j]);
          } else {
            pivot = value > 1e-7 * whole && value > 1e-25 ? value : 0;
          }
        }
        pivots[i] = pivot;
        *out++ = pivot > 0 ? static_cast<float>(1 / pivot) : 0.0f;
      }
    }
  }
}

}  // namespace

float* Tables::keep(std::size_t count) {
  storage_.emplace_back(count);
  return storage_.back().data();
}

Tables::Tables(int size, const std::vector<Model>& models) : size_(size) {
  double low = 1e30, high = 0;
  tables_.highest = tables_.second_highest = 0;
  for (const Model& model : models) {
    low = std::min<double>(low, model.lower[2]);
    high = std::max<double>(high, model.upper[2]);
    tables_.highest = std::max(tables_.highest, model.pairing == Pairing::kFree ? 2 : model.order);
    if (model.pairing == Pairing::kTied) tables_.second_highest = std::max(tables_.second_highest, model.order);
  }
  high = std::max(low, std::min(high, std::log(kWidest * size)));
  const int steps = static_cast<int>(std::ceil((high - low) / std::log(kLevelStep) - 1e-6));
  for (int i = 0; i <= steps; ++i) {
    add_level(static_cast<float>(std::exp(steps ? low + (high - low) * i / steps : low)), models);
  }
  tables_.size = size;
  tables_.levels = static_cast<int>(levels_.size());
  tables_.level = levels_.data();
  tables_.longest = 0;
  for (const SeedLevel& level : levels_) tables_.longest = std::max(tables_.longest, level.count);
}

void Tables::add_level(float sigma, const std::vector<Model>& models) {
  SeedLevel level = {};
  const std::vector<double> line = centers(sigma, size_);
  level.sigma = sigma;
  level.count = static_cast<int>(line.size());
  level.stride = 2;
  std::vector<double> coarse;
  for (size_t i = 0; i < line.size(); i += level.stride) coarse.push_back(line[i]);
  float* kept = keep(line.size());
  std::copy(line.begin(), line.end(), kept);
  level.line = kept;
  for (int order = 0; order < 3; ++order) {
    float* p = keep(line.size() * size_);
    profiles(order, sigma, line, size_, p);
    level.profile[order] = p;
  }
  std::vector<double> ratios;
  auto second = [&](double ratio) {
    for (size_t i = 0; i < ratios.size(); ++i) {
      if (ratios[i] == ratio) return static_cast<int>(i);
    }
    const int index = static_cast<int>(ratios.size());
    ratios.push_back(ratio);
    for (int order = 0; order < 3; ++order) {
      float* p = keep(coarse.size() * size_);
      profiles(order, sigma * ratio, coarse, size_, p);
      level.second[index][order] = p;
    }
    return index;
  };
  planes_.emplace_back();
  std::vector<SeedPlane>& planes = planes_.back();
  for (size_t m = 0; m < models.size(); ++m) {
    SeedPlane plane = {};
    plane.model = static_cast<int>(m);
    plane.stride = 1;
    if (models[m].pairing == Pairing::kSingle) {
      plane.kind = SeedPlane::kOrder;
      planes.push_back(plane);
    } else if (models[m].pairing == Pairing::kFree) {
      plane.kind = SeedPlane::kLaplacian;
      plane.log_ratio = static_cast<float>(std::log(1.15));
      planes.push_back(plane);
      plane.kind = SeedPlane::kPair;
      plane.stride = level.stride;
      for (double ratio : kPairRatios) {
        ++plane.variant;
        plane.second = second(ratio);
        plane.log_ratio = static_cast<float>(std::log(ratio));
        planes.push_back(plane);
      }
    } else {
      plane.kind = SeedPlane::kTied;
      plane.stride = level.stride;
      for (double ratio : kTiedRatios) {
        for (double kappa : kKappas) {
          plane.second = second(ratio);
          plane.log_ratio = static_cast<float>(std::log(ratio));
          plane.kappa = static_cast<float>(kappa);
          planes.push_back(plane);
          ++plane.variant;
        }
      }
    }
  }
  level.seconds = static_cast<int>(ratios.size());
  for (SeedPlane& plane : planes) {
    const std::vector<Function> basis = functions(plane, models[plane.model].order);
    std::vector<Sums> sums;
    for (int c = 0; c < level.count; c += plane.stride) {
      Sums s = {};
      const float* rows[6] = {};
      for (int order = 0; order < 3; ++order) {
        rows[order] = level.profile[order] + c * size_;
        if (plane.stride > 1) rows[3 + order] = level.second[plane.second][order] + c / plane.stride * size_;
      }
      for (int i = 0; i < (plane.stride > 1 ? 6 : 3); ++i) {
        for (int j = 0; j <= i; ++j) {
          double product = 0, sum_i = 0, sum_j = 0;
          for (int u = 0; u < size_; ++u) {
            product += static_cast<double>(rows[i][u]) * rows[j][u];
            sum_i += rows[i][u];
            sum_j += rows[j][u];
          }
          const double means = sum_i * sum_j / size_;
          s.about[i][j] = s.about[j][i] = product - means;
          s.means[i][j] = s.means[j][i] = means;
        }
      }
      sums.push_back(s);
    }
    plane.basis = static_cast<int>(basis.size());
    float* white = keep(sums.size() * sums.size() * plane.basis * (plane.basis + 1) / 2);
    whiten(basis, sums, white);
    plane.white = white;
  }
  level.planes = static_cast<int>(planes.size());
  level.plane = planes.data();
  levels_.push_back(level);
}

}  // namespace dogfit
