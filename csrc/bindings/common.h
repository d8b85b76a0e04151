// Helpers of the bindings: threads for the ops, checks of tensors, and their descriptions.
#pragma once

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <optional>
#include <tuple>

#include "../cpu/bits.h"
#include "../cpu/contrast_ops.h"
#include "../cpu/pixel_ops.h"

namespace u2pl_fast::bindings {

using at::Tensor;

// Runs a function once on each of torch's threads (at::set_num_threads holds), at most `limit` of them.
inline void on_threads(int64_t limit, const std::function<void()>& body) {
  const int64_t threads = std::min<int64_t>(limit, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) body();
  });
}

inline void check_value(bool ok, const std::string& message) {
  if (!ok) throw py::value_error(message);
}

inline void check_device(const Tensor& x, const char* name, const at::Device& device = at::kCPU) {
  check_value(x.device() == device, std::string(name) + ": expected on " + device.str() + ", got on " + x.device().str());
}

inline void check_type(const Tensor& x, const char* name, at::ScalarType type) {
  if (x.scalar_type() == type) return;
  throw py::type_error(std::string(name) + ": expected " + c10::toString(type) + ", got " +
                       c10::toString(x.scalar_type()));
}

// Checks that a tensor is contiguous and has this type, shape and device.
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

inline int64_t class_count(const Tensor& per_class, const char* name) {
  check_value(per_class.dim() == 1 && per_class.numel() > 0 && per_class.numel() <= 32767,
              std::string(name) + ": expected (C,) with 1 <= C <= 32767");
  return per_class.numel();
}

// Checks the classes: one out of range would write outside the sums.
inline Tensor checked_anchor_label(const Tensor& anchor_label, int64_t classes) {
  const Tensor y = plain(anchor_label, "anchor_label", at::kShort, {anchor_label.numel()});
  const int16_t* label = y.const_data_ptr<int16_t>();
  int64_t most = -1;
  for (int64_t i = 0; i < y.numel(); ++i) most = std::max<int64_t>(most, label[i]);
  check_value(most < classes, "anchor_label: " + std::to_string(most) + " is not one of the classes 0.." +
                                  std::to_string(classes - 1));
  return y;
}

inline cpu::Float float_type(const at::Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case at::kFloat: return cpu::Float::f32;
    case at::kHalf: return cpu::Float::f16;
    case at::kBFloat16: return cpu::Float::bf16;
    default: throw py::type_error(std::string(name) + ": expected float32, float16 or bfloat16, got " +
                                  c10::toString(x.scalar_type()));
  }
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

// Returns the tensor if its pixels or its classes are adjacent, else a contiguous copy.
inline Tensor readable_logits(const Tensor& x) {
  check_device(x, "logits");
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

// Returns the tensor if its rows or its planes can be read in place, else a contiguous copy.
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

}  // namespace u2pl_fast::bindings
