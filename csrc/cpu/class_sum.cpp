// Sums over chunks of pixels, then over the chunks in order. The chunk size depends on the input only, not on threads.
#include "contrast_ops.h"
#include "levels.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kChunk = 4096, kMostChunks = 64, kVector = 16;

}  // namespace

void class_sum(const Features& x, const int16_t* anchor_label, int64_t classes, float* total, const Workers& workers) {
  const ContrastKernels& k = kernels().contrast;
  const int64_t pixels = x.pixels(), pitch = ceil_div(x.dim, kVector) * kVector;
  const int64_t chunk = std::max(kChunk, ceil_div(ceil_div(pixels, kMostChunks), 64) * 64);
  const int64_t chunks = ceil_div(pixels, chunk);
  std::vector<float> partial(chunks * classes * pitch);
  const ClassSum args{x, anchor_label, classes, chunk, pitch, partial.data()};
  run_tasks(chunks, k.class_sum_scratch(args), workers,
            [&](int64_t task, float* scratch) { k.class_sum(args, task, scratch); });
  std::fill_n(total, classes * x.dim, 0.0f);
  for (int64_t i = 0; i < chunks; ++i) {
    for (int64_t c = 0; c < classes; ++c) {
      const float* row = partial.data() + (i * classes + c) * pitch;
      for (int64_t d = 0; d < x.dim; ++d) total[c * x.dim + d] += row[d];
    }
  }
}

}  // namespace u2pl_fast::cpu
