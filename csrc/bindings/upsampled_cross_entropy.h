#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

// The inputs that the loss and the OHEM mask share; it keeps them alive while `args` is in use.
struct TargetInputs {
  Tensor logits, target;
  cpu::CrossEntropy args{};

  TargetInputs(const Tensor& logits_in, const Tensor& target_in, int64_t ignore_index)
      : logits(readable_logits(logits_in)), target(target_in.contiguous()) {
    check_device(target, "target");
    check_value(target.dim() == 3 && target.size(0) == logits.size(0) && target.numel() > 0,
                "target: expected (B, H, W) with the batch of logits and at least one pixel");
    args.logits = describe_logits(logits);
    args.target = target.const_data_ptr();
    args.target_type = integer_type(target);
    args.ignore_index = ignore_index;
    args.weight_sum = double(logits.size(1));
  }

  cpu::Size size() const { return {target.size(1), target.size(2)}; }

  // Throws if a label is neither a class nor ignored.
  void check_labels(const cpu::CrossEntropySums& sums) const {
    if (sums.bad_position < 0) return;
    const int64_t plane = target.size(1) * target.size(2), at = sums.bad_position % plane;
    throw py::value_error("target: " + std::to_string(sums.bad_value) + " at (" +
                          std::to_string(sums.bad_position / plane) + ", " + std::to_string(at / target.size(2)) +
                          ", " + std::to_string(at % target.size(2)) + ") is neither a class (0.." +
                          std::to_string(logits.size(1) - 1) + ") nor ignore_index (" +
                          std::to_string(args.ignore_index) + ")");
  }
};

inline std::tuple<Tensor, Tensor, Tensor> upsampled_cross_entropy(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing, bool align_corners,
    bool need_grad) {
  TargetInputs in(logits, target, ignore_index);
  check_value(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing: expected a number in [0, 1]");
  in.args.label_smoothing = label_smoothing;
  Tensor class_weight, per_pixel, grad;
  if (weight) {
    check_value(weight->dim() == 1 && weight->size(0) == logits.size(1), "weight: expected shape (C,)");
    check_device(*weight, "weight");
    class_weight = weight->to(at::kFloat).contiguous();
    in.args.weight = class_weight.const_data_ptr<float>();
    in.args.weight_sum = class_weight.sum(at::kDouble).item<double>();
  }
  if (pixel_weight) {
    check_value(pixel_weight->sizes() == target.sizes(), "pixel_weight: expected the shape of target");
    check_device(*pixel_weight, "pixel_weight");
    per_pixel = pixel_weight->to(at::kFloat).contiguous();
    in.args.pixel_weight = per_pixel.const_data_ptr<float>();
  }
  const auto options = logits.options().dtype(at::kFloat);
  if (need_grad) {
    grad = at::empty_like(in.logits, options);  // keeps the layout
    in.args.grad = grad.data_ptr<float>();
    in.args.grad_stride_b = grad.stride(0);
    in.args.grad_stride_c = grad.stride(1);
    in.args.grad_stride_y = grad.stride(2);
    in.args.grad_stride_x = grad.stride(3);
  } else {
    grad = at::empty({0}, options);
  }
  cpu::CrossEntropySums sums;
  {
    py::gil_scoped_release release;
    sums = cpu::cross_entropy(in.args, in.size(), align_corners, on_threads);
  }
  in.check_labels(sums);
  return {at::scalar_tensor(sums.num, options), at::scalar_tensor(sums.den, options), grad};
}

inline void bind_upsampled_cross_entropy(py::module_& m) {
  m.def("upsampled_cross_entropy", &upsampled_cross_entropy, py::arg("logits"), py::arg("target"),
        py::arg("weight"), py::arg("pixel_weight"), py::arg("ignore_index"), py::arg("label_smoothing"),
        py::arg("align_corners"), py::arg("need_grad"));
}

}  // namespace u2pl_fast::bindings
