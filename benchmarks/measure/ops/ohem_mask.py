"""Measure the choice of the labeled pixels that are hard enough to keep."""

from collections.abc import Callable

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in
from . import upsampled_cross_entropy

THRESHOLD = 0.7


def arguments(x: Inputs) -> Arguments:
    min_kept = x.labels.numel() // 16
    return upsampled_cross_entropy.arguments(x) | {"threshold": THRESHOLD, "min_kept": min_kept}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.ohem_mask(**args),)


def plain(args: Arguments) -> Outputs:
    labels, valid = args["target"].long(), args["target"] != args["ignore_index"]
    full = upsampled_cross_entropy.upsampled(args["logits"], labels.shape[-2:], args["align_corners"])
    p = full.float().softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
    return (valid & (p <= p[valid].kthvalue(args["min_kept"]).values.clamp(min=args["threshold"])),)


OP = Op("ohem_mask", drop_in("ohem_mask", arguments, forward, plain=plain))
