// The CPU ops on raw pointers, as the bindings call them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"

namespace u2pl_fast::cpu {

// Runs the function once on each of at most `limit` threads; the ops share out their tasks themselves.
using Workers = std::function<void(int64_t limit, const std::function<void()>&)>;

struct Size {
  int64_t height, width;
};

// Instruction-set levels that this machine can run, best first, and the one in use.
std::vector<std::string> levels();
std::string level();
void use_level(const std::string& name);
const Kernels& kernels();

// The result pointers of `args` are filled in by the caller; geometry is set here.
void pixel_stats(PixelStats args, Size size, bool align_corners, const Workers& workers);
CrossEntropySums cross_entropy(CrossEntropy args, Size size, bool align_corners, const Workers& workers);

// Linear (NumPy) quantile of the elements where mask is not 0: NaN where there are none or one of them is NaN.
float masked_quantile(const float* x, const uint8_t* mask, int64_t n, double q, const Workers& workers);

// Element `rank` of the sorted x.
float kth_smallest(const float* x, int64_t n, int64_t rank, const Workers& workers);

}  // namespace u2pl_fast::cpu
