// pixel_stats, upsampled_cross_entropy, ohem_mask, masked_quantile on CPU tensors.
#pragma once

#include <optional>
#include <tuple>

#include "common.h"

namespace u2pl_fast {
namespace pixel_ops {

using at::Tensor;

inline void check_cpu(const Tensor& x, const char* name) {
  check_value(x.device().is_cpu(), std::string(name) + ": expected a CPU tensor, got " + x.device().str());
}

// The tensor itself where its pixels or its classes lie side by side, a contiguous copy otherwise.
inline Tensor readable_logits(const Tensor& x) {
  check_cpu(x, "logits");
  check_value(x.dim() == 4, "logits: expected (B, C, h, w), got " + std::to_string(x.dim()) + " dimensions");
  check_value(x.numel() > 0, "logits: every dimension must be at least 1");
  const bool side_by_side = x.stride(3) == 1 || x.size(3) == 1 || x.stride(1) == 1 || x.size(1) == 1;
  return side_by_side ? x : x.contiguous();
}

inline cpu::Logits describe_logits(const Tensor& x) {
  cpu::Logits d{x.const_data_ptr(), float_type(x, "logits"), x.size(0), x.size(1), x.size(2), x.size(3),
                x.stride(0),        x.stride(1),             x.stride(2), x.stride(3)};
  if (d.stride_x != 1 && d.stride_c != 1) {  // a dimension of size 1 has an arbitrary stride
    (d.width == 1 ? d.stride_x : d.stride_c) = 1;
  }
  return d;
}

inline cpu::Integer integer_type(const Tensor& target) {
  switch (target.scalar_type()) {
    case at::kBool:
    case at::kByte: return cpu::Integer::u8;
    case at::kChar: return cpu::Integer::i8;
    case at::kShort: return cpu::Integer::i16;
    case at::kInt: return cpu::Integer::i32;
    case at::kLong: return cpu::Integer::i64;
    default: throw py::type_error(std::string("target: expected an integer dtype, got ") +
                                  c10::toString(target.scalar_type()));
  }
}

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

// The inputs that the loss and the OHEM mask share, kept alive as long as `args` is read.
struct TargetInputs {
  Tensor logits, target;
  cpu::CrossEntropy args{};

  TargetInputs(const Tensor& logits_in, const Tensor& target_in, int64_t ignore_index)
      : logits(readable_logits(logits_in)), target(target_in.contiguous()) {
    check_cpu(target, "target");
    check_value(target.dim() == 3 && target.size(0) == logits.size(0) && target.numel() > 0,
                "target: expected (B, H, W) with the batch of logits and at least one pixel");
    args.logits = describe_logits(logits);
    args.target = target.const_data_ptr();
    args.target_type = integer_type(target);
    args.ignore_index = ignore_index;
    args.weight_sum = double(logits.size(1));
  }

  cpu::CrossEntropySums run(bool align_corners) const {
    cpu::CrossEntropySums sums;
    {
      py::gil_scoped_release release;
      sums = cpu::cross_entropy(args, {target.size(1), target.size(2)}, align_corners, on_threads);
    }
    if (sums.bad_position >= 0) {
      const int64_t plane = target.size(1) * target.size(2), at = sums.bad_position % plane;
      throw py::value_error("target: " + std::to_string(sums.bad_value) + " at (" +
                            std::to_string(sums.bad_position / plane) + ", " + std::to_string(at / target.size(2)) +
                            ", " + std::to_string(at % target.size(2)) + ") is neither a class (0.." +
                            std::to_string(logits.size(1) - 1) + ") nor ignore_index (" +
                            std::to_string(args.ignore_index) + ")");
    }
    return sums;
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
    check_cpu(*weight, "weight");
    class_weight = weight->to(at::kFloat).contiguous();
    in.args.weight = class_weight.const_data_ptr<float>();
    in.args.weight_sum = class_weight.sum(at::kDouble).item<double>();
  }
  if (pixel_weight) {
    check_value(pixel_weight->sizes() == target.sizes(), "pixel_weight: expected the shape of target");
    check_cpu(*pixel_weight, "pixel_weight");
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
  const cpu::CrossEntropySums sums = in.run(align_corners);
  return {at::scalar_tensor(sums.num, options), at::scalar_tensor(sums.den, options), grad};
}

inline Tensor ohem_mask(const Tensor& logits, const Tensor& target, double threshold, int64_t min_kept,
                        int64_t ignore_index, bool align_corners) {
  TargetInputs in(logits, target, ignore_index);
  check_value(min_kept >= 0, "min_kept: expected 0 or more");
  Tensor probability = at::empty(target.sizes(), logits.options().dtype(at::kFloat));
  in.args.probability = probability.data_ptr<float>();
  const int64_t valid = in.run(align_corners).valid;
  double bound = threshold;
  const int64_t kept = std::min(min_kept, valid);
  if (kept > 0) {
    py::gil_scoped_release release;
    const float* p = probability.const_data_ptr<float>();  // ignored pixels hold 2 and sort after every other
    bound = std::max<double>(bound, cpu::kth_smallest(p, probability.numel(), kept - 1, on_threads));
  }
  return probability.le(std::min(bound, 1.5));
}

inline Tensor masked_quantile(const Tensor& x, const Tensor& mask, double q) {
  check_cpu(x, "x");
  check_cpu(mask, "mask");
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

}  // namespace pixel_ops

inline void bind_pixel_ops(py::module_& m) {
  m.def("pixel_stats", &pixel_ops::pixel_stats, py::arg("logits"), py::arg("height"), py::arg("width"),
        py::arg("align_corners"));
  m.def("upsampled_cross_entropy", &pixel_ops::upsampled_cross_entropy, py::arg("logits"), py::arg("target"),
        py::arg("weight"), py::arg("pixel_weight"), py::arg("ignore_index"), py::arg("label_smoothing"),
        py::arg("align_corners"), py::arg("need_grad"));
  m.def("ohem_mask", &pixel_ops::ohem_mask, py::arg("logits"), py::arg("target"), py::arg("threshold"),
        py::arg("min_kept"), py::arg("ignore_index"), py::arg("align_corners"));
  m.def("masked_quantile", &pixel_ops::masked_quantile, py::arg("x"), py::arg("mask"), py::arg("q"));
  m.def("cpu_levels", &cpu::levels);
  m.def("cpu_level", &cpu::level);
  m.def("use_cpu_level", &cpu::use_level, py::arg("level"));
}

}  // namespace u2pl_fast
