#include <algorithm>

#include "pixel_ops.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;  // pixels per task

}  // namespace

CrossEntropySums ohem_mask(CrossEntropy args, Size size, bool align_corners, double threshold, int64_t min_kept,
                           bool* keep, const Workers& workers) {
  const int64_t pixels = args.logits.batch * size.height * size.width;
  const Scratch scratch = make_scratch(pixels);
  float* probability = args.probability = scratch.get();
  const CrossEntropySums sums = cross_entropy(args, size, align_corners, workers);
  if (sums.bad_position >= 0) return sums;

  // Ignored pixels hold 2, which sorts after every probability and is above every bound.
  double bound = threshold;
  const int64_t kept = std::min(min_kept, sums.valid);
  if (kept > 0) bound = std::max<double>(bound, kth_smallest(probability, pixels, kept - 1, workers));
  const float limit = float(std::min(bound, 1.5));
  run_tasks(ceil_div(pixels, kChunk), 0, workers, [&](int64_t task, float*) {
    const int64_t end = std::min(pixels, (task + 1) * kChunk);
    for (int64_t i = task * kChunk; i < end; ++i) keep[i] = probability[i] <= limit;
  });
  return sums;
}

}  // namespace u2pl_fast::cpu
