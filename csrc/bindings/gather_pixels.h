#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline Tensor checked_index(const Tensor& index, int64_t pixels) {
  const Tensor i = plain(index, "index", at::kLong, index.sizes());
  const int64_t* value = i.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < i.numel(); ++k) {
    check_value(value[k] >= -1 && value[k] < pixels, "index: " + std::to_string(value[k]) +
                                                         " is neither a pixel (0.." + std::to_string(pixels - 1) +
                                                         ") nor -1");
  }
  return i;
}

inline Tensor gather_pixels(const Tensor& features, const Tensor& index) {
  check_device(features, "features");
  const Tensor x = readable_features(features, "features");
  const cpu::Features args = describe_features(x, "features");
  const Tensor i = checked_index(index, args.pixels());
  std::vector<int64_t> shape = i.sizes().vec();
  shape.push_back(args.dim);
  Tensor out = at::empty(shape, x.options(), at::MemoryFormat::Contiguous);
  py::gil_scoped_release release;
  cpu::gather_pixels(args, i.const_data_ptr<int64_t>(), i.numel(), out.data_ptr(), on_threads);
  return out;
}

// The gradient of features of this shape and layout.
inline Tensor gather_pixels_backward(const Tensor& grad, const Tensor& index, std::vector<int64_t> shape,
                                     bool channels_last) {
  const Tensor g = grad.contiguous();
  Tensor out = at::empty(shape, g.options(),
                         channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  const cpu::Features layout = describe_features(out, "grad");
  const Tensor i = checked_index(index, layout.pixels());
  check_value(g.numel() == i.numel() * layout.dim, "grad: expected one row per index");
  py::gil_scoped_release release;
  cpu::gather_pixels_backward(g.const_data_ptr(), i.const_data_ptr<int64_t>(), i.numel(), layout, out.data_ptr(),
                              on_threads);
  return out;
}

inline void bind_gather_pixels(py::module_& m) {
  m.def("gather_pixels", &gather_pixels, py::arg("features"), py::arg("index"));
  m.def("gather_pixels_backward", &gather_pixels_backward, py::arg("grad"), py::arg("index"),
        py::arg("shape"), py::arg("channels_last"));
}

}  // namespace u2pl_fast::bindings
