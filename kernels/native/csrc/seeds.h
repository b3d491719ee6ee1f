// Starting points: the explained energy on grids of centres at several widths, for all models at once.
//
// The energy at a node is exact (weights solved for), and a maximum over neighbouring nodes lies in, or next
// to, a basin of attraction. All models share the projections on 1-D profiles, P_x W P_y'.
#pragma once

#include "api.h"
#include "simd.h"

namespace dogfit {
namespace {

constexpr int kKept = 126;   // maxima kept per kernel and model before the choice
constexpr int kStarts = 48;  // most starts

struct Candidate {
  float energy, x, y;
  int8_t level, plane, step, variant;
};

// Maximum of the parabola through three values, the middle one the largest: above that, and where, in steps.
struct Peak {
  float above, at;
};

inline Peak find_peak(float before, float here, float after) {
  const float slope = 0.5f * (after - before), bend = 2 * here - before - after;
  if (before < 0 || after < 0 || !(bend > 0)) return {0, 0};  // beyond the grid
  return {0.5f * slope * slope / bend, slope / bend};
}

// What lies so many steps after entry n of a line.
inline float between(const float* line, int n, int stride, float at) {
  return line[n] + at * (at < 0 ? line[n] - line[n - stride] : at > 0 ? line[n + stride] - line[n] : 0);
}

struct Candidates {
  int count;
  Candidate item[kKept];

  void offer(const Candidate& candidate) {
    if (count < kKept) item[count++] = candidate;
    else if (const int least = find_least(); candidate.energy > item[least].energy) item[least] = candidate;
  }
  int find_least() const {
    int least = 0;
    for (int i = 1; i < count; ++i) {
      if (item[i].energy < item[least].energy) least = i;
    }
    return least;
  }
};

template <int Q>
DOGFIT_INLINE Lanes white_energy(const Lanes* c, const float* white) {
  Lanes energy = splat(0);
  unrolled<0, Q>([&](auto i) __attribute__((always_inline)) {
    constexpr int row = i, first = row * (row + 1) / 2;
    Lanes y = white[first] * c[0];
    unrolled<1, row + 1>([&](auto k) __attribute__((always_inline)) { y += white[first + k] * c[k]; });
    energy += y * y;
  });
  return energy;
}

// Memory of the search of one group of kernels.
struct SeedWork {
  // Projections at one centre in x and all in y, by orders: 00, 10, 01, 20, 11, 02. `second` likewise.
  Lanes* node[6];
  Lanes* second[kMaxSeconds][6];
  Lanes* energies;  // [planes][3][longest + 2]
  Lanes* best;      // [models]
  Lanes* share;     // [models], of the best that a maximum must have

  static int64_t vectors(const SeedTables& tables, int models) {
    return (6 * (1 + kMaxSeconds) + 3 * tables.planes) * int64_t(tables.longest + 2) + 2 * models;
  }
  void place(Lanes* memory, const SeedTables& tables, int models) {
    const int row = tables.longest + 2;
    for (auto& n : node) n = memory, memory += row;
    for (auto& s : second) {
      for (auto& n : s) n = memory, memory += row;
    }
    energies = memory, memory += 3 * tables.planes * row;
    best = memory, memory += models;
    share = memory;
  }
};

// Projections at centre m in x: out[ij][n] = sum over x, y of P_i(m, x) W(x, y) P_j(n, y), for i + j out of
// TOTALS. LENGTH is the number of taps that profiles reach (0: all of them), from `start`.
template <int SIZE, int TOTALS, int LENGTH>
DOGFIT_INLINE void project_line(const Lanes* kernel, int runtime_size, const float* const* profile,
                                const int* start, int m, int count, Lanes* const* out) {
  constexpr int highest = TOTALS & 4 ? 2 : TOTALS & 2 ? 1 : 0;
  const int size = SIZE ? SIZE : runtime_size;
  const int length = LENGTH ? LENGTH : size;
  const Lanes* from = LENGTH ? kernel + start[m] : kernel;
  Lanes rows[highest + 1][SIZE ? SIZE : kMaxSize];
  for (int y = 0; y < size; ++y) {
    Lanes sum[highest + 1] = {};
    for (int x = 0; x < length; ++x) {
      const Lanes value = from[y * size + x];
      unrolled<0, highest + 1>([&](auto i) __attribute__((always_inline)) {
        sum[i] += profile[i][m * length + x] * value;
      });
    }
    unrolled<0, highest + 1>([&](auto i) __attribute__((always_inline)) { rows[i][y] = sum[i]; });
  }
  const float* at[3] = {profile[0], profile[1], profile[2]};
  for (int n = 0; n < count; ++n) {
    Lanes sum[6] = {};
    const int first = LENGTH ? start[n] : 0;
    for (int y = 0; y < length; ++y) {
      unrolled<0, highest + 1>([&](auto total) __attribute__((always_inline)) {
        constexpr int order = total;
        if constexpr (TOTALS >> order & 1) {
          unrolled<0, order + 1>([&](auto j) __attribute__((always_inline)) {
            sum[order * (order + 1) / 2 + j] += rows[order - j][first + y] * at[j][y];
          });
        }
      });
    }
    unrolled<0, highest + 1>([&](auto order) __attribute__((always_inline)) { at[order] += length; });
    unrolled<0, 6>([&](auto e) __attribute__((always_inline)) {
      if constexpr (TOTALS >> (e < 1 ? 0 : e < 3 ? 1 : 2) & 1) out[e][n] = sum[e];
    });
  }
}

template <int SIZE, int TOTALS>
DOGFIT_INLINE void project_line(const Lanes* kernel, int size, const float* const* profile, const int* start,
                                int length, int m, int count, Lanes* const* out) {
  if (length == kReach) project_line<SIZE, TOTALS, kReach>(kernel, size, profile, start, m, count, out);
  else project_line<SIZE, TOTALS, 0>(kernel, size, profile, start, m, count, out);
}

template <int SIZE>
DOGFIT_INLINE void project_line(const Lanes* kernel, int size, int totals, const float* const* profile,
                                const int* start, int length, int m, int count, Lanes* const* out) {
  if (totals == 1) project_line<SIZE, 1>(kernel, size, profile, start, length, m, count, out);
  else if (totals == 2) project_line<SIZE, 2>(kernel, size, profile, start, length, m, count, out);
  else if (totals == 4) project_line<SIZE, 4>(kernel, size, profile, start, length, m, count, out);
  else if (totals == 5) project_line<SIZE, 5>(kernel, size, profile, start, length, m, count, out);
  else project_line<SIZE, 7>(kernel, size, profile, start, length, m, count, out);
}

// Energies at the nodes of one line, `projections(n, v)` of a kernel on the Q functions at each. Nodes beyond
// the middle are whitened as their mirror images: of functions that are ODD the second changes its sign
// against the others where either axis is mirrored.
template <int Q, bool ODD, class Projections>
DOGFIT_INLINE void line_energies(const float* white, int line, int count, const Projections& projections,
                                 Lanes* out) {
  constexpr int entries = Q * (Q + 1) / 2;
  const int half = (count + 1) / 2;
  const bool beyond = line >= half;
  white += int64_t(beyond ? count - 1 - line : line) * half * entries;
  float sign = beyond ? -1 : 1;
  auto one = [&](int n, const float* at) __attribute__((always_inline)) {
    Lanes v[Q];
    projections(n, v);
    if constexpr (ODD) v[1] *= sign;
    out[n] = white_energy<Q>(v, at);
  };
  for (int n = 0; n < half; ++n) one(n, white + n * entries);
  sign = -sign;
  for (int n = half; n < count; ++n) one(n, white + (count - 1 - n) * entries);
}

// Energies of a plane along one line of nodes.
DOGFIT_INLINE void plane_energies(const SeedPlane& plane, const SeedWork& work, int line, int count,
                                  Lanes* out) {
  const int order = plane.order;
  Lanes* const* c = work.node + order * (order + 1) / 2;
  Lanes* const* d = work.second[plane.second] + order * (order + 1) / 2;
  const int s = plane.stride;
  const float* white = plane.white;
  auto single = [&](auto functions) __attribute__((always_inline)) {
    constexpr int Q = functions;
    line_energies<Q, (Q > 1)>(white, line, count, [&](int n, Lanes* v) __attribute__((always_inline)) {
      unrolled<0, Q>([&](auto t) __attribute__((always_inline)) { v[t] = c[t][n]; });
    }, out);
  };
  auto shared = [&](auto functions) __attribute__((always_inline)) {
    constexpr int Q = functions;
    line_energies<Q, (Q > 1)>(white, line, count, [&](int n, Lanes* v) __attribute__((always_inline)) {
      unrolled<0, Q>([&](auto t) __attribute__((always_inline)) { v[t] = c[t][n] - plane.surround_weight * d[t][n]; });
    }, out);
  };
  auto by_order = [&](const auto& action) __attribute__((always_inline)) {
    if (order == 0) action(Index<1>{});
    else if (order == 1) action(Index<2>{});
    else action(Index<3>{});
  };
  switch (plane.kind) {
    case SeedPlane::kOrder:
      by_order(single);
      break;
    case SeedPlane::kLaplacian:
      line_energies<2, false>(white, line, count, [&](int n, Lanes* v) __attribute__((always_inline)) {
        v[0] = c[0][n], v[1] = work.node[3][n] + work.node[5][n];
      }, out);
      break;
    case SeedPlane::kPair:
      line_energies<2, false>(white, line, count, [&](int n, Lanes* v) __attribute__((always_inline)) {
        v[0] = c[0][n * s], v[1] = d[0][n];
      }, out);
      break;
    case SeedPlane::kTied:
      by_order(shared);
      break;
  }
}

// Finds the maxima over neighbours in x and y on every plane of every level; `found` is [lane][model].
template <int SIZE>
void find_maxima(const Problem& problem, const Lanes* kernel, SeedWork& work, Candidates* found) {
  const SeedTables& tables = *problem.seeds;
  const int size = SIZE ? SIZE : problem.size, row_length = tables.longest + 2;
  for (int m = 0; m < problem.model_count; ++m) {
    work.best[m] = splat(0);
    work.share[m] = splat(0) + problem.models[m].effort.min_seed_energy;
  }
  for (int i = 0; i < problem.model_count * kLanes; ++i) found[i].count = 0;
  for (int l = 0; l < tables.levels; ++l) {
    const SeedLevel& level = tables.level[l];
    // Peaks of a line can be told once the next line is there.
    auto peaks = [&](int p, int line, int count) {
      const SeedPlane& plane = level.plane[p];
      Lanes* rows = work.energies + 3 * p * row_length;
      const Lanes* before = rows + (line + 2) % 3 * row_length + 1;
      const Lanes* here = rows + line % 3 * row_length + 1;
      const Lanes* after = rows + (line + 1) % 3 * row_length + 1;
      // Pairs are so smooth between nodes that seeds of one maximum meet at once.
      const float moved = problem.models[plane.model].pairing == Pairing::kFree ? 1 : 0;
      Lanes highest = splat(-1);
      for (int n = 0; n < count; ++n) highest = larger(here[n], highest);
      const Lanes best = larger(highest, work.best[plane.model]);
      work.best[plane.model] = best;
      const Lanes least = larger(work.share[plane.model] * best, splat(1e-6f));
      if (!bits(highest >= least)) return;
      // Where there are any first: most nodes have none, in no order that a processor could foresee.
      int nodes[kMaxCentres], hits = 0;
      unsigned sets[kMaxCentres];
      auto three = [&](int n) __attribute__((always_inline)) {
        return larger(larger(before[n], after[n]), here[n]);
      };
      Lanes left = three(-1), middle = three(0);
      for (int n = 0; n < count; ++n) {
        const Lanes right = three(n + 1), most = larger(larger(left, right), larger(middle, least));
        left = middle;
        middle = right;
        nodes[hits] = n;
        sets[hits] = bits(here[n] >= most);
        hits += sets[hits] != 0;
      }
      for (int h = 0; h < hits; ++h) {
        const int n = nodes[h];
        for (unsigned set = sets[h]; set; set &= set - 1) {
          const int lane = __builtin_ctz(set);
          auto at = [&](const Lanes* vector) { return reinterpret_cast<const float*>(vector)[lane]; };
          const float energy = at(here + n);
          const Peak x = find_peak(at(before + n), energy, at(after + n));
          const Peak y = find_peak(at(here + n - 1), energy, at(here + n + 1));
          found[lane * problem.model_count + plane.model].offer(
              {energy + x.above + y.above,
               between(level.line, line * plane.stride, plane.stride, moved * x.at),
               between(level.line, n * plane.stride, plane.stride, moved * y.at), int8_t(l), int8_t(p),
               int8_t(level.step), int8_t(plane.variant)});
        }
      }
    };
    for (int p = 0; p < level.planes; ++p) {
      Lanes* rows = work.energies + 3 * p * row_length;
      for (int i = 0; i < 3 * row_length; ++i) rows[i] = splat(-1);
    }
    const int coarse_count = (level.count + level.stride - 1) / level.stride;
    for (int m = 0; m < level.count; ++m) {
      project_line<SIZE>(kernel, size, level.totals, level.profile, level.start, level.length, m, level.count,
                         work.node);
      for (int s = 0; m % level.stride == 0 && s < level.seconds; ++s) {
        project_line<SIZE>(kernel, size, level.second_totals, level.second[s], nullptr, 0, m / level.stride,
                           coarse_count, work.second[s]);
      }
      for (int p = 0; p < level.planes; ++p) {
        const SeedPlane& plane = level.plane[p];
        if (m % plane.stride) continue;
        const int line = m / plane.stride, count = plane.stride == 1 ? level.count : coarse_count;
        Lanes* rows = work.energies + 3 * p * row_length;
        plane_energies(plane, work, line, count, rows + line % 3 * row_length + 1);
        if (line > 0) peaks(p, line - 1, count);
        if (line == count - 1) {
          Lanes* next = rows + (line + 1) % 3 * row_length;
          for (int i = 0; i < row_length; ++i) next[i] = splat(-1);
          peaks(p, line, count);
        }
      }
    }
  }
}

// A start of the ascent.
struct Start {
  float energy;
  float point[kMaxParameters];
};

// The most promising maxima, best first, without those that a better one next to them will stand for.
inline int choose_starts(const SeedTables& tables, float apart, float share, int most, const Candidates& found,
                         Start* out) {
  // Energies, whose bits order as they do, each with its place in the low bits: no two are equal.
  constexpr int32_t place = 127;
  static_assert(kKept <= place && kStarts % kLanes == 0);
  int32_t keys[kKept + kLanes], ranks[kKept + kLanes], order[kKept];
  int count = 0;
  float best = 0;
  for (int i = 0; i < found.count; ++i) best = found.item[i].energy > best ? found.item[i].energy : best;
  for (int i = 0; i < found.count; ++i) {
    if (!(found.item[i].energy >= share * best)) continue;
    int32_t key;
    __builtin_memcpy(&key, &found.item[i].energy, sizeof key);
    keys[count++] = (key & ~place) | i;
  }
  store(keys + count, Mask{});
  for (int i = 0; i < count; i += kLanes) {
    const Mask mine = load(keys + i);
    Mask rank = {};
    for (int j = 0; j < count; ++j) rank -= mine < keys[j];
    store(ranks + i, rank);
  }
  for (int i = 0; i < count; ++i) order[ranks[i]] = keys[i] & place;
  float xs[kStarts], ys[kStarts], near[kStarts];
  int32_t steps[kStarts], variants[kStarts];
  int starts = 0;
  for (int i = 0; i < count && starts < most; ++i) {
    const Candidate& a = found.item[order[i]];
    bool fresh = true;
    for (int b = 0; b < starts && fresh; b += kLanes) {
      const Lanes reach = load(near + b);
      const Mask step = load(steps + b) - a.step, variant = load(variants + b) - a.variant;
      const Mask close = (absolute(load(xs + b) - a.x) <= reach) & (absolute(load(ys + b) - a.y) <= reach) &
                         (step <= 1) & (step >= -1) & (variant <= 1) & (variant >= -1);
      fresh = bits(close) == 0;
    }
    if (!fresh) continue;
    const SeedLevel& level = tables.level[a.level];
    const SeedPlane& plane = level.plane[a.plane];
    if (starts % kLanes == 0) store(near + starts, splat(-1));  // no neighbours in what is not yet there
    xs[starts] = a.x, ys[starts] = a.y, near[starts] = apart * level.sigma;
    steps[starts] = a.step, variants[starts] = a.variant;
    out[starts++] = {a.energy, {a.x, a.y, level.log_sigma, plane.log_ratio, plane.surround_weight}};
  }
  return starts;
}

}  // namespace
}  // namespace dogfit
