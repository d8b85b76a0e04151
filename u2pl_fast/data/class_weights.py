"""Weights of the classes in the cross-entropies."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .splits import Split, evenly

BALANCED = "balanced"
MASKS = 500  # read at most, spread evenly


def class_weights(choice: str | None, split: Split) -> Tensor | None:
    """What ``--class-weights`` says: (C,) float32, or None.

    A file holds a number a line. ``"balanced"`` is w_c = 1 ÷ ln(1.02 + p_c), p_c the share of class c among the
    labeled pixels, scaled so that a labeled pixel weighs 1 in the mean; 1 for a class that no mask holds.

    Source: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", 2016.

    Raises:
        ValueError: a file that can't be read, or holds something else.
    """
    if choice is None:
        return None
    if choice == BALANCED:
        return balanced(split)
    classes = split.dataset.num_classes
    try:
        weights = torch.tensor([float(line) for line in Path(choice).read_text().split()])
    except (OSError, ValueError) as error:
        raise ValueError(f"class_weights: cannot read {choice}: {error}; a file, or {BALANCED}") from error
    if len(weights) != classes or not (weights >= 0).all() or not weights.isfinite().all():
        raise ValueError(f"class_weights: {choice} must hold {classes} finite numbers ≥ 0, one a class")
    return weights


def balanced(split: Split) -> Tensor:
    """Rare classes weigh more; 50 times at most before scaling."""
    counts = np.zeros(split.dataset.num_classes, np.int64)
    for index in evenly(split.labeled, MASKS):
        label = split.dataset.label(index)
        counts += np.bincount(label[label != split.ignore_index], minlength=len(counts))
    shares = counts / max(1, counts.sum())
    weights = 1 / np.log(1.02 + shares)
    weights = np.where(counts > 0, weights / max(shares @ weights, 1e-12), 1)
    return torch.from_numpy(weights).float()
