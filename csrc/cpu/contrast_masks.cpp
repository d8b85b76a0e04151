#include <mutex>

#include "contrast_ops.h"
#include "levels.h"

namespace u2pl_fast::cpu {

ContrastCounts contrast_masks(const ContrastMasks& args, int64_t* keys, int64_t* anchors, const Workers& workers) {
  const ContrastKernels& k = kernels().contrast;
  const int64_t classes = args.logits.dim;
  const int64_t tasks = args.logits.batch * ceil_div(args.logits.plane, kMaskPixels);
  ContrastCounts total{keys, anchors};
  std::fill_n(keys, classes, 0);
  std::fill_n(anchors, classes, 0);
  std::mutex lock;
  std::atomic<int64_t> next{0};
  workers(tasks, [&] {
    const Scratch scratch = make_scratch(k.contrast_masks_scratch(args));
    std::vector<int64_t> own(2 * classes);
    ContrastCounts counts{own.data(), own.data() + classes};
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      k.contrast_masks(args, task, scratch.get(), counts);
    }
    const std::lock_guard<std::mutex> guard(lock);  // integers: the order of addition does not matter
    for (int64_t c = 0; c < classes; ++c) {
      keys[c] += counts.keys[c];
      anchors[c] += counts.anchors[c];
    }
    if (counts.bad_pixel >= 0 && (total.bad_pixel < 0 || counts.bad_pixel < total.bad_pixel)) {
      total.bad_pixel = counts.bad_pixel;
      total.bad_label = counts.bad_label;
    }
  });
  return total;
}

}  // namespace u2pl_fast::cpu
