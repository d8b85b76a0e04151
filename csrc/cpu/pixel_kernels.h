// The arguments of the per-pixel ops, and their part of the kernel table. It uses neither torch nor intrinsics: the
// bindings fill these structs, and the levels read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace u2pl_fast::cpu {

// Low-resolution logits (batch, classes, height, width), strides in elements; stride_x or stride_c is 1.
struct Logits {
  const void* data;
  Float type;
  int64_t batch, classes, height, width;
  int64_t stride_b, stride_c, stride_y, stride_x;
};

// One task is a band of this number of low rows of one image, for any number of threads, so that every sum has the same
// bits for any number of threads.
constexpr int64_t kBandRows = 8;

// Full row i blends low rows y and y + 1 (clamped) as upper[i] * row(y) + lower[i] * row(y + 1); the full rows of low
// row y are first[y] .. first[y + 1].
struct Rows {
  int64_t full;
  const int32_t* first;
  const float* upper;
  const float* lower;
};

// Columns are processed in blocks of two vectors. Block k reads low columns base[k] ..; where all of them fit in one
// vector (narrow), `left` and `right` count from base[k] and serve as permutation indices, otherwise from column 0.
// Full columns past the end repeat the last one.
struct Columns {
  int64_t full;
  int64_t blocks;
  const int32_t* base;
  const uint8_t* narrow;
  const int32_t* left;         // (blocks, 2 lanes)
  const int32_t* right;        // (blocks, 2 lanes)
  const float* left_weight;    // (blocks, 2 lanes)
  const float* right_weight;   // (blocks, 2 lanes)
};

// Full columns by the cell they lie in: cell q holds the columns that blend low columns q and q + 1, cell -1 those left
// of low column 0. A block is one cell per lane, processed by column: entry k holds column k of every cell.
struct CellBlock {
  int32_t first;    // the cell of lane 0
  int32_t columns;  // 1, 2 or 4 per cell, evenly spaced
  int32_t entry;    // the first of them in the tables
};

struct Cells {
  int64_t full;
  int64_t blocks;
  const CellBlock* block;
  const int32_t* column;      // (entries, lanes): the full column, or `full` if the cell has no more
  const float* left_weight;   // (entries, lanes)
  const float* right_weight;  // (entries, lanes)
};

struct PixelStats {
  Logits logits;
  Rows rows;
  Columns columns;
  void* label;  // (batch, H, W), uint8 or int16
  bool label_is_wide;
  float* confidence;
  float* entropy;
};

struct CrossEntropy {
  Logits logits;
  Rows rows;
  Cells cells;
  const void* target;  // (batch, H, W) contiguous
  Integer target_type;
  int64_t ignore_index;
  const float* weight;        // (classes) or null
  const float* pixel_weight;  // (batch, H, W) contiguous or null
  double label_smoothing;
  double weight_sum;  // sum of weight, or classes

  // Results; each may be null.
  float* probability;  // (batch, H, W): p(target), 2 where the pixel is ignored
  float* grad;         // (batch, classes, height, width) at the strides below
  int64_t grad_stride_b, grad_stride_c, grad_stride_y, grad_stride_x;
  // A band's share of the first low row of the next band, (tasks, classes, width); added by cross_entropy.
  float* seam;
};

// The result of one task of the cross-entropy.
struct CrossEntropySums {
  double num = 0;
  double den = 0;
  int64_t valid = 0;
  int64_t bad_position = -1;  // flat index of the first target that is neither a class nor ignored
  int64_t bad_value = 0;
};

struct PixelKernels {
  size_t (*pixel_stats_scratch)(const PixelStats&);
  void (*pixel_stats)(const PixelStats&, int64_t task, float* scratch);
  size_t (*cross_entropy_scratch)(const CrossEntropy&);
  void (*cross_entropy)(const CrossEntropy&, int64_t task, float* scratch, CrossEntropySums& sums);
};

inline int64_t bands(const Logits& logits) { return ceil_div(logits.height, kBandRows); }

}  // namespace u2pl_fast::cpu
