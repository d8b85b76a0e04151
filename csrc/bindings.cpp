// The only translation unit that includes torch. Every op registers itself in bindings/<op>.h.
#include "bindings/class_sample.h"
#include "bindings/class_sum.h"
#include "bindings/contrast_masks.h"
#include "bindings/gather_pixels.h"
#include "bindings/info_nce.h"
#include "bindings/masked_quantile.h"
#include "bindings/ohem_mask.h"
#include "bindings/pixel_stats.h"
#include "bindings/ring_push.h"
#include "bindings/thin_mask.h"
#include "bindings/upsampled_cross_entropy.h"
#include "cpu/levels.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled ops of u2pl_fast; call them through u2pl_fast.ops, which documents them.";
  using namespace u2pl_fast::bindings;
  bind_pixel_stats(m);
  bind_upsampled_cross_entropy(m);
  bind_ohem_mask(m);
  bind_masked_quantile(m);
  bind_contrast_masks(m);
  bind_thin_mask(m);
  bind_class_sample(m);
  bind_class_sum(m);
  bind_gather_pixels(m);
  bind_ring_push(m);
  bind_info_nce(m);
  m.def("cpu_levels", &u2pl_fast::cpu::levels);
  m.def("cpu_level", &u2pl_fast::cpu::level);
  m.def("use_cpu_level", &u2pl_fast::cpu::use_level, py::arg("level"));
}
