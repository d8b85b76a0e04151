"""Draw the random numbers of the sampling ops.

The ops take them as arguments, so that every backend can use the same ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .info_nce import NEGATIVES


class ContrastiveDraws(NamedTuple):
    """Hold the random numbers of one ``contrastive_loss``: int64, uniform in [0, 2³²).

    Attributes:
        thinning: (C), selects the keys that the bank takes.
        anchors: (C, M), selects the anchors.
        negatives: (C, M, N) for ``per_anchor``, (C, N) for ``shared``, None for ``full``.
    """

    thinning: Tensor
    anchors: Tensor
    negatives: Tensor | None = None


def draw32(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw integers uniform in [0, 2³²), on the generator's device.

    Args:
        shape: the shape of the result.
        generator: a ``torch.Generator``; the same state gives the same numbers.

    Returns:
        int64, of that shape.

    Examples:
        >>> draws = ops.draw32((19, 256), torch.Generator().manual_seed(0))
        >>> draws.shape, draws.dtype
        (torch.Size([19, 256]), torch.int64)
    """
    return torch.randint(0, 1 << 32, shape, generator=generator, device=generator.device, dtype=torch.int64)


def contrastive_draws(
    num_classes: int,
    generator: torch.Generator,
    *,
    num_anchors: int = 256,
    num_negatives: int = 50,
    negatives: str = "per_anchor",
) -> ContrastiveDraws:
    """Draw the random numbers of one ``contrastive_loss``, on the generator's device.

    Args:
        num_classes: C.
        generator: a ``torch.Generator`` on the device of the logits.
        num_anchors: M.
        num_negatives: N.
        negatives: ``per_anchor``, ``shared`` or ``full``, as in ``info_nce``.

    Returns:
        ``ContrastiveDraws(thinning, anchors, negatives)``.

    Raises:
        ValueError: ``negatives`` is unknown.

    Examples:
        >>> draws = ops.contrastive_draws(19, torch.Generator(), num_anchors=256, num_negatives=50)
        >>> draws.thinning.shape, draws.anchors.shape, draws.negatives.shape
        (torch.Size([19]), torch.Size([19, 256]), torch.Size([19, 256, 50]))
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, got {negatives!r}")
    thinning, anchors = draw32((num_classes,), generator), draw32((num_classes, num_anchors), generator)
    if negatives == "full":
        return ContrastiveDraws(thinning, anchors)
    lead = (num_classes, num_anchors) if negatives == "per_anchor" else (num_classes,)
    return ContrastiveDraws(thinning, anchors, draw32((*lead, num_negatives), generator))
