"""Measure a teacher's pseudo-labels and negatives against masks that training does not use."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import ops
from ..gates import reliability
from ..utils.distributed import Group, all_sum
from . import Sample, evaluating, predict_logits
from .metrics import ConfusionMatrix


def pseudo_label_quality(
    teacher: nn.Module,
    samples: Iterable[Sample],
    *,
    alpha: float,
    low_rank: int,
    high_rank: int,
    num_classes: int,
    ignore_index: int = 255,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
    group: Group = None,
) -> dict[str, float]:
    """Return scores of the labels and negatives that a teacher produces; an empty dict without samples.

    A pixel is reliable if its entropy is below the (1 − alpha) quantile of its image, and unreliable if it is above. An
    unreliable pixel is a negative of the classes with rank r_l ≤ O(c) < r_h by its logits.

    Args:
        teacher: as in :func:`u2pl_fast.inference.predict_labels`.
        samples: ``(image uint8 (N, h, w), label (H, W), name)``; with ``group``, this process's share.
        alpha: share of unreliable pixels.
        low_rank, high_rank: r_l and r_h.
        num_classes: C.
        ignore_index: label of pixels without truth.
        device: where the teacher is.
        amp_dtype: autocast the teacher to this dtype.
        group: processes whose counts are added.

    Returns:
        Scores over the pixels with truth: ``pseudo_miou`` and ``pseudo_accuracy``; ``pseudo_accuracy_reliable`` and
        ``pseudo_accuracy_unreliable``; ``pseudo_negatives_right``, the share of (unreliable pixel, negative class)
            pairs in
        which the pixel is not of that class; and ``pseudo_negatives_right_unranked``, the same if every class but the
            most
        likely one is a negative. Scores without any pixel are omitted.
    """
    kinds = ("", "_reliable", "_unreliable")
    matrices = {kind: ConfusionMatrix(num_classes, ignore_index, device) for kind in kinds}
    negatives = {"": (low_rank, min(high_rank, num_classes)), "_unranked": (1, num_classes)}
    wrong = torch.zeros(1 + len(negatives), dtype=torch.int64, device=device)  # unreliable pixels, then wrong pairs
    with evaluating(teacher), torch.no_grad():
        for image, label, _ in samples:
            image, label = image[None].to(device), label[None].to(device)
            logits = predict_logits(teacher, image, label.shape[-2:], amp_dtype=amp_dtype)
            stats = ops.pixel_stats(logits, label.shape[-2:])  # same size: nothing is resampled
            every = torch.ones_like(stats.entropy, dtype=torch.bool)
            reliable, unreliable, _ = reliability(stats.entropy, every, 1 - alpha)
            known = label != ignore_index
            for matrix, part in zip(matrices.values(), (known, reliable, unreliable), strict=True):
                matrix.update(stats.label, label.masked_fill(~part, ignore_index))
            seen = unreliable & known
            rank = _rank_of_truth(logits, torch.where(seen, label, 0))
            within = [(rank >= low) & (rank < high) & seen for low, high in negatives.values()]
            wrong += torch.stack([seen.sum(), *(part.sum() for part in within)])
    for matrix in matrices.values():
        matrix.all_reduce(group)
    scores = {"pseudo_miou": matrices[""].miou()}
    scores |= {f"pseudo_accuracy{kind}": matrix.pixel_accuracy() for kind, matrix in matrices.items()}
    pixels, *mistakes = all_sum(wrong, group).tolist()
    for (name, (low, high)), count in zip(negatives.items(), mistakes, strict=True):
        pairs = pixels * (high - low)
        scores[f"pseudo_negatives_right{name}"] = 1 - count / pairs if pairs else float("nan")
    return {name: score for name, score in scores.items() if score == score}


def _rank_of_truth(logits: Tensor, label: Tensor) -> Tensor:
    """Return how many classes precede the true one, (B, H, W) of logits (B, C, H, W); ties: lower class first."""
    own = logits.gather(1, label[:, None].long())
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    before = (logits > own) | ((logits == own) & (classes < label[:, None]))
    return before.sum(1)
