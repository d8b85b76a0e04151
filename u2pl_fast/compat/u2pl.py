"""Replace the loss functions of the public U²PL release, with the same names and arguments.

    from u2pl.utils.loss_helper import get_criterion
    from u2pl_fast.compat.u2pl import compute_contra_memobank_loss, compute_unsupervised_loss

The training loop needs no other change. The functions use the fused ops and follow the paper, which makes these
differences from the release:

compute_unsupervised_loss
  1. The numerator of the weight counts the pixels of ``target`` that are not ignored. The release counts all B·H·W.
  2. Without a reliable pixel, the loss is 0 with zero gradient. The release divides by zero.
  3. ``target`` is not modified. The release writes 255 into it.
  4. Logits can be smaller than ``target``. They are upsampled with aligned corners.

compute_contra_memobank_loss
  5. Negatives of class c are, in labeled images, pixels of another class and, in unlabeled images, unreliable pixels,
     if c has the right rank. The release also requires that the pixel has class c, so labeled images give none.
  6. Every class with an anchor and a key is used. The release indexes anchors and centers by position among the present
     classes but keys by class, and computes nothing if only one class is present.
  7. The loss is the mean over the classes that are used. The release divides by the number of present classes.
  8. A class center is the mean of the anchors of the class (p > δ_p). The release takes all its pixels in the mask.
  9. With an empty bank, a class without pixels or only ignored labels, the loss is 0, never NaN.
 10. ``low_rank`` ≥ the number of classes raises an error, because it leaves no unlabeled negatives.
 11. Keys are normalized when stored, which does not change cosine similarities, and stay on the device of ``rep``. Only
     keys of this process are stored; the release collects those of all processes, as ``MemoryBank(scope="gather")``
     does.
 12. ``momentum_prototype``: an absent class keeps its prototype, and a class without a prototype takes the center of
     this step. ``i_iter=0``, which the release's loop passes, means a momentum of 0.999. The release sets absent
     classes to zero and divides by zero.

dequeue_and_enqueue
 13. ``queue_ptr`` counts all keys ever pushed. A full queue is a ring buffer, so its rows are not sorted by age.

Source: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022, and the
arguments of its public code, ``u2pl/utils/loss_helper.py`` and ``train_semi.py``.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from ..gates import reliability
from ..memory_bank import MemoryBank

Queue = list[Tensor]
SETTINGS = (
    "low_rank",
    "high_rank",
    "current_class_threshold",
    "current_class_negative_threshold",
    "temperature",
    "num_queries",
    "num_negatives",
)
PROTOTYPE_MOMENTUM = 0.999


def compute_unsupervised_loss(
    predict: Tensor,
    target: Tensor,
    percent: float,
    pred_teacher: Tensor,
    *,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> Tensor:
    """Return L_u = λ_u · mean cross-entropy over the reliable pixels, λ_u = #valid / #reliable.

    Valid pixels are not ignored in ``target``. Reliable pixels are valid pixels whose teacher entropy is below the
    ``percent``-th percentile of all valid pixels.

    Args:
        predict: logits of the student, (B, C, H, W), or (B, C, h, w) at the network's resolution to save memory.
        target: pseudo-labels (B, H, W) of any integer dtype. Not modified.
        percent: in [0, 100].
        pred_teacher: logits of the teacher for the same images, of either size.
        ignore_index: the label of ignored pixels. align_corners: as in ``interpolate``, for smaller logits.

    Returns:
        A 0-d float32 tensor, differentiable once with respect to ``predict``.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype or value.

    Source: Eqs. 3-5 of U2PL (Wang et al., CVPR 2022).
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent: expected a number in [0, 100], got {percent}")
    if target.dim() != 3:
        raise ValueError(f"target: expected class ids (B, H, W), got {tuple(target.shape)}")
    if pred_teacher.shape[:2] != predict.shape[:2]:
        raise ValueError(
            f"pred_teacher: expected the images and classes of predict, {tuple(predict.shape[:2])}, got "
            f"{tuple(pred_teacher.shape[:2])}"
        )
    size = target.shape[-2:]
    valid = target != ignore_index
    entropy = ops.pixel_stats(pred_teacher, size, align_corners=align_corners).entropy
    reliable = reliability(entropy, valid, percent / 100).reliable
    loss = ops.upsampled_cross_entropy(
        predict,
        torch.where(reliable, target.to(torch.promote_types(target.dtype, torch.int16)), ignore_index),
        ignore_index=ignore_index,
        align_corners=align_corners,
    )
    return reference.unsupervised_weight(1.0, valid.sum(), reliable.sum()) * loss


def compute_contra_memobank_loss(
    rep: Tensor,
    label_l: Tensor,
    label_u: Tensor,
    prob_l: Tensor,
    prob_u: Tensor,
    low_mask: Tensor,
    high_mask: Tensor,
    cfg: Mapping[str, float],
    memobank: list[Queue] | MemoryBank,
    queue_prtlis: Sequence[Tensor] | None,
    queue_size: Sequence[int] | None,
    rep_teacher: Tensor,
    momentum_prototype: Tensor | None = None,
    i_iter: int = 0,
    *,
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> tuple[list, Tensor] | tuple[Tensor, list, Tensor]:
    """Return L_c of one step and add its negatives to the memory bank.

    With p the teacher's probabilities, O(c) the rank of class c in p and y the (pseudo-)label:

        anchor of c:    y = c, low_mask and p(c) > current_class_threshold;
        negative of c:  labeled image: y ≠ c, y not ignored, O(c) < low_rank;
                        unlabeled image: high_mask and low_rank ≤ O(c) < high_rank;
                        both: p(c) < current_class_negative_threshold, if that is below 1.

    Compares ``num_queries`` anchors of each class with the class center and ``num_negatives`` keys per anchor.

    Args:
        rep: representations (B, D, h, w) of the student, labeled images first. Gets the gradient.
        label_l, label_u: one-hot maps (B_l, C, h, w) and (B_u, C, h, w), all 0 at ignored pixels; or class ids
            (B_l, h, w) and (B_u, h, w) with ``ignore_index``, which need less memory.
        prob_l, prob_u: probabilities of the teacher, (B_l, C, h, w) and (B_u, C, h, w).
        low_mask, high_mask: (B, 1, h, w), 0 or 1: pixels that can be anchors, and pixels that can be negatives. In
            labeled images, pixels with ``low_mask`` 0 are ignored and ``high_mask`` is not used.
        cfg: the ``trainer.contrastive`` section of the release's configuration.
        memobank: ``[[keys], …]``, one list per class with a tensor (n, D), which the release initializes with
            ``torch.zeros(0, 256)``. The first call allocates one bank with all ``queue_size`` rows on the device and
            makes the tensors views of it, with the same dtype. Each call updates the lists and ``queue_prtlis``, which
            needs one read from the device. Or a ``MemoryBank``, which needs none and ignores the next two arguments.
        queue_prtlis: one int64 tensor (1) per class. queue_size: the capacity of each class.
        rep_teacher: (B, D, h, w), for centers and keys. No gradient.
        momentum_prototype: (C, num_queries, 1, D), a moving average of the centers to use instead of the centers.
        i_iter: the step number; the momentum of that average is min(1 − 1/i_iter, 0.999).
        generator: the random generator, on the device; None for torch's default generator.

    Returns:
        ``new_keys, loss``, or ``prototype, new_keys, loss`` with ``momentum_prototype``. new_keys: the number of
        negatives of each class (ints; 0-d tensors with a ``MemoryBank``).

    Raises:
        ValueError, TypeError, KeyError: an argument has a wrong shape or dtype, or a setting is missing or wrong.

    Source: Section 3.3 and Algorithm 1 of U2PL (Wang et al., CVPR 2022).
    """
    settings = _settings(cfg)
    logits = torch.cat((prob_l, prob_u)).detach().float().log()
    batch, num_classes, height, width = logits.shape
    grid = (batch, height, width)
    _check_shapes(grid, settings, num_classes, rep=rep, rep_teacher=rep_teacher, low_mask=low_mask, high_mask=high_mask)
    _check_prototype(momentum_prototype, num_classes, rep.shape[1])
    num_labeled = label_l.shape[0]
    low, high = (mask.reshape(grid) > 0 for mask in (low_mask, high_mask))
    label = torch.cat(
        [_class_map(n, x, num_classes, ignore_index) for n, x in (("label_l", label_l), ("label_u", label_u))]
    )
    if label.shape != grid:
        raise ValueError(
            f"label_l, label_u: expected {grid} pixels together, like prob_l and prob_u, got {tuple(label.shape)}"
        )
    label[:num_labeled].masked_fill_(~low[:num_labeled], ignore_index)
    masks = ops.contrast_masks(
        logits,
        label,
        low,
        high,
        num_labeled=num_labeled,
        low_rank=int(settings["low_rank"]),
        high_rank=int(settings["high_rank"]),
        positive_threshold=settings["current_class_threshold"],
        ignore_index=ignore_index,
    )
    if settings["current_class_negative_threshold"] < 1:
        masks = _below(masks, logits.exp(), settings["current_class_negative_threshold"])

    bank = memobank
    if not isinstance(memobank, MemoryBank):
        bank = _Queues(memobank, queue_prtlis, queue_size, rep.shape[1], rep.device)
    if bank.pushed.numel() != num_classes:
        raise ValueError(f"memobank: expected {num_classes} classes like prob_l, got {bank.pushed.numel()}")
    draws = ops.contrastive_draws(
        num_classes,
        _torch_generator(rep.device) if generator is None else generator,
        num_anchors=int(settings["num_queries"]),
        num_negatives=int(settings["num_negatives"]),
    )
    centers = None

    def positives(sums: Tensor, counts: Tensor) -> Tensor:
        nonlocal centers
        centers = sums / counts.clamp(min=1)[:, None]
        if momentum_prototype is not None:
            centers = _moved(momentum_prototype, centers, counts > 0, i_iter)
        return centers

    loss = ops.contrastive_loss_from_masks(
        masks, rep, rep_teacher, bank, draws, temperature=settings["temperature"], positives=positives
    ).loss
    new_keys = list(masks.keys.unbind()) if bank is memobank else bank.write_back(masks.keys)
    if momentum_prototype is None:
        return new_keys, loss
    shape = (num_classes, *[1] * (momentum_prototype.dim() - 2), centers.shape[1])
    return torch.empty_like(momentum_prototype).copy_(centers.view(shape)), new_keys, loss


def dequeue_and_enqueue(keys: Tensor, queue: Queue, queue_ptr: Tensor, queue_size: int) -> int:
    """Append L2-normalized ``keys`` to the queue of one class and keep the newest ``queue_size``.

    Args:
        keys: (n, D), float32, bfloat16 or float16.
        queue: ``[rows]``. Its tensor becomes a view of a ring buffer of ``queue_size`` rows on the device of the keys.
        queue_ptr: int64 (1), the number of keys ever pushed. Updated in place.
        queue_size: the capacity.

    Returns:
        n.

    Raises:
        ValueError, TypeError: an argument has a wrong shape or dtype.

    Source: the category-wise memory bank of U2PL (Wang et al., CVPR 2022, Section 3.4).
    """
    if keys.dim() != 2:
        raise ValueError(f"keys: expected (n, D), got {tuple(keys.shape)}")
    queues = _Queues([queue], [queue_ptr], [queue_size], keys.shape[1], keys.device)
    every = torch.ones(len(keys), 1, dtype=torch.int32, device=keys.device)
    queues.push(keys.detach(), every)
    queues.write_back(queues.pushed)
    return len(keys)


class _Queues:
    """Present the release's lists as one bank of rings, the form that ``ops.contrastive_loss`` needs, for one call.

    Queue i is a view of rows offsets[i] .. offsets[i] + fill of the bank, and its pointer is the number of keys ever
    pushed. Tensors that are not such views, such as those loaded from a file, are copied into a new bank.
    """

    def __init__(
        self,
        queues: list[Queue],
        pointers: Sequence[Tensor],
        sizes: Sequence[int],
        dim: int,
        device: torch.device,
    ) -> None:
        if queues is None or pointers is None or sizes is None or not len(queues) == len(pointers) == len(sizes):
            counts = [None if x is None else len(x) for x in (queues, pointers, sizes)]
            raise ValueError(f"memobank, queue_prtlis, queue_size: expected one entry per class in each, got {counts}")
        for i, (queue, size) in enumerate(zip(queues, sizes, strict=True)):
            if queue[0].dim() != 2 or (len(queue[0]) and queue[0].shape[1] != dim):
                raise ValueError(f"memobank[{i}][0]: expected (n, D) with D = {dim}, got {tuple(queue[0].shape)}")
            if int(size) < 1:
                raise ValueError(f"queue_size[{i}]: expected at least 1, got {size}")
        self.queues, self.pointers, self.sizes = queues, pointers, [int(size) for size in sizes]
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        counts = [self._count(*each) for each in zip(queues, pointers, self.sizes, strict=True)]
        self.starts = starts
        base = queues[0][0]._base
        self.bank = base if self._is_ours(base, dim, device) else self._copied(dim, device)
        self.offsets = torch.tensor(starts, device=device)
        self.pushed = torch.tensor(counts, device=device)

    def push(self, features: Tensor, mask: Tensor, *, draw: Tensor | None = None, gate: Tensor | None = None) -> None:
        """Append all keys. ``draw`` is not used, because the release does not limit the keys per step."""
        ops.ring_push(self.bank, self.offsets, self.pushed, features, mask, gate=gate)

    def write_back(self, keys: Tensor) -> list[int]:
        """Update lists and pointers, and return ``keys`` as numbers. Both need one read from the device."""
        pushed, keys = torch.stack((self.pushed, keys)).tolist()
        for queue, pointer, count, start, size in zip(
            self.queues, self.pointers, pushed, self.starts[:-1], self.sizes, strict=True
        ):
            pointer[0] = count
            queue[0] = self.bank[start : start + min(count, size)]
        return keys

    @staticmethod
    def _count(queue: Queue, pointer: Tensor, size: int) -> int:
        """Return the number of keys ever pushed: the pointer, or the rows if they contradict it (after a resize)."""
        rows, count = min(len(queue[0]), size), int(pointer[0])
        return count if min(count, size) == rows else rows

    def _is_ours(self, base: Tensor | None, dim: int, device: torch.device) -> bool:
        if base is None or base.shape != (self.starts[-1], dim) or base.device != device or not base.is_contiguous():
            return False
        return all(
            queue[0]._base is base and queue[0].storage_offset() == start * dim and len(queue[0]) <= size
            for queue, start, size in zip(self.queues, self.starts[:-1], self.sizes, strict=True)
        )

    def _copied(self, dim: int, device: torch.device) -> Tensor:
        bank = torch.zeros(self.starts[-1], dim, dtype=self.queues[0][0].dtype, device=device)
        for queue, start, size in zip(self.queues, self.starts[:-1], self.sizes, strict=True):
            if len(queue[0]):  # an empty queue can have any width
                rows = F.normalize(queue[0][-size:].detach().to(device).float(), dim=1, eps=reference.NORM_EPS)
                bank[start : start + len(rows)] = rows
        return bank


def _settings(cfg: Mapping[str, float]) -> dict[str, float]:
    missing = [name for name in SETTINGS if name not in cfg]
    if missing:
        raise KeyError(f"cfg: missing {', '.join(missing)}; expected the settings of the release's trainer.contrastive")
    return {name: cfg[name] for name in SETTINGS}


def _check_shapes(grid: tuple[int, int, int], settings: dict[str, float], num_classes: int, **tensors: Tensor) -> None:
    if settings["low_rank"] >= num_classes:
        raise ValueError(
            f"cfg['low_rank']: {settings['low_rank']} with {num_classes} classes leaves no unlabeled negatives; use at "
            f"most {num_classes - 1}"
        )
    for name, x in tensors.items():
        channels = 1 if name.endswith("mask") else tensors["rep"].shape[1]
        expected = (grid[0], channels, *grid[1:])
        if x.shape != expected:
            raise ValueError(f"{name}: expected {expected} on the grid of prob_l and prob_u, got {tuple(x.shape)}")


def _check_prototype(prototype: Tensor | None, num_classes: int, dim: int) -> None:
    if prototype is not None and prototype.shape[:1] + prototype.shape[-1:] != (num_classes, dim):
        raise ValueError(
            f"momentum_prototype: expected (C, num_queries, 1, D) with C, D = {(num_classes, dim)}, got "
            f"{tuple(prototype.shape)}"
        )


def _class_map(name: str, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return int32 class ids (B, h, w) for one-hot maps or class ids."""
    if label.dim() == 3:
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise TypeError(f"{name}: expected class ids of an integer dtype, got {label.dtype}")
        return label.to(torch.int32)
    if label.dim() != 4 or label.shape[1] != num_classes:
        raise ValueError(
            f"{name}: expected one-hot (B, {num_classes}, h, w) or class ids (B, h, w), got {tuple(label.shape)}"
        )
    hot = label > 0
    return torch.where(hot.any(1), hot.to(torch.uint8).argmax(1), ignore_index).to(torch.int32)


def _below(masks: ops.ContrastMasks, probability: Tensor, threshold: float) -> ops.ContrastMasks:
    """Return the masks without negatives whose class has at least the probability ``threshold``."""
    keys = ops.unpack_mask(masks.mask, probability.shape[1]) & (reference.pixel_rows(probability) < threshold)
    return masks._replace(mask=ops.pack_mask(keys), keys=keys.sum(0))


def _moved(prototype: Tensor, centers: Tensor, present: Tensor, i_iter: int) -> Tensor:
    """Return the moving average (C, D) of the centers. A class without a prototype takes its center."""
    old = prototype.detach().to(centers.dtype).reshape(centers.shape[0], -1, centers.shape[1])[:, 0]
    momentum = min(1 - 1 / i_iter, PROTOTYPE_MOMENTUM) if i_iter > 0 else PROTOTYPE_MOMENTUM
    known = (old != 0).any(1)
    moved = torch.where(known[:, None], torch.lerp(centers, old, momentum), centers)
    return torch.where(present[:, None], moved, old)


def _torch_generator(device: torch.device) -> torch.Generator:
    """Return the default generator, which ``torch.manual_seed`` seeds."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
