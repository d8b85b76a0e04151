#include <cmath>

#include "contrast_ops.h"
#include "levels.h"

namespace u2pl_fast::cpu {

double info_nce(const InfoNce& args, const Workers& workers) {
  const ContrastKernels& k = kernels().contrast;
  const int64_t tasks = args.classes * ceil_div(args.count, kAnchorBlock);
  run_tasks(tasks, k.info_nce_scratch(args), workers,
            [&](int64_t task, float* scratch) { k.info_nce(args, task, scratch); });
  double loss = 0;
  for (int64_t c = 0; c < args.classes; ++c) {
    if (args.weight[c] == 0) continue;
    double sum = 0;
    for (int64_t i = c * args.count; i < (c + 1) * args.count; ++i) {
      sum += double(args.excess[i]) + std::log(double(args.total[i]));
    }
    loss += double(args.weight[c]) * sum / double(args.count);
  }
  return loss;
}

}  // namespace u2pl_fast::cpu
