#include "tables.h"

#include <algorithm>
#include <cmath>

namespace dogfit {
namespace {

constexpr double kLevelStep = 1.5;  // ratio of neighbouring widths
constexpr double kTiedStep = 1.4;   // the same where the surround's weight is searched
constexpr double kWidest = 0.75;    // of the kernel's size
constexpr double kNarrow = 0.4;     // width up to which a Gaussian is a matter of single taps
constexpr double kReached = 0.5;  // width up to which a Gaussian and its derivatives reach few taps

// Widths of the surround, in widths of the centre. The limit of equal widths needs no grid of its own: the
// pair is then a Gaussian and its Laplacian.
constexpr double kPairRatios[] = {1.7, 3.0, 7.0};
constexpr double kNearRatio = 1.15;
constexpr double kFarRatio = 5.0;  // no neighbour of smaller ones, above it
constexpr double kTiedRatios[] = {1.5, 2.7, 6.0};
const std::vector<double> kKappas = {0.35, 0.65, 0.85, 1.0};
const std::vector<double> kNarrowKappas = {0.1, 0.5, 0.73, 1.0};

// A derivative of a Gaussian far narrower than a tap changes its shape within hundredths of a tap where its
// integral over the tap vanishes: the first at the tap's centre, the second at its edges. Nodes around those
// places, for that order alone. Of the Laplacian, what changes is how much of it lies along x and along y.
constexpr double kNarrowOffsets[] = {-0.3, 0.0, 0.3, 0.5};
constexpr double kFirstOffsets[] = {-0.18, -0.06, 0.06, 0.18};
constexpr double kSecondOffsets[] = {-0.44, -0.3, 0.3, 0.44, 0.482, 0.494, 0.506, 0.52};
constexpr double kLaplacianOffsets[] = {-0.41, -0.25, 0.25, 0.41, 0.47, 0.494, 0.506, 0.53};
// Differences of two such derivatives do so at either, and as the surround's weight changes.
constexpr double kTiedOffsets[] = {-0.4, -0.2, 0.0, 0.2, 0.4, 0.48, 0.5, 0.52};

// These offsets from the centre of each tap, as far as they lie inside; symmetric about the middle.
template <size_t N>
std::vector<double> around_taps(const double (&offsets)[N], int size) {
  static_assert(N * (kMaxSize + 2) <= kMaxCentres);
  std::vector<double> line;
  for (int tap = -1; tap <= size; ++tap) {
    for (double offset : offsets) {
      const double center = tap + 0.5 + offset - 0.5 * size;
      if (std::abs(center) <= 0.5 * size) line.push_back(center);
    }
  }
  return line;
}

// Centres tried at one width for all models, an odd number, so that every second one is symmetric as well.
std::vector<double> centers(double sigma, int size) {
  if (sigma < kNarrow) return around_taps(kNarrowOffsets, size);
  const double spacing = std::min(std::max(0.7 * sigma, 0.3), 0.14 * size);
  const int half = static_cast<int>(std::ceil(0.5 * size / spacing));
  std::vector<double> line;
  for (int i = -half; i <= half; ++i) line.push_back(0.5 * size * i / half);
  return line;
}

// Scaled profiles of one order at one width, `[line, length]`, at the taps from `start`.
void profiles(int order, double sigma, const std::vector<double>& line, int size, const int* start, int length,
              float* out) {
  auto edge = [&](double z) {
    if (order == 0) return 0.5 * std::erf(z * std::sqrt(0.5));
    const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * M_PI);
    return order == 1 ? density : -z * density;
  };
  for (size_t c = 0; c < line.size(); ++c) {
    for (int i = 0; i < length; ++i) {
      const double left = start[c] + i - 0.5 * size - line[c];
      out[c * length + i] = static_cast<float>(edge((left + 1) / sigma) - edge(left / sigma));
    }
  }
}

// A term of a function of x and y: the product of two profiles, by number (order, + 3 for the second width).
struct Term {
  int x, y;
  double weight;
};
using Function = std::vector<Term>;

std::vector<Function> functions(const SeedPlane& plane) {
  std::vector<Function> out;
  if (plane.kind == SeedPlane::kLaplacian) return {{{0, 0, 1.0}}, {{2, 0, 1.0}, {0, 2, 1.0}}};
  if (plane.kind == SeedPlane::kPair) return {{{0, 0, 1.0}}, {{3, 3, 1.0}}};
  for (int i = plane.order; i >= 0; --i) {
    const int j = plane.order - i;
    Function f = {{i, j, 1.0}};
    if (plane.kind == SeedPlane::kTied) f.push_back({3 + i, 3 + j, -plane.kappa});
    out.push_back(f);
  }
  return out;
}

// Inner products of the profiles at each centre: about their means, and size times the means' product.
struct Sums {
  double about[6][6], means[6][6];
};

Sums sum_products(const float* const* rows, int count, int size) {
  Sums out = {};
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j <= i; ++j) {
      double product = 0, sum_i = 0, sum_j = 0;
      for (int u = 0; u < size; ++u) {
        product += static_cast<double>(rows[i][u]) * rows[j][u];
        sum_i += rows[i][u];
        sum_j += rows[j][u];
      }
      const double means = sum_i * sum_j / size;
      out.about[i][j] = out.about[j][i] = product - means;
      out.means[i][j] = out.means[j][i] = means;
    }
  }
  return out;
}

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
  double low = 1e30, high = -1e30;
  for (const Model& model : models) {
    low = std::min<double>(low, model.lower[2]);
    high = std::max<double>(high, model.upper[2]);
  }
  high = std::max(low, std::min(high, std::log(kWidest * size)));
  // The widest first: they have the fewest nodes, and a good energy early spares maxima that cannot win.
  auto add_levels = [&](double ratio, int stride, For purpose) {
    const int steps = static_cast<int>(std::ceil((high - low) / std::log(ratio) - 1e-6));
    // Where narrow, tied models have grids of their own.
    const int lowest = purpose == For::kTied && low < std::log(kNarrow) && steps > 0;
    for (int i = steps; i >= lowest; --i) {
      const double sigma = std::exp(steps ? low + (high - low) * i / steps : low);
      add_level(sigma, i, centers(sigma, size), stride, purpose, models);
    }
  };
  add_levels(kLevelStep, 2, For::kFree);
  add_levels(kTiedStep, 1, For::kTied);
  if (low < std::log(kNarrow)) {
    add_level(std::exp(low), 0, around_taps(kFirstOffsets, size), 2, For::kFirst, models);
    add_level(std::exp(low), 0, around_taps(kSecondOffsets, size), 2, For::kSecond, models);
    add_level(std::exp(low), 0, around_taps(kLaplacianOffsets, size), 2, For::kLaplacian, models);
    for (double wider : {1.0, 1.18}) {
      add_level(wider * std::exp(low), 0, around_taps(kTiedOffsets, size), 1, For::kTiedNarrow, models);
    }
  }
  tables_ = {};
  tables_.levels = static_cast<int>(levels_.size());
  tables_.level = levels_.data();
  for (const SeedLevel& level : levels_) {
    tables_.longest = std::max(tables_.longest, level.count);
    tables_.planes = std::max(tables_.planes, level.planes);
  }
}

std::vector<SeedPlane> Tables::list_planes(For purpose, int stride, const std::vector<Model>& models,
                                           std::vector<double>& ratios) {
  auto second = [&](double ratio) {
    const auto index = std::find(ratios.begin(), ratios.end(), ratio) - ratios.begin();
    if (index == static_cast<std::ptrdiff_t>(ratios.size())) ratios.push_back(ratio);
    return static_cast<int>(index);
  };
  std::vector<SeedPlane> planes;
  for (size_t m = 0; m < models.size(); ++m) {
    SeedPlane plane = {};
    plane.model = static_cast<int>(m);
    plane.order = models[m].order;
    plane.basis = models[m].pairing == Pairing::kFree ? 2 : plane.order + 1;
    plane.stride = 1;
    const bool tied = models[m].pairing == Pairing::kShared, free = models[m].pairing == Pairing::kFree;
    if (tied != (purpose == For::kTied || purpose == For::kTiedNarrow)) continue;
    if (purpose == For::kFirst && (free || plane.order != 1)) continue;
    if (purpose == For::kSecond && (free || plane.order != 2)) continue;
    if (purpose == For::kLaplacian && !free) continue;
    auto add = [&](SeedPlane::Kind kind, double ratio, double kappa) {
      plane.kind = kind;
      plane.log_ratio = static_cast<float>(std::log(ratio));
      plane.kappa = static_cast<float>(kappa);
      if (kind == SeedPlane::kPair || kind == SeedPlane::kTied) {
        plane.second = second(ratio);
        plane.stride = stride;
      }
      planes.push_back(plane);
      ++plane.variant;
    };
    if (tied) {
      for (double ratio : kTiedRatios) {
        for (double kappa : purpose == For::kTied ? kKappas : kNarrowKappas) add(SeedPlane::kTied, ratio, kappa);
        plane.variant += 2;  // no neighbour of the last
      }
    } else if (free) {
      add(SeedPlane::kLaplacian, kNearRatio, 0.0);
      if (purpose != For::kFree) continue;
      for (double ratio : kPairRatios) {
        plane.variant += ratio > kFarRatio;
        add(SeedPlane::kPair, ratio, 0.0);
      }
    } else {
      add(SeedPlane::kOrder, kNearRatio, 0.0);
    }
  }
  return planes;
}

void Tables::add_level(double sigma, int step, const std::vector<double>& line, int stride, For purpose,
                       const std::vector<Model>& models) {
  std::vector<double> ratios, coarse;
  planes_.push_back(list_planes(purpose, stride, models, ratios));
  std::vector<SeedPlane>& planes = planes_.back();
  if (planes.empty()) return;
  const int count = static_cast<int>(line.size());
  SeedLevel level = {};
  level.sigma = static_cast<float>(sigma);
  level.log_sigma = static_cast<float>(std::log(sigma));
  level.step = step;
  level.count = count;
  level.stride = stride;
  level.length = sigma < kReached && size_ > kReach ? kReach : size_;
  float* kept = keep(count);
  starts_.emplace_back(count);
  for (int c = 0; c < count; ++c) {
    kept[c] = static_cast<float>(line[c]);
    const int first = static_cast<int>(std::lround(line[c] + 0.5 * (size_ - level.length)));
    starts_.back()[c] = std::min(std::max(first, 0), size_ - level.length);
    if (c % level.stride == 0) coarse.push_back(line[c]);
  }
  level.line = kept;
  level.start = starts_.back().data();
  const std::vector<int> whole(count, 0);
  const float* full[3];  // at all taps
  for (int order = 0; order < 3; ++order) {
    float* reached = keep(count * level.length);
    float* all = keep(count * size_);
    profiles(order, sigma, line, size_, level.start, level.length, reached);
    profiles(order, sigma, line, size_, whole.data(), size_, all);
    level.profile[order] = reached;
    full[order] = all;
  }
  level.seconds = static_cast<int>(ratios.size());
  for (int s = 0; s < level.seconds; ++s) {
    for (int order = 0; order < 3; ++order) {
      float* p = keep(coarse.size() * size_);
      profiles(order, sigma * ratios[s], coarse, size_, whole.data(), size_, p);
      level.second[s][order] = p;
    }
  }
  for (SeedPlane& plane : planes) {
    level.totals |= plane.kind == SeedPlane::kLaplacian ? 5 : 1 << plane.order;
    const bool two = plane.kind == SeedPlane::kPair || plane.kind == SeedPlane::kTied;
    if (two) level.second_totals |= 1 << plane.order;
    std::vector<Sums> sums;
    for (int c = 0; c < count; c += plane.stride) {
      const float* rows[6];
      for (int order = 0; order < 3; ++order) {
        rows[order] = full[order] + c * size_;
        if (two) rows[3 + order] = level.second[plane.second][order] + c / plane.stride * size_;
      }
      sums.push_back(sum_products(rows, two ? 6 : 3, size_));
    }
    float* white = keep(sums.size() * sums.size() * plane.basis * (plane.basis + 1) / 2);
    whiten(functions(plane), sums, white);
    plane.white = white;
  }
  level.planes = static_cast<int>(planes.size());
  level.plane = planes.data();
  levels_.push_back(level);
}

}  // namespace dogfit
