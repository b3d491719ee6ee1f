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
  // Planes of all models, or of those of one width and this order; adds the ratios of widths they need.
  std::vector<SeedPlane> list_planes(int only_order, const std::vector<Model>& models,
                                     std::vector<double>& ratios) const;
  void add_level(double sigma, int step, const std::vector<double>& line, int only_order,
                 const std::vector<Model>& models);

  int size_;
  std::deque<std::vector<float>> storage_;
  std::deque<std::vector<int>> starts_;
  std::deque<std::vector<SeedPlane>> planes_;
  std::vector<SeedLevel> levels_;
  SeedTables tables_;
};

}  // namespace dogfit
