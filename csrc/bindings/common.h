// What every group of bindings needs: tensors checked and described, threads lent to the ops.
#pragma once

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include "../cpu/ops.h"

namespace u2pl_fast {

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

inline cpu::Float float_type(const at::Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case at::kFloat: return cpu::Float::f32;
    case at::kHalf: return cpu::Float::f16;
    case at::kBFloat16: return cpu::Float::bf16;
    default: throw py::type_error(std::string(name) + ": expected float32, float16 or bfloat16, got " +
                                  c10::toString(x.scalar_type()));
  }
}

}  // namespace u2pl_fast
