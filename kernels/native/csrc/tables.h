// What the seed search needs of the grid alone; built once per call.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "api.h"

namespace dogfit {

class Tables {
 public:
  Tables(int size, const std::vector<Model>& models);
  const SeedTables& get() const { return tables_; }

 private:
  float* keep(std::size_t count);
  // Which models a grid is for: those whose weights are free, of these the first or second derivatives or the
  // Laplacian of a narrow Gaussian, tied ones, and these where narrow.
  enum class For { kFree, kFirst, kSecond, kLaplacian, kTied, kTiedNarrow };

  // Planes for the models that a grid is for; adds the ratios of widths they need.
  static std::vector<SeedPlane> list_planes(For purpose, int stride, const std::vector<Model>& models,
                                            std::vector<double>& ratios);
  void add_level(double sigma, int step, const std::vector<double>& line, int stride, For purpose,
                 const std::vector<Model>& models);

  int size_;
  std::deque<std::vector<float>> storage_;
  std::deque<std::vector<int>> starts_;
  std::deque<std::vector<SeedPlane>> planes_;
  std::vector<SeedLevel> levels_;
  SeedTables tables_;
};

}  // namespace dogfit
