// Sums over chunks of pixels whose size depends on the input alone, then over the chunks in order.
#include "contrast_ops.h"
#include "tasks.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kChunk = 4096, kMostChunks = 64, kSlab = 16;

}  // namespace

void class_sum(const Features& x, const int16_t* anchor_label, int64_t classes, float* total, const Workers& workers) {
  const ContrastKernels& k = kernels().contrast;
  const int64_t pixels = x.pixels(), size = classes * x.dim;
  const int64_t chunk = std::max(kChunk, ceil_div(ceil_div(pixels, kMostChunks), 64) * 64);
  const int64_t chunks = ceil_div(pixels, chunk);
  std::vector<float> partial(chunks * size);
  const ClassSum args{x, anchor_label, classes, chunk, partial.data()};
  // Planes are read a few at a time, whole rows of pixels at once.
  const int64_t slab = x.stride_d == 1 ? x.dim : std::min(x.dim, kSlab), slabs = ceil_div(x.dim, slab);
  run_tasks(chunks * slabs, size_t(classes * ceil_div(slab, kSlab) * kSlab), workers, [&](int64_t task, float* scratch) {
    const int64_t first = task % slabs * slab;
    k.class_sum(args, task / slabs, first, std::min(slab, x.dim - first), scratch);
  });
  std::fill_n(total, size, 0.0f);
  for (int64_t i = 0; i < chunks; ++i) {
    for (int64_t j = 0; j < size; ++j) total[j] += partial[i * size + j];
  }
}

}  // namespace u2pl_fast::cpu
