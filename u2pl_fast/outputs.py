"""What passes from a network to the criterion."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SegmentationOutput(NamedTuple):
    """What the criterion takes of a network.

    logits (B, C, h, w). With a ``pointwise`` head: features are the decoder's (B, D_dec, h', w') and ``project`` maps
    (R, D_dec) → (R, D). With a ``conv`` head: features are dense representations (B, D, h', w'), ``project`` is None.
    h'×w' is h×w, or the grid of stride 4 where the logits are finer.
    """

    logits: Tensor
    features: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None
    aux_logits: Tensor | None = None


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """The batches one after another; a single one that is not empty as it is, without a copy."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else torch.cat(tuple(parts))


@torch.no_grad()
def represent(output: SegmentationOutput, *, chunk: int = 16384) -> Tensor:
    """Dense representations without gradient: (B, D, h', w') of a ``conv`` head, (P, D) in bank order of ``pointwise``.

    The pointwise head runs over ``chunk`` pixels at a time, so that its hidden layer never exists for all of them.
    """
    if output.features is None:
        raise ValueError("output: it has no features; run the network with representations=True")
    features = output.features.detach()
    if output.project is None:
        return features
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    first = output.project(rows[:chunk])
    if len(rows) <= chunk:
        return first
    dense = first.new_empty(len(rows), first.shape[1])
    dense[:chunk] = first
    for start in range(chunk, len(rows), chunk):
        dense[start : start + chunk] = output.project(rows[start : start + chunk])
    return dense
