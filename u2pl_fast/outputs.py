"""Define the output of a network that the criterion takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SegmentationOutput(NamedTuple):
    """Hold a network's output for the criterion.

    The grid h'×w' is h×w, or the grid of stride 4 if the logits are finer than that.

    Attributes:
        logits: (B, C, h, w).
        features: with a ``pointwise`` head the decoder's features (B, D_dec, h', w'); with a ``conv`` head dense
            representations (B, D, h', w'); None without L_c.
        project: with a ``pointwise`` head a function from (R, D_dec) to (R, D); None with a ``conv`` head.
        aux_logits: (B, C, h'', w''), of an auxiliary classifier, or None.

    Examples:
        >>> from u2pl_fast import SegmentationOutput
        >>> head = torch.nn.Linear(32, 8)
        >>> output = SegmentationOutput(torch.randn(2, 5, 16, 16), torch.randn(2, 32, 16, 16), project=head)
        >>> output.logits.shape, output.aux_logits
        (torch.Size([2, 5, 16, 16]), None)
    """

    logits: Tensor
    features: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None
    aux_logits: Tensor | None = None


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate batches; return a single non-empty one without a copy."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else torch.cat(tuple(parts))


@torch.no_grad()
def represent(output: SegmentationOutput, *, chunk: int = 16384) -> Tensor:
    """Compute dense representations without gradient.

    A pointwise head runs on ``chunk`` pixels at a time, so that its hidden layer never exists for all pixels.

    Args:
        output: the output of a network with features.
        chunk: the number of pixels per call of ``project``.

    Returns:
        (B, D, h', w') of a ``conv`` head; (P, D) in bank order of a ``pointwise`` head.

    Raises:
        ValueError: the output has no features.
    """
    if output.features is None:
        raise ValueError("output: has no features; call the network with representations=True")
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
