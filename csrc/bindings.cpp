// The one translation unit that knows torch. Every group of ops adds itself from a header in bindings/.
#include "bindings/contrast_ops.h"
#include "bindings/pixel_ops.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled ops of u2pl_fast; call them through u2pl_fast.ops, which documents them.";
  u2pl_fast::bind_pixel_ops(m);
  u2pl_fast::bind_contrast_ops(m);
}
