// From kernels to the best search point of every model: seeds, then ascents in refilled lanes.
//
// A lane takes up the starts of one kernel one after the other, best seed first, and then the next kernel:
// stragglers hold up nobody, and what a lane computes does not depend on its neighbours.
#pragma once

#include <stdlib.h>

#include "ellipse.h"
#include "seeds.h"

namespace dogfit {
namespace {

constexpr float kInfinite = 3e38f;
// Rows whose seeds are found before their ascents begin.
constexpr int64_t kChunk = 512;
// Times the steps of a start that the best one gets more of, if it needs them.
constexpr int kFinishingFactor = 4;
// Gain predicted for a step that rounding drowns.
constexpr float kNoGain = 1e-8f;
// How far from a tap's edge restarts across it begin.
constexpr float kBesideEdge = 0.006f;
// How far from the tap's centre restarts inside it begin.
constexpr float kWithinTap = 0.37f;

// Memory aligned to a vector, from the heap: large kernels would overflow the stack of a pool's thread.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const int64_t size = (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    data_ = static_cast<T*>(aligned_alloc(64, size > 0 ? size : 64));
  }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  explicit operator bool() const { return data_ != nullptr; }
  T* get() const { return data_; }

 private:
  T* data_;
};

// Starts of one kernel for one model.
struct Starts {
  int count;
  const Start* item;
};

// The kernels of a chunk, tap after tap, and their starts.
struct Chunk {
  int64_t first;
  int rows;
  const float* taps;     // [rows, size * size]
  const Starts* starts;  // [rows, models]
};

// Where one lane stands.
struct Job {
  int row;  // -1: idle
  int start;       // the present one; their number in the end
  int crossings;   // restarts across edges of taps
  bool finishing;  // the best once more, with more steps
  float ends[kMostStarts];  // energy at the end of each start
  int steps;
  float point[kMaxParameters], promise;  // of the best
  bool exhausted;                        // it ran out of steps
};

template <class E>
class Climber {
  static constexpr int P = E::P;

 public:
  Climber(const Problem& problem, int model, E& work, Lanes* kernel)
      : problem_(problem), model_(problem.models[model]), index_(model), work_(work), kernel_(kernel) {
    work_.size = problem.size;
    for (int a = 0; a < P; ++a) {
      lower_[a] = splat(model_.lower[a]);
      upper_[a] = splat(model_.upper[a]);
    }
  }

  void run(const Chunk& chunk) {
    chunk_ = &chunk;
    next_ = 0;
    sort_rows();
    int active = 0;
    for (int lane = 0; lane < kLanes; ++lane) active += take_kernel(lane);
    Derivatives<P> found;
    while (active > 0) {
      E::evaluate(work_, kernel_, total_, ascent_.trial, found);
      evaluations_ += 1.0f;
      ascent_.advance(found, lower_, upper_);
      for (unsigned set = bits(finished()); set; set &= set - 1) {
        const int lane = __builtin_ctz(set);
        if (jobs_[lane].row >= 0) active -= !end_start(lane);
      }
    }
  }

 private:
  // Converged, out of steps or digits, hopeless, or about to arrive where an earlier start has.
  DOGFIT_INLINE Mask finished() const {
    const Ascent<E>& a = ascent_;
    const Mask settled = (a.promise <= problem_.effort.tolerance) | (absolute(a.predicted) <= kNoGain) |
                         (evaluations_ >= limit_);
    // A promise is worth most where it was not yet put to the test.
    const float hope = problem_.effort.hope;
    const Lanes hoped = select(evaluations_ < 1.5f, splat(hope), splat(E::kFree ? hope : 0.5f * hope));
    const Mask hopeless = a.energy + hoped * a.promise < best_energy_;
    const Lanes inverse_sigma = exponential(-a.point[2]);
    Lanes apart = splat(0);
    for (int p = 0; p < P; ++p) {
      const Lanes distance = absolute(a.point[p] - best_point_[p]);
      apart = larger(p < 2 ? distance * inverse_sigma : distance, apart);
    }
    const Mask same = (apart < 0.15f) & (a.energy <= best_energy_) & (a.energy > best_energy_ - 3e-3f);
    return settled | hopeless | same;
  }

  // Rows by their number of starts, most first: so lanes run out of work at about the same time.
  void sort_rows() {
    int begin[kMostStarts + 2] = {};
    for (int row = 0; row < chunk_->rows; ++row) ++begin[kMostStarts - starts(row).count + 1];
    for (int i = 0; i <= kMostStarts; ++i) begin[i + 1] += begin[i];
    for (int row = 0; row < chunk_->rows; ++row) order_[begin[kMostStarts - starts(row).count]++] = row;
  }

  // Gives a lane the next kernel that has anything to climb.
  bool take_kernel(int lane) {
    const int taps = problem_.size * problem_.size;
    while (next_ < chunk_->rows) {
      const int row = order_[next_++];
      Job& job = jobs_[lane];
      job.row = row;
      job.start = job.crossings = 0;
      job.finishing = false;
      job.steps = 0;
      float total = 0;
      for (int t = 0; t < taps; ++t) {
        const float value = chunk_->taps[int64_t(row) * taps + t];
        kernel_[t][lane] = value;
        total += value * value;
      }
      total_[lane] = total;
      best_energy_[lane] = -kInfinite;
      if (total > 0 && total < kInfinite && starts(row).count > 0) {
        begin_start(lane);
        return true;
      }
      const int64_t at = chunk_->first + row;
      for (int a = 0; a < P; ++a) model_.point[a * problem_.rows + at] = 0.5f * (model_.lower[a] + model_.upper[a]);
      model_.promise[at] = 0;
      model_.steps[at] = model_.agreeing[at] = 0;
    }
    jobs_[lane].row = -1;
    return false;
  }

  void begin_start(int lane) {
    const Job& job = jobs_[lane];
    begin_at(lane, starts(job.row).item[job.start].point, problem_.effort.steps);
  }

  void begin_at(int lane, const float* start, int most_steps) {
    for (int a = 0; a < P; ++a) {
      float value = start[a];
      value = value > lower_[a][lane] ? value : lower_[a][lane];
      ascent_.trial[a][lane] = value < upper_[a][lane] ? value : upper_[a][lane];
      ascent_.point[a][lane] = ascent_.trial[a][lane];
    }
    ascent_.energy[lane] = -kInfinite;
    ascent_.promise[lane] = ascent_.predicted[lane] = kInfinite;
    ascent_.damping[lane] = 1e-3f;
    evaluations_[lane] = 0;
    limit_[lane] = static_cast<float>(most_steps);
  }

  // The second derivative of a narrow Gaussian, integrated over taps, turns round within hundredths of a tap
  // where its centre crosses an edge: maxima lie on either side, closer than any grid. So the search starts
  // again from the best point moved to both sides of the next edge, to its mirror image in the tap, and to
  // where the profile of a centre inside the tap is steepest, along x, y and both; for the Laplacian, the limit
  // of two equal widths, to the other side alone. For what is narrow, in taps.
  static constexpr bool kSecond = E::kPairing != Pairing::kFree && (E::kOrder == 2 || (E::kElliptic && E::kTied));
  static constexpr int kCrossings = kSecond ? 14 : E::kFree && !E::kElliptic ? 3 : 0;
  static constexpr float kCrossingLogWidth = kSecond ? -0.22f : -1.05f;

  void begin_across(int lane) {
    Job& job = jobs_[lane];
    float at[kMaxParameters];
    for (int a = 0; a < P; ++a) at[a] = job.point[a];
    const float middle = problem_.size % 2 ? 0.5f : 0.0f;  // an edge
    // 0: as it is, 1: the other side of the edge, 2: this side, 3: as far beyond the tap's centre, 4: inside.
    constexpr int sides[14][2] = {{1, 1}, {1, 0}, {0, 1}, {2, 0}, {0, 2}, {2, 1},
                                  {1, 2}, {2, 2}, {3, 0}, {0, 3}, {3, 3}, {4, 0}, {0, 4}, {4, 4}};
    for (int axis = 0; axis < 2; ++axis) {
      const int side = sides[job.crossings][axis];
      const float edge = __builtin_rintf(at[axis] - middle) + middle;
      const float tap = __builtin_rintf(at[axis] - middle - 0.5f) + middle + 0.5f;
      const float beside = (at[axis] > edge) == (side == 2) ? kBesideEdge : -kBesideEdge;
      const float within = tap + (at[axis] > tap ? kWithinTap : -kWithinTap);
      if (side > 0) at[axis] = side == 4 ? within : side == 3 ? 2 * tap - at[axis] : edge + beside;
    }
    at[2] = lower_[2][lane];
    ++job.crossings;
    begin_at(lane, at, problem_.effort.steps);
  }

  // False where the lane has nothing left to do.
  bool end_start(int lane) {
    Job& job = jobs_[lane];
    const float energy = ascent_.energy[lane];
    const bool extra = job.finishing || job.crossings > 0;
    if (!extra) job.ends[job.start++] = energy;
    job.steps += static_cast<int>(evaluations_[lane]);
    if (energy > best_energy_[lane] || job.finishing) {
      best_energy_[lane] = energy;
      job.promise = ascent_.promise[lane];
      job.exhausted = evaluations_[lane] >= limit_[lane];
      for (int a = 0; a < P; ++a) best_point_[a][lane] = job.point[a] = ascent_.point[a][lane];
    }
    const Starts& mine = starts(job.row);
    // Seeds come best first, and what an ascent can add has its limits.
    if (!extra && job.start < mine.count &&
        mine.item[job.start].energy >= problem_.effort.margin * best_energy_[lane]) {
      begin_start(lane);
      return true;
    }
    if constexpr (kCrossings > 0) {
      if (!job.finishing && job.crossings < kCrossings && job.point[2] < kCrossingLogWidth) {
        begin_across(lane);
        return true;
      }
    }
    if (!job.finishing && job.exhausted && job.promise > problem_.effort.tolerance) {
      // The best ran out of steps in a narrow valley.
      job.finishing = true;
      best_energy_[lane] = -kInfinite;
      begin_at(lane, job.point, kFinishingFactor * problem_.effort.steps);
      return true;
    }
    const int64_t at = chunk_->first + job.row;
    for (int a = 0; a < P; ++a) model_.point[a * problem_.rows + at] = job.point[a];
    model_.promise[at] = job.promise;
    model_.steps[at] = job.steps;
    int agreeing = 0;
    for (int s = 0; s < job.start; ++s) agreeing += job.ends[s] >= best_energy_[lane] - 1e-3f;
    // Where the best was finished later, it alone is there.
    model_.agreeing[at] = agreeing > 0 ? agreeing : 1;
    return take_kernel(lane);
  }

  const Starts& starts(int row) const { return chunk_->starts[int64_t(row) * problem_.model_count + index_]; }

  const Problem& problem_;
  const Model& model_;
  const int index_;
  E& work_;
  Lanes* kernel_;
  const Chunk* chunk_ = nullptr;
  int next_ = 0, order_[kChunk];
  Lanes lower_[P], upper_[P];
  Lanes total_ = {}, evaluations_ = {}, limit_ = {}, best_energy_ = {}, best_point_[P] = {};
  Ascent<E> ascent_ = {};
  Job jobs_[kLanes];
};

template <class E>
bool climb_all(const Problem& problem, int model, const Chunk& chunk) {
  Buffer<E> work(1);
  Buffer<Lanes> kernel(E::kMax * E::kMax);
  if (!work || !kernel) return false;
  for (int t = 0; t < problem.size * problem.size; ++t) kernel.get()[t] = splat(0);
  Climber<E>(problem, model, *work.get(), kernel.get()).run(chunk);
  return true;
}

template <class E>
bool evaluate_rows(const Problem& problem, const float* points, float* out) {
  constexpr int P = E::P;
  Buffer<E> work(1);
  Buffer<Lanes> kernel(E::kMax * E::kMax);
  if (!work || !kernel) return false;
  work.get()->size = problem.size;
  for (int64_t row = 0; row < problem.rows; row += kLanes) {
    const int count = problem.rows - row < kLanes ? static_cast<int>(problem.rows - row) : kLanes;
    auto gather = [&](const float* from, Lanes* to, int entries) {
      for (int e = 0; e < entries; ++e) {
        for (int lane = 0; lane < kLanes; ++lane) {
          to[e][lane] = from[e * problem.rows + row + (lane < count ? lane : 0)];
        }
      }
    };
    Lanes point[P], total = splat(0);
    gather(problem.kernels, kernel.get(), problem.size * problem.size);
    gather(points, point, P);
    for (int t = 0; t < problem.size * problem.size; ++t) total += kernel.get()[t] * kernel.get()[t];
    Derivatives<P> found;
    E::evaluate(*work.get(), kernel.get(), total, point, found);
    auto scatter = [&](int entry, Lanes values) {
      for (int lane = 0; lane < count; ++lane) out[entry * problem.rows + row + lane] = values[lane];
    };
    scatter(0, found.energy);
    for (int a = 0; a < P; ++a) scatter(1 + a, found.gradient[a]);
    for (int e = 0; e < P * (P + 1) / 2; ++e) scatter(1 + P + e, found.hessian[e]);
  }
  return true;
}

template <class T>
struct Pointee;
template <class T>
struct Pointee<T*> {
  using type = T;
};

// Calls `action` with the evaluation of a model at a size.
template <int SIZE, class Action>
bool with_model(const Model& model, const Action& action) {
  switch (model.pairing) {
    case Pairing::kSingle:
      if (model.order == 0) return action(static_cast<Energy<0, Pairing::kSingle, SIZE>*>(nullptr));
      if (model.order == 1) return action(static_cast<Energy<1, Pairing::kSingle, SIZE>*>(nullptr));
      return action(static_cast<Energy<2, Pairing::kSingle, SIZE>*>(nullptr));
    case Pairing::kFree:
      return action(static_cast<Energy<0, Pairing::kFree, SIZE>*>(nullptr));
    default:
      if (model.order == 1) return action(static_cast<Energy<1, Pairing::kTied, SIZE>*>(nullptr));
      return action(static_cast<Energy<2, Pairing::kTied, SIZE>*>(nullptr));
  }
}

// As `with_model`, for elliptic models.
template <class Action>
bool with_ellipse(const Model& model, const Action& action) {
  switch (model.pairing) {
    case Pairing::kSingle:
      if (model.order == 0) return action(static_cast<EllipticEnergy<0, Pairing::kSingle>*>(nullptr));
      if (model.order == 1) return action(static_cast<EllipticEnergy<1, Pairing::kSingle>*>(nullptr));
      return action(static_cast<EllipticEnergy<2, Pairing::kSingle>*>(nullptr));
    case Pairing::kFree:
      return action(static_cast<EllipticEnergy<0, Pairing::kFree>*>(nullptr));
    default:
      if (model.order == 1) return action(static_cast<EllipticEnergy<1, Pairing::kTied>*>(nullptr));
      return action(static_cast<EllipticEnergy<2, Pairing::kTied>*>(nullptr));
  }
}

template <class Action>
bool with_energy(int size, const Model& model, const Action& action) {
  if (model.elliptic) return with_ellipse(model, action);
  if (size == 7) return with_model<7>(model, action);
  return with_model<0>(model, action);
}

bool find_starts(const Problem& problem, const Chunk& chunk, Start* items, Starts* starts) {
  const SeedTables& tables = *problem.seeds;
  const int taps = problem.size * problem.size;
  Buffer<Lanes> kernel(taps), memory(SeedWork::vectors(tables, problem.model_count));
  Buffer<Candidates> found(int64_t(problem.model_count) * kLanes);
  if (!kernel || !memory || !found) return false;
  SeedWork work;
  work.place(memory.get(), tables, problem.model_count);
  for (int row = 0; row < chunk.rows; row += kLanes) {
    for (int t = 0; t < taps; ++t) {
      for (int lane = 0; lane < kLanes; ++lane) {
        kernel.get()[t][lane] = row + lane < chunk.rows ? chunk.taps[int64_t(row + lane) * taps + t] : 0.0f;
      }
    }
    if (problem.size == 7) find_maxima<7>(problem, kernel.get(), work, found.get());
    else find_maxima<0>(problem, kernel.get(), work, found.get());
    for (int lane = 0; lane < kLanes && row + lane < chunk.rows; ++lane) {
      for (int m = 0; m < problem.model_count; ++m) {
        const int64_t place = int64_t(row + lane) * problem.model_count + m;
        Start* mine = items + place * kStarts;
        const int most = problem.effort.starts * (problem.models[m].pairing == Pairing::kTied ? 2 : 1);
        const float share = least_share(problem.models[m], problem.effort.margin);
        const int count = choose_starts(tables, problem.effort.apart, share, most < kStarts ? most : kStarts,
                                   found.get()[lane * problem.model_count + m], mine);
        starts[place] = {count, mine};
      }
    }
  }
  return true;
}

// The kernels of a chunk, tap after tap.
void gather_taps(const Problem& problem, int64_t first, int rows, float* out) {
  const int taps = problem.size * problem.size;
  for (int t = 0; t < taps; ++t) {
    for (int row = 0; row < rows; ++row) {
      out[int64_t(row) * taps + t] = problem.kernels[t * problem.rows + first + row];
    }
  }
}

bool climb_model(const Problem& problem, int model, const Chunk& chunk) {
  return with_energy(problem.size, problem.models[model], [&](auto* energy) {
    return climb_all<typename Pointee<decltype(energy)>::type>(problem, model, chunk);
  });
}

bool search(const Problem& problem, int64_t begin, int64_t end) {
  const int64_t most = end - begin < kChunk ? end - begin : kChunk;
  Buffer<float> memory(most * problem.size * problem.size);
  Buffer<Start> items(most * problem.model_count * kStarts);
  Buffer<Starts> starts(most * problem.model_count);
  if (!memory || !items || !starts) return false;
  for (int64_t first = begin; first < end; first += kChunk) {
    const int rows = static_cast<int>(end - first < kChunk ? end - first : kChunk);
    gather_taps(problem, first, rows, memory.get());
    const Chunk chunk = {first, rows, memory.get(), starts.get()};
    if (!find_starts(problem, chunk, items.get(), starts.get())) return false;
    for (int m = 0; m < problem.model_count; ++m) {
      if (!climb_model(problem, m, chunk)) return false;
    }
  }
  return true;
}

bool climb(const Problem& problem, const GivenStarts& given, int64_t begin, int64_t end) {
  const Model& model = problem.models[0];
  const int64_t most = end - begin < kChunk ? end - begin : kChunk;
  Buffer<float> memory(most * problem.size * problem.size);
  Buffer<Start> items(most * given.count);
  Buffer<Starts> starts(most);
  if (!memory || !items || !starts) return false;
  for (int64_t first = begin; first < end; first += kChunk) {
    const int rows = static_cast<int>(end - first < kChunk ? end - first : kChunk);
    gather_taps(problem, first, rows, memory.get());
    for (int row = 0; row < rows; ++row) {
      Start* mine = items.get() + int64_t(row) * given.count;
      int count = 0;
      for (; count < given.count; ++count) {
        const float energy = given.energies[count * problem.rows + first + row];
        if (!(energy > 0)) break;
        mine[count].energy = energy;
        for (int a = 0; a < model.parameters(); ++a) {
          mine[count].point[a] = given.points[(count * model.parameters() + a) * problem.rows + first + row];
        }
      }
      starts.get()[row] = {count, mine};
    }
    if (!climb_model(problem, 0, {first, rows, memory.get(), starts.get()})) return false;
  }
  return true;
}

bool evaluate(const Problem& problem, const float* points, float* out) {
  return with_energy(problem.size, problem.models[0], [&](auto* energy) {
    return evaluate_rows<typename Pointee<decltype(energy)>::type>(problem, points, out);
  });
}

}  // namespace
}  // namespace dogfit
