#pragma once

#include "common.h"

namespace u2pl_fast::bindings {

inline std::tuple<Tensor, Tensor> info_nce(const Tensor& anchors, const Tensor& weight, const Tensor& positives,
                                           const Tensor& bank, const Tensor& offsets, const Tensor& pushed,
                                           const std::optional<Tensor>& indices, const std::string& negatives,
                                           double temperature, bool need_grad) {
  check_device(anchors, "anchors");
  check_value(anchors.dim() == 3 && anchors.numel() > 0, "anchors: expected (C, M, D), every dimension at least 1");
  const int64_t classes = anchors.size(0), count = anchors.size(1), dim = anchors.size(2);
  const Tensor x = anchors.contiguous();
  const Tensor w = plain(weight, "weight", at::kFloat, {classes});
  const Tensor centers = plain(positives, "positives", at::kFloat, {classes, dim});
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
  args.positives = centers.const_data_ptr<float>();
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

inline void bind_info_nce(py::module_& m) {
  m.def("info_nce", &info_nce, py::arg("anchors"), py::arg("weight"), py::arg("positives"),
        py::arg("bank"), py::arg("offsets"), py::arg("pushed"), py::arg("indices"), py::arg("negatives"),
        py::arg("temperature"), py::arg("need_grad"));
}

}  // namespace u2pl_fast::bindings
