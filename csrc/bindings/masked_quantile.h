#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline Tensor masked_quantile(const Tensor& x, const Tensor& mask, double q) {
  check_device(x, "x");
  check_device(mask, "mask");
  check_value(mask.sizes() == x.sizes(), "mask: expected the shape of x");
  check_value(!(q < 0 || q > 1), "q: expected a number in [0, 1]");
  const Tensor values = x.to(at::kFloat).contiguous(), selected = mask.to(at::kBool).contiguous();
  float result;
  {
    py::gil_scoped_release release;
    result = cpu::masked_quantile(values.const_data_ptr<float>(),
                                  reinterpret_cast<const uint8_t*>(selected.const_data_ptr<bool>()), values.numel(), q,
                                  on_threads);
  }
  return at::scalar_tensor(result, x.options().dtype(at::kFloat));
}

inline void bind_masked_quantile(py::module_& m) {
  m.def("masked_quantile", &masked_quantile, py::arg("x"), py::arg("mask"), py::arg("q"));
}

}  // namespace u2pl_fast::bindings
