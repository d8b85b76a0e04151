#include "grid.h"
#include "levels.h"
#include "pixel_ops.h"

namespace u2pl_fast::cpu {

void pixel_stats(PixelStats args, Size size, bool align_corners, const Workers& workers) {
  const Kernels& k = kernels();
  const RowTable rows(args.logits.height, size.height, align_corners);
  const ColumnTable columns(args.logits.width, size.width, align_corners, k.lanes);
  args.rows = rows.view();
  args.columns = columns.view();
  run_tasks(args.logits.batch * bands(args.logits), k.pixel.pixel_stats_scratch(args), workers,
            [&](int64_t task, float* scratch) { k.pixel.pixel_stats(args, task, scratch); });
}

}  // namespace u2pl_fast::cpu
