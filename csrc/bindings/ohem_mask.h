#pragma once

#include "common.h"
#include "upsampled_cross_entropy.h"  // both begin with the same pass over the pixels

namespace u2pl_fast::bindings {

inline Tensor ohem_mask(const Tensor& logits, const Tensor& target, double threshold, int64_t min_kept,
                        int64_t ignore_index, bool align_corners) {
  TargetInputs in(logits, target, ignore_index);
  check_value(min_kept >= 0, "min_kept: expected 0 or more");
  Tensor keep = at::empty(target.sizes(), logits.options().dtype(at::kBool));
  cpu::CrossEntropySums sums;
  {
    py::gil_scoped_release release;
    sums = cpu::ohem_mask(in.args, in.size(), align_corners, threshold, min_kept, keep.data_ptr<bool>(), on_threads);
  }
  in.check_labels(sums);
  return keep;
}

inline void bind_ohem_mask(py::module_& m) {
  m.def("ohem_mask", &ohem_mask, py::arg("logits"), py::arg("target"), py::arg("threshold"),
        py::arg("min_kept"), py::arg("ignore_index"), py::arg("align_corners"));
}

}  // namespace u2pl_fast::bindings
