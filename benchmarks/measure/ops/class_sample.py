"""Measure sampling M anchors of each class."""

from collections.abc import Callable

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    return {"anchor_label": x.masks.anchor_label, "num_classes": x.workload.num_classes, "draws": x.anchor_draw}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.class_sample(**args),)


OP = Op("class_sample", drop_in("class_sample", arguments, forward), dtypes=("float32",), layouts=("contiguous",))
