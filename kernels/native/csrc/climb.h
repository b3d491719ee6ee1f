// Ascents from the starts of many kernels, in lanes that are refilled.
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
  int row;           // -1: idle
  int start;       // the present one; their number in the end
  int edge_restarts;  // restarts across edges of taps
  bool finishing;  // the best once more, with more steps
  float ends[kMostStarts];  // energy at the end of each start
  int steps;
  float point[kMaxParameters], predicted_gain;  // of the best
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
    const Mask settled = (a.predicted_gain <= model_.effort.tolerance) | (absolute(a.predicted) <= kNoGain) |
                         (evaluations_ >= limit_);
    // A predicted gain is worth most where it was not yet put to the test.
    const float factor = model_.effort.abandon_factor;
    const Lanes trust = select(evaluations_ < 1.5f, splat(factor), splat(E::kFree ? factor : 0.5f * factor));
    const Mask hopeless = a.energy + trust * a.predicted_gain < best_energy_;
    const Lanes inverse_sigma = exponential(-a.point[2]);
    Lanes farthest = splat(0);
    for (int p = 0; p < P; ++p) {
      const Lanes distance = absolute(a.point[p] - best_point_[p]);
      farthest = larger(p < 2 ? distance * inverse_sigma : distance, farthest);
    }
    const Mask same = (farthest < 0.15f) & (a.energy <= best_energy_) & (a.energy > best_energy_ - 3e-3f);
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
      job.start = job.edge_restarts = 0;
      job.finishing = false;
      job.steps = 0;
      float total = 0;
      for (int x = 0; x < problem_.size; ++x) {
        for (int y = 0; y < problem_.size; ++y) {
          const int tap = y * problem_.size + x;
          const float value = chunk_->taps[int64_t(row) * taps + tap];
          kernel_[tap][lane] = value;
          total += value * value;
        }
      }
      total_[lane] = total;
      best_energy_[lane] = -kInfinite;
      if (total > 0 && total < kInfinite && starts(row).count > 0) {
        begin_start(lane);
        return true;
      }
      const int64_t at = chunk_->first + row;
      for (int a = 0; a < P; ++a) model_.point[a * problem_.rows + at] = 0.5f * (model_.lower[a] + model_.upper[a]);
      model_.predicted_gain[at] = 0;
      model_.steps[at] = model_.n_agreeing[at] = 0;
    }
    jobs_[lane].row = -1;
    return false;
  }

  void begin_start(int lane) {
    const Job& job = jobs_[lane];
    begin_at(lane, starts(job.row).item[job.start].point, model_.effort.steps);
  }

  void begin_at(int lane, const float* start, int most_steps) {
    for (int a = 0; a < P; ++a) {
      float value = start[a];
      value = value > lower_[a][lane] ? value : lower_[a][lane];
      ascent_.trial[a][lane] = value < upper_[a][lane] ? value : upper_[a][lane];
      ascent_.point[a][lane] = ascent_.trial[a][lane];
    }
    ascent_.energy[lane] = -kInfinite;
    ascent_.predicted_gain[lane] = ascent_.predicted[lane] = kInfinite;
    ascent_.damping[lane] = 1e-3f;
    evaluations_[lane] = 0;
    limit_[lane] = static_cast<float>(most_steps);
  }

  // The second derivative of a narrow Gaussian, integrated over taps, turns round within hundredths of a tap
  // where its centre crosses an edge: maxima lie on either side, closer than any grid. So the search starts
  // again from the best point moved to both sides of the next edge, to its mirror image in the tap, and to
  // where the profile of a centre inside the tap is steepest, along x, y and both; for the Laplacian, the limit
  // of two equal widths, to the other side alone. For what is narrow, in taps. Tied ellipses need it as well.
  void begin_across(int lane) {
    Job& job = jobs_[lane];
    float at[kMaxParameters];
    for (int a = 0; a < P; ++a) at[a] = job.point[a];
    const float middle = problem_.size % 2 ? 0.5f : 0.0f;  // an edge
    // 0: as it is, 1: the other side of the edge, 2: this side, 3: as far beyond the tap's centre, 4: inside.
    constexpr int sides[kEdgeRestarts][2] = {{1, 1}, {1, 0}, {0, 1}, {2, 0}, {0, 2}, {2, 1},
                                  {1, 2}, {2, 2}, {3, 0}, {0, 3}, {3, 3}, {4, 0}, {0, 4}, {4, 4}};
    for (int axis = 0; axis < 2; ++axis) {
      const int side = sides[job.edge_restarts][axis];
      const float edge = __builtin_rintf(at[axis] - middle) + middle;
      const float tap = __builtin_rintf(at[axis] - middle - 0.5f) + middle + 0.5f;
      const float beside = (at[axis] > edge) == (side == 2) ? kBesideEdge : -kBesideEdge;
      const float within = tap + (at[axis] > tap ? kWithinTap : -kWithinTap);
      if (side > 0) at[axis] = side == 4 ? within : side == 3 ? 2 * tap - at[axis] : edge + beside;
    }
    at[2] = lower_[2][lane];
    ++job.edge_restarts;
    begin_at(lane, at, model_.effort.steps);
  }

  // False where the lane has nothing left to do.
  bool end_start(int lane) {
    Job& job = jobs_[lane];
    const float energy = ascent_.energy[lane];
    const bool extra = job.finishing || job.edge_restarts > 0;
    if (!extra) job.ends[job.start++] = energy;
    job.steps += static_cast<int>(evaluations_[lane]);
    if (energy > best_energy_[lane] || job.finishing) {
      best_energy_[lane] = energy;
      job.predicted_gain = ascent_.predicted_gain[lane];
      job.exhausted = evaluations_[lane] >= limit_[lane];
      for (int a = 0; a < P; ++a) best_point_[a][lane] = job.point[a] = ascent_.point[a][lane];
    }
    const Starts& mine = starts(job.row);
    // Seeds come best first, and what an ascent can add has its limits.
    if (!extra && job.start < mine.count &&
        mine.item[job.start].energy >= model_.effort.min_relative_energy * best_energy_[lane]) {
      begin_start(lane);
      return true;
    }
    if (!job.finishing && job.edge_restarts < model_.effort.edge_restarts &&
        job.point[2] < model_.effort.edge_restart_log_sigma) {
      begin_across(lane);
      return true;
    }
    if (!job.finishing && job.exhausted && job.predicted_gain > model_.effort.tolerance) {
      // The best ran out of steps in a narrow valley.
      job.finishing = true;
      best_energy_[lane] = -kInfinite;
      begin_at(lane, job.point, kFinishingFactor * model_.effort.steps);
      return true;
    }
    const int64_t at = chunk_->first + job.row;
    for (int a = 0; a < P; ++a) model_.point[a * problem_.rows + at] = job.point[a];
    model_.predicted_gain[at] = job.predicted_gain;
    model_.steps[at] = job.steps;
    int n_agreeing = 0;
    for (int s = 0; s < job.start; ++s) n_agreeing += job.ends[s] >= best_energy_[lane] - 1e-3f;
    // Where the best was finished later, it alone is there.
    model_.n_agreeing[at] = n_agreeing > 0 ? n_agreeing : 1;
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

}  // namespace
}  // namespace dogfit
