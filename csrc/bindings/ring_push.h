#pragma once

#include "common.h"

#ifdef U2PL_FAST_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../cuda/ring_push.h"
#endif

namespace u2pl_fast::bindings {

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
  throw py::value_error("bank: u2pl_fast._C was not built for " + device.str() + "; use the CPU, or build with CUDA");
}

inline void bind_ring_push(py::module_& m) {
  m.def("ring_push", &ring_push, py::arg("bank"), py::arg("offsets"), py::arg("pushed"),
        py::arg("features"), py::arg("mask"), py::arg("gate") = py::none());
#ifdef U2PL_FAST_CUDA
  m.attr("ring_push_cuda") = m.attr("ring_push");
#endif
}

}  // namespace u2pl_fast::bindings
