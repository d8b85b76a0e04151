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


OP = Op("ohem_mask", drop_in("ohem_mask", arguments, forward))
