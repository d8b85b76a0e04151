"""The random numbers that the sampling ops take: drawn outside, so that every backend can be given the same ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from .info_nce import NEGATIVES


class ContrastiveDraws(NamedTuple):
    """Every random number of ``contrastive_loss``, int64 uniform in [0, 2³²).

    thinning (C): which keys the bank takes. anchors (C, M). negatives (C, M, N) for ``per_anchor``, (C, N) for
    ``shared``, None for ``full``.
    """

    thinning: Tensor
    anchors: Tensor
    negatives: Tensor | None = None


def draw32(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Integers uniform in [0, 2³²), int64, on the generator's device."""
    return torch.randint(0, 1 << 32, shape, generator=generator, device=generator.device, dtype=torch.int64)


def contrastive_draws(
    num_classes: int,
    generator: torch.Generator,
    *,
    num_anchors: int = 256,
    num_negatives: int = 50,
    negatives: str = "per_anchor",
) -> ContrastiveDraws:
    """The random numbers of one ``contrastive_loss``, on the generator's device."""
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, got {negatives!r}")
    thinning, anchors = draw32((num_classes,), generator), draw32((num_classes, num_anchors), generator)
    if negatives == "full":
        return ContrastiveDraws(thinning, anchors)
    lead = (num_classes, num_anchors) if negatives == "per_anchor" else (num_classes,)
    return ContrastiveDraws(thinning, anchors, draw32((*lead, num_negatives), generator))
