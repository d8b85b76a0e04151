// The contrastive CPU ops on raw pointers, as the bindings call them.
#pragma once

#include <cstdint>

#include "../ring_push.h"
#include "contrast_kernels.h"
#include "tasks.h"

namespace u2pl_fast::cpu {

ContrastCounts contrast_masks(const ContrastMasks& args, int64_t* keys, int64_t* anchors, const Workers& workers);

// mask and out (pixels, words); max_keys and draw (classes).
void thin_mask(const int32_t* mask, int64_t pixels, int64_t classes, const int64_t* max_keys, const int64_t* draw,
               int32_t* out, const Workers& workers);

// draws and index (classes, count).
void class_sample(const int16_t* anchor_label, int64_t pixels, int64_t classes, const int64_t* draws, int64_t count,
                  int64_t* index, const Workers& workers);

// total (classes, dim).
void class_sum(const Features& features, const int16_t* anchor_label, int64_t classes, float* total,
               const Workers& workers);

// out (count, dim) in the type of the features.
void gather_pixels(const Features& features, const int64_t* index, int64_t count, void* out, const Workers& workers);

// Sums `grad` (count, dim) into `out`, which has the layout of the features, and writes every element.
void gather_pixels_backward(const void* grad, const int64_t* index, int64_t count, const Features& layout, void* out,
                            const Workers& workers);

struct RingPush {
  Features features;
  const int32_t* mask;  // (pixels, words)
  void* bank;           // (slots, dim)
  Float bank_type;
  ring::Push push;
};
void ring_push(const RingPush& args, const Workers& workers);

// Returns the loss; the result pointers of `args` hold the values of each anchor.
double info_nce(const InfoNce& args, const Workers& workers);

}  // namespace u2pl_fast::cpu
