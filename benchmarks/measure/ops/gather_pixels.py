"""Measure reading the sampled anchors out of dense maps, and adding their gradients back."""

from collections.abc import Callable

from u2pl_fast import reference

from ..inputs import Inputs
from ..registry import BOTH, FORWARD, Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    index = reference.class_sample(x.masks.anchor_label, x.workload.num_classes, x.anchor_draw)
    return {"features": x.features.detach(), "index": index}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.gather_pixels(**args),)


OP = Op("gather_pixels", drop_in("gather_pixels", arguments, forward, leaf="features"), passes=(FORWARD, BOTH))
