#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline Tensor class_sample(const Tensor& anchor_label, int64_t num_classes, const Tensor& draws) {
  const Tensor y = checked_anchor_label(anchor_label, num_classes);
  const int64_t count = draws.dim() == 2 ? draws.size(1) : 0;
  const Tensor d = plain(draws, "draws", at::kLong, {num_classes, count});
  Tensor index = at::empty_like(d);
  py::gil_scoped_release release;
  cpu::class_sample(y.const_data_ptr<int16_t>(), y.numel(), num_classes, d.const_data_ptr<int64_t>(), count,
                    index.data_ptr<int64_t>(), on_threads);
  return index;
}

inline void bind_class_sample(py::module_& m) {
  m.def("class_sample", &class_sample, py::arg("anchor_label"), py::arg("num_classes"), py::arg("draws"));
}

}  // namespace u2pl_fast::bindings
