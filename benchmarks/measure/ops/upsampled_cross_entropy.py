"""Measure the cross-entropy of the labeled images against their full-size label maps."""

from collections.abc import Callable

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


OP = Op(
    "upsampled_cross_entropy",
    drop_in("upsampled_cross_entropy", arguments, forward, leaf="logits"),
    passes=(FORWARD, BOTH),
)
