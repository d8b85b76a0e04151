#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline std::tuple<Tensor, Tensor, Tensor> pixel_stats(const Tensor& logits, int64_t height, int64_t width,
                                                      bool align_corners) {
  const Tensor x = readable_logits(logits);
  check_value(height > 0 && width > 0, "size: expected two positive integers");
  const bool wide = x.size(1) > 255;
  const std::vector<int64_t> shape{x.size(0), height, width};
  Tensor label = at::empty(shape, x.options().dtype(wide ? at::kShort : at::kByte));
  Tensor confidence = at::empty(shape, x.options().dtype(at::kFloat));
  Tensor entropy = at::empty(shape, x.options().dtype(at::kFloat));
  cpu::PixelStats args{};
  args.logits = describe_logits(x);
  args.label = label.data_ptr();
  args.label_is_wide = wide;
  args.confidence = confidence.data_ptr<float>();
  args.entropy = entropy.data_ptr<float>();
  py::gil_scoped_release release;
  cpu::pixel_stats(args, {height, width}, align_corners, on_threads);
  return {label, confidence, entropy};
}

inline void bind_pixel_stats(py::module_& m) {
  m.def("pixel_stats", &pixel_stats, py::arg("logits"), py::arg("height"), py::arg("width"),
        py::arg("align_corners"));
}

}  // namespace u2pl_fast::bindings
