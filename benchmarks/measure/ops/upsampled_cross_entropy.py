"""Measure the cross-entropy of the labeled images against their full-size label maps."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from ..inputs import Inputs
from ..registry import BOTH, FORWARD, Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    w = x.workload
    return {
        "logits": x.labeled_logits.detach(),
        "target": x.labels,
        "ignore_index": w.ignore_index,
        "align_corners": w.align_corners,
    }


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.upsampled_cross_entropy(**args),)


def upsampled(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def plain(args: Arguments) -> Outputs:
    full = upsampled(args["logits"], args["target"].shape[-2:], args["align_corners"])
    return (F.cross_entropy(full.float(), args["target"].long(), ignore_index=args["ignore_index"]),)


OP = Op(
    "upsampled_cross_entropy",
    drop_in("upsampled_cross_entropy", arguments, forward, leaf="logits", plain=plain),
    passes=(FORWARD, BOTH),
)
