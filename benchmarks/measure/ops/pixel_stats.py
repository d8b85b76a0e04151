"""Measure label, confidence and entropy of the pixels of the unlabeled images."""

from collections.abc import Callable

from u2pl_fast.reference import label_dtype

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in
from .upsampled_cross_entropy import upsampled


def arguments(x: Inputs) -> Arguments:
    w = x.workload
    return {"logits": x.unlabeled_logits, "size": w.crop, "align_corners": w.align_corners}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return tuple(api.pixel_stats(args["logits"], args["size"], align_corners=args["align_corners"]))


def plain(args: Arguments) -> Outputs:
    p = upsampled(args["logits"], args["size"], args["align_corners"]).float().softmax(1)
    confidence, label = p.max(1)
    return label.to(label_dtype(p.shape[1])), confidence, -(p * (p + 1e-10).log()).sum(1)


OP = Op("pixel_stats", drop_in("pixel_stats", arguments, forward, plain=plain))
