#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "grid.h"
#include "levels.h"
#include "pixel_ops.h"

namespace u2pl_fast::cpu {
namespace {

// Requests huge pages: the page faults of a large new gradient cost more than writing it.
void advise_huge_pages([[maybe_unused]] float* data, [[maybe_unused]] int64_t count) {
#if defined(__linux__)
  const uintptr_t page = 4096 * 512, begin = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t end = uintptr_t(data + count) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Adds every band's share of the next band's first low row.
void add_seams(const CrossEntropy& args, const Workers& workers) {
  const Logits& x = args.logits;
  run_tasks(x.batch * bands(x), 0, workers, [&](int64_t task, float*) {
    const int64_t image = task / bands(x), y = (task % bands(x) + 1) * kBandRows;
    if (y >= x.height) return;
    const float* seam = args.seam + task * x.classes * x.width;
    float* grad = args.grad + image * args.grad_stride_b + y * args.grad_stride_y;
    for (int64_t c = 0; c < x.classes; ++c) {
      float* out = grad + c * args.grad_stride_c;
      for (int64_t i = 0; i < x.width; ++i) out[i * args.grad_stride_x] += seam[c * x.width + i];
    }
  });
}

}  // namespace

CrossEntropySums cross_entropy(CrossEntropy args, Size size, bool align_corners, const Workers& workers) {
  const Kernels& k = kernels();
  const Logits& x = args.logits;
  const RowTable rows(x.height, size.height, align_corners);
  const CellTable cells(x.width, size.width, align_corners, k.lanes);
  args.rows = rows.view();
  args.cells = cells.view();
  const int64_t tasks = x.batch * bands(x);
  const Scratch seam = make_scratch(args.grad != nullptr ? tasks * x.classes * x.width : 0);
  args.seam = seam.get();
  if (args.grad != nullptr) advise_huge_pages(args.grad, x.batch * x.classes * x.height * x.width);
  std::vector<CrossEntropySums> sums(tasks);
  run_tasks(tasks, k.pixel.cross_entropy_scratch(args), workers,
            [&](int64_t task, float* scratch) { k.pixel.cross_entropy(args, task, scratch, sums[task]); });
  if (args.grad != nullptr) add_seams(args, workers);

  CrossEntropySums total;
  for (const CrossEntropySums& s : sums) {
    total.num += s.num;
    total.den += s.den;
    total.valid += s.valid;
    if (s.bad_position >= 0 && total.bad_position < 0) {
      total.bad_position = s.bad_position;
      total.bad_value = s.bad_value;
    }
  }
  return total;
}

}  // namespace u2pl_fast::cpu
