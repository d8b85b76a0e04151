"""Decide which pixels are reliable, and which L_u uses."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops, reference
from .outputs import concatenated
from .utils.distributed import Group

GATES = ("entropy", "class-entropy", "confidence")


class PseudoLabels(NamedTuple):
    """Hold the teacher's maps of the unlabeled images.

    Attributes:
        label: (B_u, H, W), the class.
        entropy: (B_u, H, W), in nats.
        valid: bool (B_u, H, W), true inside the image.
        confidence: (B_u, H, W), max p; read by the gate ``confidence`` only.
    """

    label: Tensor
    entropy: Tensor
    valid: Tensor
    confidence: Tensor | None = None

    @classmethod
    def joined(cls, parts: "Sequence[PseudoLabels]") -> "PseudoLabels":
        """Concatenate several batches."""
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
    """Hold the reliable and unreliable pixels, and the threshold between them.

    Attributes:
        reliable: bool, the shape of the entropies.
        unreliable: bool, the shape of the entropies.
        gamma: 0-d, γ in nats, on their device.
    """

    reliable: Tensor
    unreliable: Tensor
    gamma: Tensor


def reliability(
    entropy: Tensor, valid: Tensor, quantile: float, *, gamma: float | None = None, group: Group = None
) -> Reliability:
    """Split the valid pixels by their entropy: reliable if H < γ, unreliable if H > γ, neither if H = γ.

    Args:
        entropy: any shape, in nats.
        valid: bool, the shape of ``entropy``.
        quantile: γ is this quantile of the valid entropies; 1 − α_t in training.
        gamma: γ in nats, in place of the quantile.
        group: a process group: γ is the quantile over all its processes.

    Returns:
        ``Reliability(reliable, unreliable, gamma)``; γ is NaN if no pixel is valid.
    """
    if gamma is None:
        threshold = ops.masked_quantile(entropy, valid, quantile, group=group)
    else:
        threshold = torch.tensor(gamma, device=entropy.device)
    return Reliability(*reference.partition(entropy, valid, threshold), threshold)


class Gated(NamedTuple):
    """Hold the result of a gate.

    Attributes:
        taught: bool (B_u, H, W), the pixels of L_u.
        unreliable: bool (B_u, H, W), the pixels that can be negatives.
        gamma: 0-d, γ_t.
    """

    taught: Tensor
    unreliable: Tensor
    gamma: Tensor


def apply_gate(
    gate: str, pseudo: PseudoLabels, *, alpha: float, threshold: float, num_classes: int, group: Group = None
) -> Gated:
    """Select the pixels of L_u and the unreliable pixels.

    The gates select for L_u:

    - ``entropy``: H < γ_t, the (1 − α_t) quantile of the entropies of all valid pixels (U²PL).
    - ``class-entropy``: H < γ_c, the same quantile over the valid pixels of pseudo-label c, so that each class keeps a
      share.
    - ``confidence``: max p ≥ ``threshold`` (FixMatch; Sohn et al., NeurIPS 2020).

    Pixels with H > γ_t are unreliable, for every gate. Quantiles are those of the global batch.

    Args:
        gate: ``entropy``, ``class-entropy`` or ``confidence``.
        pseudo: the pseudo-labels.
        alpha: α_t.
        threshold: the threshold of the gate ``confidence``.
        num_classes: C.
        group: the process group of a distributed run.

    Returns:
        ``Gated(taught, unreliable, gamma)``.

    Raises:
        ValueError: the gate is ``confidence``, and ``pseudo`` has no confidence.
    """
    taught, unreliable, gamma = reliability(pseudo.entropy, pseudo.valid, 1 - alpha, group=group)
    if gate == "confidence":
        if pseudo.confidence is None:
            raise ValueError(
                "pseudo: the gate 'confidence' requires a map of confidence, got None; give confidence in pseudo"
            )
        taught = pseudo.valid & (pseudo.confidence >= threshold)
    elif gate == "class-entropy":
        taught = torch.zeros_like(pseudo.valid)
        for index in range(num_classes):
            own = pseudo.valid & (pseudo.label == index)
            taught |= reliability(pseudo.entropy, own, 1 - alpha, group=group).reliable
    return Gated(taught, unreliable, gamma)
