"""Measure thinning the negatives of each class to the bank's cap."""

from collections.abc import Callable

from ..inputs import Inputs
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    return {"mask": x.masks.mask, "max_keys": x.max_keys, "draw": x.thin_draw}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.thin_mask(**args),)


OP = Op(
    "thin_mask",
    drop_in("thin_mask", arguments, forward),
    dtypes=("float32",),
    layouts=("contiguous",),
    banks=("capped",),
)
