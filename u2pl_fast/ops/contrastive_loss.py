"""The whole contrastive branch of U2PL in one call: masks, bank, anchors, loss; and the part of it after the masks."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .. import reference
from ..reference import ContrastiveLoss, ContrastMasks
from . import _backend, _checks
from ._contrast_checks import check_features, dense_features, num_pixels
from .class_sample import check_draws_of, class_sample
from .class_sum import class_sum
from .contrast_masks import contrast_masks
from .draws import ContrastiveDraws
from .gather_pixels import gather_pixels
from .info_nce import info_nce


class Bank(Protocol):
    """What the loss needs of a memory bank; ``u2pl_fast.memory_bank.MemoryBank`` is one.

    ``bank``, ``offsets``, ``pushed``: as ``ring_push`` keeps them. ``push`` appends the keys that ``mask`` names, each
    class's thinned by ``draw`` where the bank has a cap, and nothing where ``gate`` is false.
    """

    bank: Tensor
    offsets: Tensor
    pushed: Tensor

    def push(self, features: Tensor, mask: Tensor, *, draw: Tensor, gate: Tensor | None) -> None: ...


def contrastive_loss(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    features: Tensor,
    keys: Tensor,
    bank: Bank,
    draws: ContrastiveDraws,
    *,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float = 0.3,
    ignore_index: int = 255,
    negatives: str = "per_anchor",
    temperature: float = 0.5,
    project: Callable[[Tensor], Tensor] | None = None,
    gate: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> ContrastiveLoss:
    """L_c of U2PL for one batch, labeled images first; moves the bank by one step.

    ``contrast_masks`` finds anchors and negatives, and ``contrastive_loss_from_masks`` does the rest. Nothing waits for
    the device.

    Args:
        logits: (B, C, h, w), whose probabilities decide; label, reliable, unreliable: (B, h, w); ``num_labeled``,
            ``low_rank``, ``high_rank``, ``positive_threshold``, ``ignore_index``: as ``contrast_masks`` takes them.
        features, keys, bank, draws, negatives, temperature, project, gate, group: as ``contrastive_loss_from_masks``
            takes them; features and keys on the grid of the logits.

    Returns:
        ``ContrastiveLoss(loss, anchors, negatives, pushed)``.

    Raises:
        ValueError, TypeError: as the ops do, naming the argument; features or keys of another grid than the logits',
            before the bank moves.

    Source: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022, Section 3.3
        and Algorithm 1.
    """
    _checks.check_logits(logits)
    _check_grid("features", features, logits)
    _check_grid("keys", keys, logits)
    masks = contrast_masks(
        logits,
        label,
        reliable,
        unreliable,
        num_labeled=num_labeled,
        low_rank=low_rank,
        high_rank=high_rank,
        positive_threshold=positive_threshold,
        ignore_index=ignore_index,
    )
    return contrastive_loss_from_masks(
        masks,
        features,
        keys,
        bank,
        draws,
        negatives=negatives,
        temperature=temperature,
        project=project,
        gate=gate,
        group=group,
    )


def contrastive_loss_from_masks(
    masks: ContrastMasks,
    features: Tensor,
    keys: Tensor,
    bank: Bank,
    draws: ContrastiveDraws,
    *,
    negatives: str = "per_anchor",
    temperature: float = 0.5,
    project: Callable[[Tensor], Tensor] | None = None,
    positives: Callable[[Tensor, Tensor], Tensor] | None = None,
    gate: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> ContrastiveLoss:
    """``contrastive_loss`` for anchors and negatives that are known; moves the bank by one step.

    In this order: class centers are means of ``keys`` over all anchors; the bank takes the negatives (thinned to its
    cap); M anchors a class are drawn and their features, projected where a head is given, meet centers and keys in
    ``info_nce``. A class with an anchor and a key takes part, all with the same weight; with none the loss and its
    gradient are 0. Nothing waits for the device.

    Args:
        masks: from ``contrast_masks``, or in its form, of the P pixels of ``features``.
        features: (B, D', h, w), of which the gradient is wanted: dense representations, or what ``project`` takes.
        keys: representations for centers and bank: (B, D, h, w), or (P, D) in the order of the pixels. No gradient.
        bank: a ``MemoryBank``, or anything with its ``bank``, ``offsets``, ``pushed``, ``push``.
        draws: from ``contrastive_draws``, on the device.
        negatives, temperature: as ``info_nce`` takes them.
        project: (R, D') → (R, D), the part of the head that works on single pixels; only drawn anchors go through it
            with a gradient.
        positives: replaces the class centers: called with the sums of ``keys`` over each class's anchors (C, D) and
            the number of anchors (C), returns (C, D).
        gate: 0-d bool on the device; the bank stays as it is where it is false.
        group: centers and the number of classes that take part are those of all its processes, and the loss is scaled
            so that the average of the processes' gradients is the gradient of the global mean.

    Returns:
        ``ContrastiveLoss(loss, anchors, negatives, pushed)``.

    Raises:
        ValueError, TypeError: as the ops do, naming the argument; features or keys of other pixels than the masks',
            before the bank moves.

    Source: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022, Section 3.3
        and Algorithm 1.
    """
    _check_pixels("features", features, masks)
    _check_pixels("keys", keys, masks)
    if project is None and features.shape[1] != keys.shape[1]:
        raise ValueError(f"features: expected D = {keys.shape[1]} as keys have, or a project, got {features.shape[1]}")
    keys = keys.detach()
    check_draws_of(masks.anchor_label, masks.anchors.numel(), draws.anchors)
    sums, index = _sum_and_sample(dense_features(keys), masks.anchor_label, draws.anchors.contiguous())

    before = bank.pushed.clone()
    bank.push(keys, masks.mask, draw=draws.thinning, gate=gate)

    anchors = gather_pixels(features, index)
    if project is not None:
        anchors = project(anchors.flatten(0, 1)).unflatten(0, index.shape)
    weight, active, taken = _class_weight(masks.anchors, bank.offsets, bank.pushed, before)
    if group is not None:
        weight = weight.sign() / _all_sum(active, group).clamp(min=1) * dist.get_world_size(group)
    sums = _all_sum(sums, group)
    loss = info_nce(
        anchors,
        weight,
        # info_nce normalizes the centers, so that the sum serves as the mean.
        sums if positives is None else positives(sums, _all_sum(masks.anchors, group)),
        bank.bank,
        bank.offsets,
        bank.pushed,
        draws=draws.negatives,
        negatives=negatives,
        temperature=temperature,
    )
    return ContrastiveLoss(loss, masks.anchors, masks.keys, taken)


@torch.library.custom_op("u2pl_fast::sum_and_sample", mutates_args=())
def _sum_and_sample(keys: Tensor, anchor_label: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """``class_sum`` and ``class_sample`` of the same pixels, which are sorted by class once."""
    num_classes = draws.shape[0]
    if _backend.resolve("class_sum", keys) == "triton":
        return _backend.kernel("_branch").sum_and_sample(keys, anchor_label, num_classes, draws)
    return class_sum(keys, anchor_label, num_classes), class_sample(anchor_label, num_classes, draws)


@_sum_and_sample.register_fake
def _(keys: Tensor, anchor_label: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    return class_sum(keys, anchor_label, draws.shape[0]), torch.empty_like(draws)


@torch.library.custom_op("u2pl_fast::class_weight", mutates_args=())
def _class_weight(anchors: Tensor, offsets: Tensor, pushed: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weight fp32 (C), active int64, taken int64 (C)) after a push that began at ``before``.

    The ``active`` classes, those with an anchor and a key, share a weight of 1. ``taken``: keys that the bank took.
    """
    if _backend.resolve("class_sample", anchors) == "triton":
        return _backend.kernel("_branch").class_weight(anchors, offsets, pushed, before)
    takes_part = (anchors > 0) & (reference.ring_fill(offsets, pushed) > 0)
    active = takes_part.sum()
    return takes_part / active.clamp(min=1), active, pushed - before


@_class_weight.register_fake
def _(anchors: Tensor, offsets: Tensor, pushed: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(anchors, dtype=torch.float32), anchors.new_empty(()), torch.empty_like(pushed)


def _check_grid(name: str, x: Tensor, logits: Tensor) -> None:
    """Pixel p of ``x`` is pixel p of the logits: a number alone would name another place on another grid."""
    batch, _, height, width = logits.shape
    same = (
        x.shape[:1] + x.shape[2:] == (batch, height, width)
        if x.dim() == 4
        else x.shape[:-1] == (batch * height * width,)
    )
    if not same:
        raise ValueError(
            f"{name}: expected (B, D, h, w) on the grid of the logits, {(batch, 'D', height, width)}, or its pixels as "
            f"rows (P, D), got {tuple(x.shape)}"
        )


def _check_pixels(name: str, x: Tensor, masks: ContrastMasks) -> None:
    """As many pixels as the masks have, in a dtype and on the device that the ops read."""
    pixels, device = masks.anchor_label.numel(), masks.anchor_label.device
    check_features(x, name)
    if num_pixels(x) != pixels:
        raise ValueError(f"{name}: expected the {pixels} pixels of masks, got {num_pixels(x)}")
    if x.device != device:
        raise ValueError(f"{name}: expected on {device} like masks, got on {x.device}")


def _all_sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return x
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total
