"""Measure appending a step's negatives to the rings."""

from collections.abc import Callable

import torch

from u2pl_fast import reference

from ..inputs import Inputs
from ..registry import BANKS, Arguments, Op, Outputs, drop_in
from ..roofline import Counts


def arguments(x: Inputs) -> Arguments:
    bank, pushed = x.new_bank()
    return {"bank": bank, "offsets": x.offsets, "pushed": pushed, "features": x.features, "mask": x.push_mask}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    api.ring_push(**args)
    return args["bank"], args["pushed"]


def counts(x: Inputs) -> Counts:
    """Count the newest K_c keys of each class as written, and a pixel as read once for all its classes."""
    w = x.workload
    mask = reference.unpack_mask(x.push_mask, w.num_classes)
    sizes = torch.tensor(w.capacities, device=mask.device)
    from_the_end = mask.flip(0).cumsum(0).flip(0)
    kept = mask & (from_the_end <= sizes)
    return Counts(int(kept.sum()), int(kept.any(1).sum()), int((x.masks.anchors > 0).sum()))


OP = Op("ring_push", drop_in("ring_push", arguments, forward), banks=BANKS, counts=counts)
