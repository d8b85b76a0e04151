"""Measure the threshold γ_t: a quantile of the valid pixels' entropies."""

from collections.abc import Callable

import numpy as np
import torch

from ..inputs import UNRELIABLE_SHARE, Inputs
from ..registry import Arguments, Op, Outputs, drop_in


def arguments(x: Inputs) -> Arguments:
    return {"x": x.statistics.entropy, "mask": x.valid, "q": 1 - UNRELIABLE_SHARE}


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.masked_quantile(**args),)


def plain(args: Arguments) -> Outputs:
    values = args["x"][args["mask"]]
    found = np.percentile(values.cpu().numpy(), 100 * args["q"])
    return (torch.as_tensor(found, dtype=torch.float32, device=values.device),)


OP = Op(
    "masked_quantile",
    drop_in("masked_quantile", arguments, forward, plain=plain),
    dtypes=("float32",),
    layouts=("contiguous",),
)
