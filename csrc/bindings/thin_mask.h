#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline Tensor thin_mask(const Tensor& mask, const Tensor& max_keys, const Tensor& draw) {
  const int64_t classes = class_count(max_keys, "max_keys");
  const Tensor m = plain(mask, "mask", at::kInt, {mask.size(0), cpu::words_of(classes)});
  const Tensor caps = plain(max_keys, "max_keys", at::kLong, {classes}), draws = plain(draw, "draw", at::kLong, {classes});
  Tensor out = at::empty_like(m);
  py::gil_scoped_release release;
  cpu::thin_mask(m.const_data_ptr<int32_t>(), m.size(0), classes, caps.const_data_ptr<int64_t>(),
                 draws.const_data_ptr<int64_t>(), out.data_ptr<int32_t>(), on_threads);
  return out;
}

inline void bind_thin_mask(py::module_& m) {
  m.def("thin_mask", &thin_mask, py::arg("mask"), py::arg("max_keys"), py::arg("draw"));
}

}  // namespace u2pl_fast::bindings
