// What the compiled search offers to its FFI handlers: the same functions for every instruction set.
#pragma once

#include <cstdint>

namespace dogfit {

constexpr int kInterface = 3;      // what Python hands over, and in which order
constexpr int kMaxSize = 51;       // taps on a side
constexpr int kMaxCentres = 512;   // in a line of seeds
constexpr int kMaxSeconds = 4;     // wider Gaussians of a level of seeds
constexpr int kReach = 4;          // taps that a Gaussian of 0.3 taps reaches, as seeds need it
constexpr int kMostStarts = 128;   // of a kernel, where they are given
constexpr int kEdgeRestarts = 14;  // ways to move a point across edges of taps
constexpr int kMaxParameters = 7;  // x0, y0, log sigma[, log ratio[, surround weight]][, e1, e2]

// One Gaussian; two with an amplitude each; or two that share one, the second times a searched weight.
enum class Pairing : int { kSingle = 0, kFree = 1, kShared = 2 };

// How hard to search for one model; as `Effort` in kernels/types.py, where the tuned values come from.
struct Effort {
  int starts;                    // most starts of a kernel
  int steps;                     // most evaluations of a start
  float min_relative_energy;     // share of the best energy found below which a seed is not refined
  float abandon_factor;          // a start is given up where this times its predicted gain is less than it lacks
  float min_separation;          // widths within which a seed stands for those of neighbouring widths
  float tolerance;               // predicted gain of a further step below which a start has converged
  int edge_restarts;             // most starts from the best point moved across edges of taps
  float edge_restart_log_sigma;  // logarithm of the width below which there are such starts
  float min_seed_energy;         // share of the best seed's energy below which a seed is no start
};

// One family: the derivatives of one total order of one Gaussian, of two with weights of their own
// (order 0), or of two that share an amplitude; round or elliptic, all alike.
struct Model {
  int order;
  Pairing pairing;
  bool elliptic;
  Effort effort;
  const float* lower;     // [p]
  const float* upper;     // [p]
  float* point;           // [p, rows]
  float* predicted_gain;  // [rows]
  int32_t* steps;         // [rows]
  int32_t* n_agreeing;    // [rows]

  int parameters() const {
    return 3 + (pairing != Pairing::kSingle) + (pairing == Pairing::kShared) + 2 * elliptic;
  }
};

// A grid of starting points of one model: all centres of a level's line, or every `stride`-th, crossed.
struct SeedPlane {
  enum Kind : int { kOrder, kLaplacian, kPair, kTied } kind;
  int model;
  int order;   // of the model
  int second;  // which of the level's second widths
  float log_ratio, surround_weight;
  int variant;  // neighbours differ by one
  int stride;
  // Per node of one quadrant, inverse Cholesky factor of the Gram matrix of the functions solved for, by rows.
  const float* white;
};

// One width, and a line of centres.
struct SeedLevel {
  float sigma, log_sigma;
  int step;           // number of the width: neighbours differ by one
  int count, stride;  // centres in the line; step of the coarse line
  const float* line;
  int totals, second_totals;  // total orders of projections wanted, as bits
  int length;                 // taps that a profile reaches
  const int* start;           // first of them, per centre
  const float* profile[3];    // by order, [count, length]
  int seconds;
  const float* second[kMaxSeconds][3];  // [count / stride, size]
  int planes;
  const SeedPlane* plane;
};

struct SeedTables {
  int longest;  // most centres of a line
  int planes;   // most of a level
  int levels;
  const SeedLevel* level;
};

struct Problem {
  const float* kernels;  // [size, size, rows], rows of taps first: centred, of unit energy or zero
  int64_t rows;
  int size;
  const Model* models;
  int model_count;
  const SeedTables* seeds;  // of the search from no starts
};

// Starts of the one model of a problem, best first; those without energy are none.
struct GivenStarts {
  int count;
  const float* points;    // [count, p, rows]
  const float* energies;  // [count, rows]
};

// The functions of one instruction set.
struct Build {
  const char* name;
  // Fits rows begin to end; rows do not depend on each other or on how they are split.
  // False where memory ran out. Round models.
  bool (*search)(const Problem&, int64_t begin, int64_t end);
  // The same from given starts. Elliptic models.
  bool (*climb)(const Problem&, const GivenStarts&, int64_t begin, int64_t end);
  // Energy, gradient and lower triangle of the Hessian `[1 + p + p (p + 1) / 2, rows]` at points `[p, rows]`.
  bool (*evaluate)(const Problem&, const float* points, float* out);
};

extern const Build kBaseline;
#if defined(__x86_64__)
extern const Build kAvx2;
extern const Build kAvx512;
#endif

}  // namespace dogfit
