"""Measure the sums of the representations of each class's anchors, from which the class centers are made."""

from collections.abc import Callable

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    return {"features": x.features, "anchor_label": x.masks.anchor_label, "num_classes": x.workload.num_classes}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.class_sum(**args),)


OP = Op("class_sum", drop_in("class_sum", arguments, forward))
