"""Measure the teacher's update toward the student: all tensors of a network."""

import dataclasses
from collections.abc import Callable

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    return {"teacher": [-own for own in x.student], "student": x.student, "momentum": 0.99}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    api.ema_update(**args)
    return tuple(args["teacher"])


DROP_INS = drop_in("ema_update", arguments, forward)
# It has no kernel: it is faster than a loop by torch's operations on many tensors, on every device.
DROP_INS["fused"] = dataclasses.replace(DROP_INS["fused"], missing=lambda _: None)
OP = Op("ema_update", DROP_INS, dtypes=("float32",), layouts=("contiguous",))
