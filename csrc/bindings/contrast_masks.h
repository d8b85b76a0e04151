#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_masks(const Tensor& logits, const Tensor& label,
                                                                 const Tensor& reliable, const Tensor& unreliable,
                                                                 int64_t num_labeled, int64_t low_rank,
                                                                 int64_t high_rank, double positive_threshold,
                                                                 int64_t ignore_index) {
  check_device(logits, "logits");
  check_value(logits.dim() == 4, "logits: expected (B, C, h, w)");
  const Tensor x = readable_features(logits, "logits");
  const std::vector<int64_t> shape{x.size(0), x.size(2), x.size(3)};
  check_device(label, "label");
  check_value(label.sizes() == shape, "label: expected (B, h, w) of the logits");
  const Tensor y = label.contiguous();
  const Tensor yes = plain(reliable, "reliable", at::kBool, shape), no = plain(unreliable, "unreliable", at::kBool, shape);
  const int64_t classes = x.size(1), pixels = y.numel();
  check_value(classes <= 32767, "logits: expected at most 32767 classes");
  Tensor mask = at::empty({pixels, cpu::words_of(classes)}, x.options().dtype(at::kInt));
  Tensor anchor_label = at::empty({pixels}, x.options().dtype(at::kShort));
  Tensor keys = at::empty({classes}, x.options().dtype(at::kLong)), anchors = at::empty_like(keys);
  const cpu::ContrastMasks args{describe_features(x, "logits"),
                                y.const_data_ptr(),
                                integer_type(y),
                                reinterpret_cast<const uint8_t*>(yes.const_data_ptr<bool>()),
                                reinterpret_cast<const uint8_t*>(no.const_data_ptr<bool>()),
                                num_labeled,
                                low_rank,
                                high_rank,
                                ignore_index,
                                float(positive_threshold),
                                mask.data_ptr<int32_t>(),
                                anchor_label.data_ptr<int16_t>()};
  cpu::ContrastCounts found{};
  {
    py::gil_scoped_release release;
    found = cpu::contrast_masks(args, keys.data_ptr<int64_t>(), anchors.data_ptr<int64_t>(), on_threads);
  }
  check_value(found.bad_pixel < 0, "label: " + std::to_string(found.bad_label) + " at pixel " +
                                       std::to_string(found.bad_pixel) + " is neither a class (0.." +
                                       std::to_string(classes - 1) + ") nor ignore_index (" +
                                       std::to_string(ignore_index) + ")");
  return {mask, anchor_label, keys, anchors};
}

inline void bind_contrast_masks(py::module_& m) {
  m.def("contrast_masks", &contrast_masks, py::arg("logits"), py::arg("label"), py::arg("reliable"),
        py::arg("unreliable"), py::arg("num_labeled"), py::arg("low_rank"), py::arg("high_rank"),
        py::arg("positive_threshold"), py::arg("ignore_index"));
}

}  // namespace u2pl_fast::bindings
