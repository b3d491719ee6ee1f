// Handlers through which XLA calls the search.

#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "seed_tables.h"

namespace ffi = xla::ffi;

namespace dogfit {
namespace {

// Rows a thread takes at a time: enough to keep all lanes busy until near the end.
constexpr int64_t kLeastPiece = 128, kMostPiece = 512;

bool runs(const Build& build) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (&build == &kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("fma");
  }
  if (&build == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &build == &kBaseline;
}

// The widest build that runs here, or the one asked for by name.
const Build* choose(std::string_view wanted) {
#if defined(__x86_64__)
  for (const Build* build : {&kAvx512, &kAvx2}) {
    if (runs(*build) && (wanted.empty() || wanted == build->name)) return build;
  }
#endif
  return wanted.empty() || wanted == kBaseline.name ? &kBaseline : nullptr;
}

// Pieces of the rows, taken by whichever threads come.
struct Pieces {
  Problem problem;
  GivenStarts given;  // none: starts are found
  const Build* build;
  int64_t length;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  int64_t left;
  std::mutex mutex;
  std::condition_variable done;

  void work() {
    for (int64_t begin; (begin = next.fetch_add(length)) < problem.rows;) {
      const int64_t end = std::min(begin + length, problem.rows);
      const bool finished =
          given.points ? build->climb(problem, given, begin, end) : build->search(problem, begin, end);
      if (!finished) failed = true;
      const std::lock_guard<std::mutex> lock(mutex);
      if (--left == 0) done.notify_all();
    }
  }
};

ffi::Error check(const ffi::Buffer<ffi::F32>& kernels, const Build* build) {
  const auto shape = kernels.dimensions();
  if (shape.size() != 3 || shape[0] != shape[1] || shape[0] < 1 || shape[0] > kMaxSize) {
    return ffi::Error::InvalidArgument("kernels must be [k, k, n], k at most 51");
  }
  if (build == nullptr) return ffi::Error::InvalidArgument("this processor lacks the instructions asked for");
  return ffi::Error::Success();
}

// An operand as rows of as many entries as there are in a `Row`.
template <class Row, ffi::DataType TYPE>
Operand<Row> rows_of(const ffi::Buffer<TYPE>& operand) {
  constexpr int64_t entries = sizeof(Row) / sizeof(*operand.typed_data());
  return {reinterpret_cast<const Row*>(operand.typed_data()),
          static_cast<int64_t>(operand.element_count()) / entries};
}

// Splits the rows among the threads of a pool.
ffi::Error work_through(const Problem& problem, const GivenStarts& given, const Build* build,
                        ffi::ThreadPool& pool) {
  const auto pieces = std::make_shared<Pieces>();
  pieces->problem = problem;
  pieces->given = given;
  pieces->build = build;
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t share = (problem.rows + 2 * threads - 1) / (2 * threads);
  pieces->length = std::min(std::max(share, kLeastPiece), kMostPiece);
  pieces->left = (problem.rows + pieces->length - 1) / pieces->length;
  // This thread works too, and waits for pieces that another has begun, never for one to begin: a pool whose
  // threads are all taken cannot lock up. Who comes late finds no piece left and touches nothing else.
  for (int64_t i = 1; i < std::min(threads, pieces->left); ++i) pool.Schedule([pieces] { pieces->work(); });
  pieces->work();
  std::unique_lock<std::mutex> lock(pieces->mutex);
  pieces->done.wait(lock, [&] { return pieces->left == 0; });
  if (pieces->failed) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  return ffi::Error::Success();
}

// The fields of `Effort`, an entry per model: as arguments of a handler, gathered for model M, and as its
// attributes.
#define DOGFIT_EFFORT_ARGUMENTS                                                                        \
  ffi::Span<const int32_t> most_starts, ffi::Span<const int32_t> most_steps,                           \
      ffi::Span<const float> min_relative_energy, ffi::Span<const float> abandon_factor,               \
      ffi::Span<const float> min_separation, ffi::Span<const float> tolerance,                         \
      ffi::Span<const int32_t> edge_restarts, ffi::Span<const float> edge_restart_log_sigma,           \
      ffi::Span<const float> min_seed_energy
#define DOGFIT_EFFORT(M)                                                                               \
  Effort {                                                                                             \
    most_starts[M], most_steps[M], min_relative_energy[M], abandon_factor[M], min_separation[M],       \
        tolerance[M], std::min(edge_restarts[M], kEdgeRestarts), edge_restart_log_sigma[M],            \
        min_seed_energy[M]                                                                             \
  }
#define DOGFIT_EFFORT_ATTRIBUTES                                                                       \
  .Attr<ffi::Span<const int32_t>>("starts")                                                            \
      .Attr<ffi::Span<const int32_t>>("steps")                                                         \
      .Attr<ffi::Span<const float>>("min_relative_energy")                                             \
      .Attr<ffi::Span<const float>>("abandon_factor")                                                  \
      .Attr<ffi::Span<const float>>("min_separation")                                                  \
      .Attr<ffi::Span<const float>>("tolerance")                                                       \
      .Attr<ffi::Span<const int32_t>>("edge_restarts")                                                 \
      .Attr<ffi::Span<const float>>("edge_restart_log_sigma")                                          \
      .Attr<ffi::Span<const float>>("min_seed_energy")

ffi::Error search(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> kernels, ffi::Buffer<ffi::F32> lower,
                  ffi::Buffer<ffi::F32> upper, ffi::Buffer<ffi::S32> levels, ffi::Buffer<ffi::S32> planes,
                  ffi::Buffer<ffi::S32> reached, ffi::Buffer<ffi::F32> numbers,
                  ffi::ResultBuffer<ffi::F32> point,
                  ffi::ResultBuffer<ffi::F32> predicted_gain, ffi::ResultBuffer<ffi::S32> steps,
                  ffi::ResultBuffer<ffi::S32> n_agreeing, ffi::Span<const int32_t> orders,
                  ffi::Span<const int32_t> pairings, DOGFIT_EFFORT_ARGUMENTS, std::string_view instructions) {
  const Build* build = choose(instructions);
  if (ffi::Error error = check(kernels, build); error.failure()) return error;
  const int size = static_cast<int>(kernels.dimensions()[0]);
  const int64_t rows = kernels.dimensions()[2];
  if (rows == 0) return ffi::Error::Success();
  std::vector<Model> models;
  for (size_t m = 0; m < orders.size(); ++m) {
    models.push_back({orders[m], static_cast<Pairing>(pairings[m]), false, DOGFIT_EFFORT(m),
                      lower.typed_data() + kMaxParameters * m, upper.typed_data() + kMaxParameters * m,
                      point->typed_data() + kMaxParameters * rows * m, predicted_gain->typed_data() + rows * m,
                      steps->typed_data() + rows * m, n_agreeing->typed_data() + rows * m});
  }
  const Tables tables(size, static_cast<int>(models.size()), rows_of<LevelRow>(levels),
                      rows_of<PlaneRow>(planes), rows_of<int32_t>(reached), rows_of<float>(numbers));
  if (!tables.ok()) return ffi::Error::InvalidArgument("the tables of starts do not fit together");
  return work_through({kernels.typed_data(), rows, size, models.data(), static_cast<int>(models.size()),
                       &tables.get()},
                      {}, build, pool);
}

ffi::Error climb(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> kernels, ffi::Buffer<ffi::F32> points,
                 ffi::Buffer<ffi::F32> energies, ffi::Buffer<ffi::F32> lower, ffi::Buffer<ffi::F32> upper,
                 ffi::ResultBuffer<ffi::F32> point, ffi::ResultBuffer<ffi::F32> predicted_gain,
                 ffi::ResultBuffer<ffi::S32> steps, ffi::ResultBuffer<ffi::S32> n_agreeing, int32_t order,
                 int32_t pairing, DOGFIT_EFFORT_ARGUMENTS, std::string_view instructions) {
  const Build* build = choose(instructions);
  if (ffi::Error error = check(kernels, build); error.failure()) return error;
  const int64_t rows = kernels.dimensions()[2];
  if (rows == 0) return ffi::Error::Success();
  const Model model = {order, static_cast<Pairing>(pairing), true, DOGFIT_EFFORT(0), lower.typed_data(), upper.typed_data(),
                       point->typed_data(), predicted_gain->typed_data(), steps->typed_data(),
                       n_agreeing->typed_data()};
  const auto shape = points.dimensions();
  if (shape.size() != 3 || shape[0] > kMostStarts || shape[1] != model.parameters() || shape[2] != rows) {
    return ffi::Error::InvalidArgument("starts must be [s, p, n], s at most 128");
  }
  const auto known = energies.dimensions();
  if (known.size() != 2 || known[0] != shape[0] || known[1] != rows) {
    return ffi::Error::InvalidArgument("starts must have energies [s, n]");
  }
  const int count = static_cast<int>(shape[0]);
  return work_through({kernels.typed_data(), rows, static_cast<int>(kernels.dimensions()[0]), &model, 1, nullptr},
                      {count, points.typed_data(), energies.typed_data()}, build, pool);
}

ffi::Error evaluate(ffi::Buffer<ffi::F32> kernels, ffi::Buffer<ffi::F32> points,
                    ffi::ResultBuffer<ffi::F32> out, int32_t order, int32_t pairing, bool elliptic,
                    std::string_view instructions) {
  const Build* build = choose(instructions);
  if (ffi::Error error = check(kernels, build); error.failure()) return error;
  Model model = {};
  model.order = order;
  model.pairing = static_cast<Pairing>(pairing);
  model.elliptic = elliptic;
  Problem problem = {};
  problem.kernels = kernels.typed_data();
  problem.rows = kernels.dimensions()[2];
  problem.size = static_cast<int>(kernels.dimensions()[0]);
  problem.models = &model;
  problem.model_count = 1;
  if (!build->evaluate(problem, points.typed_data(), out->typed_data())) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace dogfit

XLA_FFI_DEFINE_HANDLER_SYMBOL(DogfitSearch, dogfit::search,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<ffi::Span<const int32_t>>("orders")
                                  .Attr<ffi::Span<const int32_t>>("pairings")
                                  DOGFIT_EFFORT_ATTRIBUTES
                                  .Attr<std::string_view>("instructions"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DogfitClimb, dogfit::climb,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<int32_t>("order")
                                  .Attr<int32_t>("pairing")
                                  DOGFIT_EFFORT_ATTRIBUTES
                                  .Attr<std::string_view>("instructions"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DogfitEvaluate, dogfit::evaluate,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("order")
                                  .Attr<int32_t>("pairing")
                                  .Attr<bool>("elliptic")
                                  .Attr<std::string_view>("instructions"));

extern "C" int dogfit_interface() { return dogfit::kInterface; }

// The instruction sets that run here, best first, separated by spaces.
extern "C" const char* dogfit_instructions() {
#if defined(__x86_64__)
  if (dogfit::runs(dogfit::kAvx512)) return "avx512 avx2 baseline";
  if (dogfit::runs(dogfit::kAvx2)) return "avx2 baseline";
#endif
  return "baseline";
}
