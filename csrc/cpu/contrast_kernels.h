// The arguments of the contrastive ops, and their part of the kernel table. It uses neither torch nor intrinsics.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace u2pl_fast::cpu {

// A vector of `dim` numbers for every pixel: (batch, dim, plane), strides in elements; stride_d or stride_p is 1.
// Rows (R, D) are one image of R pixels. Pixel number p is pixel p % plane of image p / plane.
struct Features {
  const void* data;
  Float type;
  int64_t batch, dim, plane;
  int64_t stride_b, stride_d, stride_p;

  int64_t pixels() const { return batch * plane; }
};

inline int64_t element_size(Float type) { return type == Float::f32 ? 4 : 2; }

struct ContrastMasks {
  Features logits;
  const void* label;  // (pixels)
  Integer label_type;
  const uint8_t* reliable;    // (pixels)
  const uint8_t* unreliable;  // (pixels)
  int64_t num_labeled, low_rank, high_rank, ignore_index;
  float positive_threshold;
  int32_t* mask;          // (pixels, words)
  int16_t* anchor_label;  // (pixels)
};

// The results of a worker besides the maps.
struct ContrastCounts {
  int64_t* keys;     // (classes)
  int64_t* anchors;  // (classes)
  int64_t bad_pixel = -1;  // the first whose label is neither a class nor ignored
  int64_t bad_label = 0;
};

constexpr int64_t kMaskPixels = 1024;  // pixels per task of contrast_masks, of one image

// Each task sums a fixed number of pixels, for any number of threads.
struct ClassSum {
  Features features;
  const int16_t* anchor_label;  // (pixels)
  int64_t classes;
  int64_t chunk;   // pixels per task
  int64_t pitch;   // of a row of `partial`: dim, padded to whole vectors
  float* partial;  // (chunks, classes, pitch), zeros
};

// The destination of one pixel's row.
struct RowWriter {
  void* bank;  // (slots, dim)
  Float bank_type;
  int64_t dim;
};

enum class Negatives { per_anchor, shared, full };

struct InfoNce {
  const void* anchors;  // (classes, count, dim)
  Float anchor_type;
  const float* weight;     // (classes)
  const float* positives;  // (classes, dim)
  const void* bank;        // (slots, dim), unit rows
  Float bank_type;
  const int64_t* offsets;  // (classes + 1)
  const int64_t* fill;     // (classes)
  const int64_t* indices;  // (classes, count, negatives) or (classes, negatives): slots within the class
  Negatives mode;
  int64_t classes, count, dim, negatives;
  float temperature;
  // Results. The loss of an anchor is excess + log(total).
  float* excess;  // (classes, count): largest score - positive score
  float* total;   // (classes, count): sum of e^(score - largest)
  float* grad;    // (classes, count, dim) or null
};

constexpr int64_t kAnchorBlock = 32;  // anchors per task of info_nce, of one class

struct ContrastKernels {
  size_t (*contrast_masks_scratch)(const ContrastMasks&);
  void (*contrast_masks)(const ContrastMasks&, int64_t task, float* scratch, ContrastCounts& counts);
  size_t (*class_sum_scratch)(const ClassSum&);
  void (*class_sum)(const ClassSum&, int64_t chunk, float* scratch);
  // Loads `count` pixels from `first` on as fp32 rows, `stride` floats apart and zero past dim.
  void (*load_rows)(const Features&, int64_t first, int64_t count, int64_t stride, float* out);
  float (*square_sum)(const float* row, int64_t dim);
  void (*write_row)(const RowWriter&, const float* row, float scale, int64_t slot);
  void (*finish_writes)();
  // Sums `count` rows of (.., dim) into `out`, in the order of `position`.
  void (*sum_rows)(const void* rows, Float type, int64_t dim, const int64_t* position, int64_t count, void* out);
  size_t (*info_nce_scratch)(const InfoNce&);
  void (*info_nce)(const InfoNce&, int64_t task, float* scratch);
};

}  // namespace u2pl_fast::cpu
