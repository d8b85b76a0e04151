"""Measure label, confidence and entropy of the pixels of the unlabeled images."""

from collections.abc import Callable

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    w = x.workload
    return {"logits": x.unlabeled_logits, "size": w.crop, "align_corners": w.align_corners}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return tuple(api.pixel_stats(args["logits"], args["size"], align_corners=args["align_corners"]))


OP = Op("pixel_stats", drop_in("pixel_stats", arguments, forward))
