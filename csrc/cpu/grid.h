// The geometry of bilinear upsampling, with torch's own source-index formulas, as tables that the kernels read.
#pragma once

#include <cstdint>
#include <vector>

#include "pixel_kernels.h"

namespace u2pl_fast::cpu {

class RowTable {
 public:
  RowTable(int64_t low, int64_t full, bool align_corners);
  Rows view() const;

 private:
  std::vector<int32_t> first_;
  std::vector<float> upper_, lower_;
};

class ColumnTable {
 public:
  ColumnTable(int64_t low, int64_t full, bool align_corners, int lanes);
  Columns view() const;

 private:
  int64_t full_, blocks_;
  std::vector<int32_t> base_, left_, right_;
  std::vector<uint8_t> narrow_;
  std::vector<float> left_weight_, right_weight_;
};

class CellTable {
 public:
  CellTable(int64_t low, int64_t full, bool align_corners, int lanes);
  Cells view() const;

 private:
  int64_t full_;
  std::vector<CellBlock> blocks_;
  std::vector<int32_t> column_;
  std::vector<float> left_weight_, right_weight_;
};

}  // namespace u2pl_fast::cpu
