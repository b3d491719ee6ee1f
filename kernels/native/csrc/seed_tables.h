// The nodes of the search as `tables.py` hands them over; every pointer is into its operands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "api.h"

namespace dogfit {

struct LevelRow {
  int32_t level, count, stride, length, totals, second_totals, seconds, planes;
};

struct PlaneRow {
  int32_t kind, model, order, second, variant, stride;
};

// A part of an operand that is read from front to back.
template <class T>
struct Operand {
  const T* next;
  int64_t left;

  // The next entries, or null where there are no more.
  const T* take(int64_t count) {
    left -= count;
    if (count < 0 || left < 0) return nullptr;
    return (next += count) - count;
  }
};

class Tables {
 public:
  // Takes the operands apart; `ok` is false where they do not fit together.
  Tables(int size, int models, Operand<LevelRow> levels, Operand<PlaneRow> planes, Operand<int32_t> reached,
         Operand<float> numbers) {
    levels_.reserve(levels.left);
    planes_.reserve(planes.left);  // levels point into it
    ok_ = true;
    while (ok_ && levels.left > 0) ok_ = add_level(size, models, *levels.take(1), planes, reached, numbers);
    ok_ = ok_ && planes.left == 0 && reached.left == 0 && numbers.left == 0;
    tables_.levels = static_cast<int>(levels_.size());
    tables_.level = levels_.data();
  }

  bool ok() const { return ok_; }
  const SeedTables& get() const { return tables_; }

 private:
  bool add_level(int size, int models, const LevelRow& row, Operand<PlaneRow>& planes,
                 Operand<int32_t>& reached, Operand<float>& numbers) {
    if (row.count < 1 || row.count > kMaxCentres || row.stride < 1 || row.seconds < 0 ||
        row.seconds > kMaxSeconds || row.planes < 0 || (row.length != kReach && row.length != size) ||
        row.length > size) {
      return false;
    }
    SeedLevel level = {};
    level.step = row.level;
    level.count = row.count;
    level.stride = row.stride;
    level.length = row.length;
    level.totals = row.totals;
    level.second_totals = row.second_totals;
    level.seconds = row.seconds;
    level.planes = row.planes;
    const float* width = numbers.take(2);
    level.line = numbers.take(row.count);
    level.start = reached.take(row.count);
    for (const float*& profile : level.profile) profile = numbers.take(int64_t(row.count) * row.length);
    const int64_t coarse = (row.count + row.stride - 1) / row.stride;
    for (int s = 0; s < row.seconds; ++s) {
      for (const float*& profile : level.second[s]) profile = numbers.take(coarse * size);
    }
    const PlaneRow* rows = planes.take(row.planes);
    if (numbers.left < 0 || reached.left < 0 || planes.left < 0) return false;
    level.sigma = width[0];
    level.log_sigma = width[1];
    level.plane = planes_.data() + planes_.size();
    for (int p = 0; p < row.planes; ++p) {
      if (!add_plane(row, rows[p], models, numbers)) return false;
    }
    levels_.push_back(level);
    tables_.longest = std::max(tables_.longest, level.count);
    tables_.planes = std::max(tables_.planes, level.planes);
    return true;
  }

  bool add_plane(const LevelRow& level, const PlaneRow& row, int models, Operand<float>& numbers) {
    if (row.model < 0 || row.model >= models || row.order < 0 || row.order > 2 || row.second < 0 ||
        row.second > level.seconds || (row.stride != 1 && row.stride != level.stride)) {
      return false;
    }
    SeedPlane plane = {};
    plane.kind = static_cast<SeedPlane::Kind>(row.kind);
    plane.model = row.model;
    plane.order = row.order;
    plane.second = row.second;
    plane.variant = row.variant;
    plane.stride = row.stride;
    const int basis = plane.kind == SeedPlane::kLaplacian || plane.kind == SeedPlane::kPair ? 2 : row.order + 1;
    const int64_t half = ((level.count + row.stride - 1) / row.stride + 1) / 2;
    const float* surround = numbers.take(2);
    plane.white = numbers.take(half * half * (basis * (basis + 1) / 2));
    if (numbers.left < 0) return false;
    plane.log_ratio = surround[0];
    plane.surround_weight = surround[1];
    planes_.push_back(plane);
    return true;
  }

  bool ok_;
  std::vector<SeedPlane> planes_;
  std::vector<SeedLevel> levels_;
  SeedTables tables_ = {};
};

}  // namespace dogfit
