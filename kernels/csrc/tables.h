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
  void add_level(float sigma, const std::vector<Model>& models);

  int size_;
  std::deque<std::vector<float>> storage_;
  std::deque<std::vector<SeedPlane>> planes_;
  std::vector<SeedLevel> levels_;
  SeedTables tables_;
};

}  // namespace dogfit
