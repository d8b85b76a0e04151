// contrast_masks, thin_mask, class_sample, class_sum, gather_pixels, ring_push, info_nce.
#pragma once

#include <optional>
#include <tuple>

#include "../cpu/bits.h"
#include "../cpu/contrast_ops.h"
#include "common.h"
#include "pixel_ops.h"

#ifdef U2PL_FAST_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../cuda/ring_push.h"
#endif

namespace u2pl_fast {
namespace contrast_ops {

using at::Tensor;

inline void check_device(const Tensor& x, const char* name, const at::Device& device) {
  check_value(x.device() == device, std::string(name) + ": expected on " + device.str() + ", got on " + x.device().str());
}

inline void check_type(const Tensor& x, const char* name, at::ScalarType type) {
  if (x.scalar_type() == type) return;
  throw py::type_error(std::string(name) + ": expected " + c10::toString(type) + ", got " +
                       c10::toString(x.scalar_type()));
}

// Contiguous, of this type and shape, on this device.
inline Tensor plain(const Tensor& x, const char* name, at::ScalarType type, at::IntArrayRef shape,
                    const at::Device& device = at::kCPU) {
  check_device(x, name, device);
  check_type(x, name, type);
  if (x.sizes() != shape) {
    std::ostringstream message;
    message << name << ": expected " << shape << ", got " << x.sizes();
    throw py::value_error(message.str());
  }
  return x.contiguous();
}

// The tensor itself where its rows or its planes can be read in place, a contiguous copy otherwise.
inline Tensor readable_features(const Tensor& x, const char* name) {
  check_value(x.dim() == 4 || x.dim() == 2, std::string(name) + ": expected (B, D, h, w) or (R, D), got " +
                                                std::to_string(x.dim()) + " dimensions");
  check_value(x.numel() > 0, std::string(name) + ": every dimension must be at least 1");
  return x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast) ? x : x.contiguous();
}

inline cpu::Features describe_features(const Tensor& x, const char* name) {
  const cpu::Float type = float_type(x, name);
  const void* data = x.const_data_ptr();
  const int64_t dim = x.size(1);
  if (x.dim() == 2) return {data, type, 1, dim, x.size(0), x.numel(), 1, dim};
  const int64_t plane = x.size(2) * x.size(3);
  if (x.is_contiguous(at::MemoryFormat::ChannelsLast)) return {data, type, x.size(0), dim, plane, dim * plane, 1, dim};
  return {data, type, x.size(0), dim, plane, dim * plane, plane, 1};
}

inline int64_t class_count(const Tensor& per_class, const char* name) {
  check_value(per_class.dim() == 1 && per_class.numel() > 0 && per_class.numel() <= 32767,
              std::string(name) + ": expected (C,) with 1 <= C <= 32767");
  return per_class.numel();
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_masks(const Tensor& logits, const Tensor& label,
                                                                 const Tensor& reliable, const Tensor& unreliable,
                                                                 int64_t num_labeled, int64_t low_rank,
                                                                 int64_t high_rank, double positive_threshold,
                                                                 int64_t ignore_index) {
  check_device(logits, "logits", at::kCPU);
  check_value(logits.dim() == 4, "logits: expected (B, C, h, w)");
  const Tensor x = readable_features(logits, "logits");
  const std::vector<int64_t> shape{x.size(0), x.size(2), x.size(3)};
  check_device(label, "label", at::kCPU);
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
                                pixel_ops::integer_type(y),
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

// A class out of range would write outside the sums.
inline Tensor checked_anchor_label(const Tensor& anchor_label, int64_t classes) {
  const Tensor y = plain(anchor_label, "anchor_label", at::kShort, {anchor_label.numel()});
  const int16_t* label = y.const_data_ptr<int16_t>();
  int64_t most = -1;
  for (int64_t i = 0; i < y.numel(); ++i) most = std::max<int64_t>(most, label[i]);
  check_value(most < classes, "anchor_label: " + std::to_string(most) + " is not one of the classes 0.." +
                                  std::to_string(classes - 1));
  return y;
}

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

inline Tensor class_sum(const Tensor& features, const Tensor& anchor_label, int64_t num_classes) {
  check_device(features, "features", at::kCPU);
  const Tensor x = readable_features(features, "features");
  const cpu::Features args = describe_features(x, "features");
  const Tensor y = checked_anchor_label(anchor_label, num_classes);
  check_value(y.numel() == args.pixels(), "anchor_label: expected one label per pixel of features");
  Tensor total = at::empty({num_classes, args.dim}, x.options().dtype(at::kFloat));
  py::gil_scoped_release release;
  cpu::class_sum(args, y.const_data_ptr<int16_t>(), num_classes, total.data_ptr<float>(), on_threads);
  return total;
}

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
  check_device(features, "features", at::kCPU);
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

// In place, on the CPU or on CUDA.
inline void ring_push(const Tensor& bank, const Tensor& offsets, const Tensor& pushed, const Tensor& features,
                      const Tensor& mask, const std::optional<Tensor>& gate) {
  const at::Device device = bank.device();
  check_device(features, "features", device);
  const Tensor x = readable_features(features, "features");
  const cpu::Features described = describe_features(x, "features");
  check_value(described.pixels() <= INT32_MAX, "features: expected fewer than 2^31 pixels");
  check_value(bank.dim() == 2 && bank.size(1) == described.dim && bank.is_contiguous(),
              "bank: expected (slots, D) with the D of features, contiguous");
  const int64_t classes = class_count(pushed, "pushed");
  check_device(pushed, "pushed", device);
  check_type(pushed, "pushed", at::kLong);
  check_value(pushed.is_contiguous(), "pushed: expected contiguous");
  const Tensor starts = plain(offsets, "offsets", at::kLong, {classes + 1}, device);
  const Tensor bits = plain(mask, "mask", at::kInt, {described.pixels(), cpu::words_of(classes)}, device);
  Tensor open;
  if (gate) open = plain(*gate, "gate", at::kBool, {}, device);

  const int64_t groups = cpu::ceil_div(described.pixels(), device.is_cpu() ? ring::kCpuGroup : ring::kCudaGroup);
  const Tensor rank = at::empty({classes, groups}, pushed.options().dtype(at::kInt));
  const Tensor counters = at::empty({2, classes}, pushed.options());
  ring::Push push{classes,
                  groups,
                  starts.const_data_ptr<int64_t>(),
                  pushed.data_ptr<int64_t>(),
                  gate ? open.const_data_ptr<bool>() : nullptr,
                  rank.data_ptr<int32_t>(),
                  counters.data_ptr<int64_t>(),
                  counters.data_ptr<int64_t>() + classes};
  if (device.is_cpu()) {
    check_value(starts[-1].item<int64_t>() <= bank.size(0), "offsets: the last one lies past the end of bank");
  }
  const cpu::RingPush args{described, bits.const_data_ptr<int32_t>(), bank.data_ptr(), float_type(bank, "bank"), push};
  if (device.is_cpu()) {
    py::gil_scoped_release release;
    cpu::ring_push(args, on_threads);
    return;
  }
#ifdef U2PL_FAST_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    py::gil_scoped_release release;
    const char* error = cuda::ring_push(args, c10::cuda::getCurrentCUDAStream().stream());
    if (error != nullptr) throw std::runtime_error(std::string("ring_push: ") + error);
    return;
  }
#endif
  throw py::value_error("bank: on " + device.str() + ", for which u2pl_fast._C was not built");
}

inline std::tuple<Tensor, Tensor> info_nce(const Tensor& anchors, const Tensor& weight, const Tensor& positives,
                                           const Tensor& bank, const Tensor& offsets, const Tensor& pushed,
                                           const std::optional<Tensor>& indices, const std::string& negatives,
                                           double temperature, bool need_grad) {
  check_device(anchors, "anchors", at::kCPU);
  check_value(anchors.dim() == 3 && anchors.numel() > 0, "anchors: expected (C, M, D), every dimension at least 1");
  const int64_t classes = anchors.size(0), count = anchors.size(1), dim = anchors.size(2);
  const Tensor x = anchors.contiguous();
  const Tensor w = plain(weight, "weight", at::kFloat, {classes});
  const Tensor centres = plain(positives, "positives", at::kFloat, {classes, dim});
  const Tensor keys = plain(bank, "bank", bank.scalar_type(), {bank.size(0), dim});
  const Tensor starts = plain(offsets, "offsets", at::kLong, {classes + 1});
  const Tensor pushes = plain(pushed, "pushed", at::kLong, {classes});
  const Tensor fill = at::minimum(pushes, starts.diff());
  const int64_t* filled = fill.const_data_ptr<int64_t>();
  check_value(starts[-1].item<int64_t>() <= bank.size(0), "offsets: the last one lies past the end of bank");

  cpu::InfoNce args{};
  Tensor slots;
  if (negatives == "full") {
    args.mode = cpu::Negatives::full;
  } else {
    const bool own = negatives == "per_anchor";
    check_value(indices.has_value(), "indices: needed unless negatives is 'full'");
    args.negatives = indices->size(-1);
    args.mode = own ? cpu::Negatives::per_anchor : cpu::Negatives::shared;
    slots = own ? plain(*indices, "indices", at::kLong, {classes, count, args.negatives})
                : plain(*indices, "indices", at::kLong, {classes, args.negatives});
    args.indices = slots.const_data_ptr<int64_t>();
    const int64_t per_class = slots.numel() / classes;
    for (int64_t c = 0; c < classes; ++c) {
      if (w.const_data_ptr<float>()[c] == 0) continue;
      int64_t least = 0, most = -1;
      for (int64_t i = c * per_class; i < (c + 1) * per_class; ++i) {
        least = std::min(least, args.indices[i]);
        most = std::max(most, args.indices[i]);
      }
      check_value(least >= 0 && most < filled[c], "indices: slot " + std::to_string(least < 0 ? least : most) +
                                                      " of class " + std::to_string(c) + ", which holds " +
                                                      std::to_string(filled[c]) + " keys");
    }
  }
  const auto options = x.options().dtype(at::kFloat);
  const Tensor found = at::empty({2, classes, count}, options);
  Tensor grad = need_grad ? at::empty(x.sizes(), options) : at::empty({0}, options);
  args.anchors = x.const_data_ptr();
  args.anchor_type = float_type(x, "anchors");
  args.weight = w.const_data_ptr<float>();
  args.positives = centres.const_data_ptr<float>();
  args.bank = keys.const_data_ptr();
  args.bank_type = float_type(keys, "bank");
  args.offsets = starts.const_data_ptr<int64_t>();
  args.fill = filled;
  args.classes = classes;
  args.count = count;
  args.dim = dim;
  args.temperature = float(temperature);
  args.excess = found.data_ptr<float>();
  args.total = found.data_ptr<float>() + classes * count;
  args.grad = need_grad ? grad.data_ptr<float>() : nullptr;
  double loss;
  {
    py::gil_scoped_release release;
    loss = cpu::info_nce(args, on_threads);
  }
  return {at::scalar_tensor(loss, options), grad};
}

}  // namespace contrast_ops

inline void bind_contrast_ops(py::module_& m) {
  m.def("contrast_masks", &contrast_ops::contrast_masks, py::arg("logits"), py::arg("label"), py::arg("reliable"),
        py::arg("unreliable"), py::arg("num_labeled"), py::arg("low_rank"), py::arg("high_rank"),
        py::arg("positive_threshold"), py::arg("ignore_index"));
  m.def("thin_mask", &contrast_ops::thin_mask, py::arg("mask"), py::arg("max_keys"), py::arg("draw"));
  m.def("class_sample", &contrast_ops::class_sample, py::arg("anchor_label"), py::arg("num_classes"), py::arg("draws"));
  m.def("class_sum", &contrast_ops::class_sum, py::arg("features"), py::arg("anchor_label"), py::arg("num_classes"));
  m.def("gather_pixels", &contrast_ops::gather_pixels, py::arg("features"), py::arg("index"));
  m.def("gather_pixels_backward", &contrast_ops::gather_pixels_backward, py::arg("grad"), py::arg("index"),
        py::arg("shape"), py::arg("channels_last"));
  m.def("ring_push", &contrast_ops::ring_push, py::arg("bank"), py::arg("offsets"), py::arg("pushed"),
        py::arg("features"), py::arg("mask"), py::arg("gate") = py::none());
#ifdef U2PL_FAST_CUDA
  m.attr("ring_push_cuda") = m.attr("ring_push");
#endif
  m.def("info_nce", &contrast_ops::info_nce, py::arg("anchors"), py::arg("weight"), py::arg("positives"),
        py::arg("bank"), py::arg("offsets"), py::arg("pushed"), py::arg("indices"), py::arg("negatives"),
        py::arg("temperature"), py::arg("need_grad"));
}

}  // namespace u2pl_fast
