"""Class weights of the cross-entropy losses."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .splits import Split, evenly

BALANCED = "balanced"
MASKS = 500  # read at most, evenly spaced


def class_weights(choice: str | None, split: Split) -> Tensor | None:
    """Return the weights of ``--class-weights``: (C,) float32, or None.

    A file holds one number per line. ``"balanced"`` is w_c = 1 ÷ ln(1.02 + p_c), where p_c is the share of class c
    among the labeled pixels. Weights are scaled so that their mean over labeled pixels is 1. A class in no mask gets 1.

    Source: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", 2016.

    Raises:
        ValueError: the file cannot be read, or does not hold C numbers.
    """
    if choice is None:
        return None
    if choice == BALANCED:
        return balanced(split)
    classes = split.dataset.num_classes
    try:
        weights = torch.tensor([float(line) for line in Path(choice).read_text().split()])
    except (OSError, ValueError) as error:
        raise ValueError(f"class_weights: cannot read {choice}: {error}; name a file, or use {BALANCED}") from error
    if len(weights) != classes or not (weights >= 0).all() or not weights.isfinite().all():
        raise ValueError(f"class_weights: {choice} must hold {classes} finite numbers ≥ 0, one per class")
    return weights


def balanced(split: Split) -> Tensor:
    """Return weights that rise as class frequency falls; they are at most 50 before scaling."""
    counts = np.zeros(split.dataset.num_classes, np.int64)
    for index in evenly(split.labeled, MASKS):
        label = split.dataset.label(index)
        counts += np.bincount(label[label != split.ignore_index], minlength=len(counts))
    shares = counts / max(1, counts.sum())
    weights = 1 / np.log(1.02 + shares)
    weights = np.where(counts > 0, weights / max(shares @ weights, 1e-12), 1)
    return torch.from_numpy(weights).float()
