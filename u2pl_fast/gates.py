"""Which pixels are reliable, and which teach: the one place for such rules. Tensors in, masks out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops, reference
from .outputs import concatenated
from .utils.distributed import Group

GATES = ("entropy", "class-entropy", "confidence")


class PseudoLabels(NamedTuple):
    """The teacher's maps over the unlabeled images, each (B_u, H, W).

    label: class. entropy: in nats. valid: inside the image. confidence: max p, read by the gate of that name alone.
    """

    label: Tensor
    entropy: Tensor
    valid: Tensor
    confidence: Tensor | None = None

    @classmethod
    def joined(cls, parts: "Sequence[PseudoLabels]") -> "PseudoLabels":
        """Join several batches, one after another."""
        confidences = [part.confidence for part in parts if part.confidence is not None]
        return cls(
            concatenated([part.label for part in parts]),
            concatenated([part.entropy for part in parts]),
            concatenated([part.valid for part in parts]),
            concatenated(confidences) if confidences else None,
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> "PseudoLabels":
        """Return these pseudo-labels with ``change`` applied to each map."""
        confidence = None if self.confidence is None else change(self.confidence)
        return PseudoLabels(change(self.label), change(self.entropy), change(self.valid), confidence)


class Reliability(NamedTuple):
    """Masks of the entropies' shape, and the threshold γ, a scalar on their device."""

    reliable: Tensor
    unreliable: Tensor
    gamma: Tensor


def reliability(
    entropy: Tensor, valid: Tensor, quantile: float, *, gamma: float | None = None, group: Group = None
) -> Reliability:
    """Split the valid pixels by their entropy: reliable H < γ, unreliable H > γ. At γ a pixel is neither.

    γ is the ``quantile`` of the valid entropies, 1 − α_t in a training; with ``group``, of those of all its processes.
    ``gamma`` in nats takes its place. Without a valid pixel γ is NaN.
    """
    if gamma is None:
        threshold = ops.masked_quantile(entropy, valid, quantile, group=group)
    else:
        threshold = torch.tensor(gamma, device=entropy.device)
    return Reliability(*reference.partition(entropy, valid, threshold), threshold)


class Gated(NamedTuple):
    """taught: pixels of L_u. unreliable: pixels whose negatives count. gamma: γ_t. All (B_u, H, W) but the last."""

    taught: Tensor
    unreliable: Tensor
    gamma: Tensor


def apply_gate(
    gate: str, pseudo: PseudoLabels, *, alpha: float, threshold: float, num_classes: int, group: Group = None
) -> Gated:
    """Choose the pixels that teach.

    - ``entropy``: H < γ_t, the (1 − α_t) quantile of the entropies of all valid pixels (U²PL).
    - ``class-entropy``: H < γ_c, the same quantile among the valid pixels labeled c, so that each class keeps a share.
    - ``confidence``: max p ≥ ``threshold`` (FixMatch; Sohn et al., NeurIPS 2020).

    Unreliable pixels are those with H > γ_t, whatever the gate. Quantiles are those of the global batch.
    """
    taught, unreliable, gamma = reliability(pseudo.entropy, pseudo.valid, 1 - alpha, group=group)
    if gate == "confidence":
        if pseudo.confidence is None:
            raise ValueError("pseudo: the gate confidence reads its map of confidence, which is None")
        taught = pseudo.valid & (pseudo.confidence >= threshold)
    elif gate == "class-entropy":
        taught = torch.zeros_like(pseudo.valid)
        for index in range(num_classes):
            own = pseudo.valid & (pseudo.label == index)
            taught |= reliability(pseudo.entropy, own, 1 - alpha, group=group).reliable
    return Gated(taught, unreliable, gamma)
