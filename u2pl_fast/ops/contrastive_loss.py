"""Compute the whole contrastive branch of U²PL, or the part of it that follows the masks."""

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
    """Describe the memory bank that the loss needs; ``u2pl_fast.MemoryBank`` is one.

    Attributes:
        bank: (ΣK_c, D), the keys, as ``ring_push`` stores them.
        offsets: int64 (C+1), the start of each ring.
        pushed: int64 (C), the keys of all pushes.
    """

    bank: Tensor
    offsets: Tensor
    pushed: Tensor

    def push(self, features: Tensor, mask: Tensor, *, draw: Tensor, gate: Tensor | None) -> None:
        """Append the keys set in ``mask``, thinned by ``draw`` to the bank's cap, unless ``gate`` is false."""
        ...


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
    """Compute L_c of U²PL for one batch, labeled images first, and push the negatives to the bank.

    This calls ``contrast_masks`` to find anchors and negatives, then ``contrastive_loss_from_masks``. Nothing waits for
    the device.

    Args:
        logits: (B, C, h, w); their probabilities select anchors and negatives.
        label: (B, h, w), as in ``contrast_masks``.
        reliable: bool (B, h, w), as in ``contrast_masks``.
        unreliable: bool (B, h, w), as in ``contrast_masks``.
        features: (B, D', h, w), on the grid of the logits, as in ``contrastive_loss_from_masks``.
        keys: (B, D, h, w) or (P, D), on the grid of the logits, as in ``contrastive_loss_from_masks``.
        bank: a ``MemoryBank``, or an object with its ``bank``, ``offsets``, ``pushed`` and ``push``.
        draws: the result of ``contrastive_draws``, on the device of the logits.
        num_labeled: the number of labeled images.
        low_rank: r_l, as in ``contrast_masks``.
        high_rank: r_h, as in ``contrast_masks``.
        positive_threshold: δ_p, as in ``contrast_masks``.
        ignore_index: the label of ignored pixels; must not be a class.
        negatives: ``per_anchor``, ``shared`` or ``full``, as in ``info_nce``.
        temperature: τ, as in ``info_nce``.
        project: maps the drawn rows (R, D') to (R, D), as in ``contrastive_loss_from_masks``.
        gate: 0-d bool on the device; the bank does not change if it is false.
        group: the process group of a distributed run, as in ``contrastive_loss_from_masks``.

    Returns:
        ``ContrastiveLoss(loss, anchors, negatives, pushed)``.

    Raises:
        ValueError: an argument has a wrong shape, device or value, or features or keys lie on another grid than the
            logits. The bank is unchanged then.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> logits, features = torch.randn(2, 5, 4, 4), torch.randn(2, 8, 4, 4, requires_grad=True)
        >>> label, reliable = torch.randint(0, 5, (2, 4, 4)), torch.rand(2, 4, 4) < 0.8
        >>> bank, draws = u2pl_fast.MemoryBank([64] * 5, 8), ops.contrastive_draws(5, torch.Generator())
        >>> arguments = (logits, label, reliable, ~reliable, features, features, bank, draws)
        >>> out = ops.contrastive_loss(*arguments, num_labeled=1, low_rank=3, high_rank=5)
        >>> out.loss.backward()

    Source: Wang et al., CVPR 2022, Section 3.3 and Algorithm 1.
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
    """Compute L_c from known anchors and negatives, and push the negatives to the bank.

    The steps, in order:

    1. Average ``keys`` over all anchors of each class: the class centers.
    2. Push the negatives to the bank, thinned to its cap.
    3. Draw M anchors per class, gather their features and apply ``project`` if given.
    4. Compute ``info_nce`` of the anchors, the centers and the keys in the bank.

    Classes with at least one anchor and one key share the weight equally. Without such a class, the loss and its
    gradient are 0. Nothing waits for the device.

    Args:
        masks: from ``contrast_masks``, or of the same form, for the P pixels of ``features``.
        features: (B, D', h, w), with gradient: dense representations, or the input of ``project``.
        keys: representations for centers and bank, without gradient: (B, D, h, w), or (P, D) in bank order.
        bank: a ``MemoryBank``, or an object with its ``bank``, ``offsets``, ``pushed`` and ``push``.
        draws: the result of ``contrastive_draws``, on the device of the features.
        negatives: ``per_anchor``, ``shared`` or ``full``, as in ``info_nce``.
        temperature: τ, as in ``info_nce``.
        project: maps rows (R, D') to (R, D), pixel by pixel. Only drawn anchors pass through it with a gradient.
        positives: replaces the class centers. It is called with the sums of ``keys`` over the anchors of each class
            (C, D) and the numbers of anchors (C), and returns (C, D).
        gate: 0-d bool on the device; the bank does not change if it is false.
        group: the process group of a distributed run. Centers and the number of active classes are then global, and the
            loss is scaled so that the mean of the processes' gradients is the gradient of the global mean.

    Returns:
        ``ContrastiveLoss(loss, anchors, negatives, pushed)``.

    Raises:
        ValueError: an argument has a wrong shape, device or value, or features or keys have other pixels than the
            masks. The bank is unchanged then.
        TypeError: an argument has a wrong dtype.

    Examples:
        >>> mask, anchor_label = torch.ones(6, 1, dtype=torch.int32), torch.ones(6, dtype=torch.int16)
        >>> masks = ops.ContrastMasks(mask, anchor_label, torch.tensor([6, 0]), torch.tensor([0, 6]))
        >>> bank, draws = u2pl_fast.MemoryBank([64] * 2, 8), ops.contrastive_draws(2, torch.Generator())
        >>> features = torch.randn(1, 8, 2, 3)
        >>> ops.contrastive_loss_from_masks(masks, features, features, bank, draws).pushed
        tensor([4, 0])

    Source: Wang et al., CVPR 2022, Section 3.3 and Algorithm 1.
    """
    _check_pixels("features", features, masks)
    _check_pixels("keys", keys, masks)
    if project is None and features.shape[1] != keys.shape[1]:
        raise ValueError(f"features: expected D = {keys.shape[1]} like keys, got {features.shape[1]}; or pass project")
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
        # The sum replaces the mean, because info_nce normalizes the centers.
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
    """Run ``class_sum`` and ``class_sample`` on the same pixels, which are sorted by class only once."""
    num_classes = draws.shape[0]
    if _backend.resolve("class_sum", keys) == "triton":
        return _backend.kernel("_branch").sum_and_sample(keys, anchor_label, num_classes, draws)
    return class_sum(keys, anchor_label, num_classes), class_sample(anchor_label, num_classes, draws)


@_sum_and_sample.register_fake
def _(keys: Tensor, anchor_label: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    return class_sum(keys, anchor_label, draws.shape[0]), torch.empty_like(draws)


@torch.library.custom_op("u2pl_fast::class_weight", mutates_args=())
def _class_weight(anchors: Tensor, offsets: Tensor, pushed: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (weight, active, taken) after a push that began with ``before`` keys.

    weight is float32 (C): the active classes, those with an anchor and a key, share a weight of 1. active is their
    number. taken is int64 (C), the keys that the bank took.
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
    """Check that pixel p of ``x`` is pixel p of the logits.

    Equal numbers of pixels are not enough: on another grid, the same number is another place.
    """
    batch, _, height, width = logits.shape
    same = (
        x.shape[:1] + x.shape[2:] == (batch, height, width)
        if x.dim() == 4
        else x.shape[:-1] == (batch * height * width,)
    )
    if not same:
        raise ValueError(
            f"{name}: expected ({batch}, D, {height}, {width}) on the grid of the logits, or "
            f"({batch * height * width}, D), got {tuple(x.shape)}"
        )


def _check_pixels(name: str, x: Tensor, masks: ContrastMasks) -> None:
    """Check that ``x`` has the pixels of the masks, a dtype that the ops read, and the device of the masks."""
    pixels, device = masks.anchor_label.numel(), masks.anchor_label.device
    check_features(x, name)
    if num_pixels(x) != pixels:
        raise ValueError(f"{name}: expected the {pixels} pixels of masks, got {num_pixels(x)}")
    if x.device != device:
        raise ValueError(f"{name}: expected a tensor on {device} like masks, got one on {x.device}")


def _all_sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return x
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total
