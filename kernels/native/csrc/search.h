// From kernels to the best search point of every model: seeds, then ascents.
#pragma once

#include "climb.h"

namespace dogfit {
namespace {

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
      if (model.order == 1) return action(static_cast<Energy<1, Pairing::kShared, SIZE>*>(nullptr));
      return action(static_cast<Energy<2, Pairing::kShared, SIZE>*>(nullptr));
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
      if (model.order == 1) return action(static_cast<EllipticEnergy<1, Pairing::kShared>*>(nullptr));
      return action(static_cast<EllipticEnergy<2, Pairing::kShared>*>(nullptr));
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
        const Effort& effort = problem.models[m].effort;
        const int count = choose_starts(tables, effort.min_separation, effort.min_seed_energy,
                                        effort.starts < kStarts ? effort.starts : kStarts,
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
