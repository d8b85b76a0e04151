"""Measure finding the anchors and negatives of every class."""

from collections.abc import Callable

from ..inputs import Inputs, mask_settings
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    label, reliable, unreliable = x.grid_maps
    maps = {"logits": x.all_logits, "label": label, "reliable": reliable, "unreliable": unreliable}
    return maps | mask_settings(x.workload)


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return tuple(api.contrast_masks(**args))


OP = Op("contrast_masks", drop_in("contrast_masks", arguments, forward))
