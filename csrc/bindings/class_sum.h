#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline Tensor class_sum(const Tensor& features, const Tensor& anchor_label, int64_t num_classes) {
  check_device(features, "features");
  const Tensor x = readable_features(features, "features");
  const cpu::Features args = describe_features(x, "features");
  const Tensor y = checked_anchor_label(anchor_label, num_classes);
  check_value(y.numel() == args.pixels(), "anchor_label: expected one label per pixel of features");
  Tensor total = at::empty({num_classes, args.dim}, x.options().dtype(at::kFloat));
  py::gil_scoped_release release;
  cpu::class_sum(args, y.const_data_ptr<int16_t>(), num_classes, total.data_ptr<float>(), on_threads);
  return total;
}

inline void bind_class_sum(py::module_& m) {
  m.def("class_sum", &class_sum, py::arg("features"), py::arg("anchor_label"), py::arg("num_classes"));
}

}  // namespace u2pl_fast::bindings
