// The per-pixel CPU ops on raw pointers, as the bindings call them.
#pragma once

#include <cstdint>

#include "pixel_kernels.h"
#include "tasks.h"

namespace u2pl_fast::cpu {

struct Size {
  int64_t height, width;
};

// The result pointers of `args` are filled in by the caller; geometry is set here.
void pixel_stats(PixelStats args, Size size, bool align_corners, const Workers& workers);
CrossEntropySums cross_entropy(CrossEntropy args, Size size, bool align_corners, const Workers& workers);

// keep (batch, H, W): true if p(target) is at most the threshold or its min_kept-th smallest value. Nothing is written
// if a target is neither a class nor ignored.
CrossEntropySums ohem_mask(CrossEntropy args, Size size, bool align_corners, double threshold, int64_t min_kept,
                           bool* keep, const Workers& workers);

// Returns NumPy's linear quantile of the elements whose mask is not 0; NaN if there are none or one of them is NaN.
float masked_quantile(const float* x, const uint8_t* mask, int64_t n, double q, const Workers& workers);

// Returns element `rank` of the sorted x.
float kth_smallest(const float* x, int64_t n, int64_t rank, const Workers& workers);

}  // namespace u2pl_fast::cpu
