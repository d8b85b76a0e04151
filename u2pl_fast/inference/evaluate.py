"""Score a network on a data set: mean IoU from one confusion matrix."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.distributed import Group, all_sum
from .metrics import ConfusionMatrix
from .predict import Protocol, Sample, evaluating, predict_labels


def evaluate_model(
    model: nn.Module,
    samples: Iterable[Sample],
    *,
    num_classes: int,
    ignore_index: int = 255,
    device: torch.device | str = "cpu",
    protocol: Protocol = "whole",
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    batch_size: int = 8,
    group: Group = None,
) -> dict[str, Any]:
    """Return the mean IoU of a network on a data set, from one confusion matrix that counts each image once.

    Consecutive images of equal size share a batch. The model returns to its previous mode.

    Args:
        model: see :func:`predict_labels`; the network itself, not a DDP wrapper.
        samples: ``(image uint8 (N, h, w), label (H, W), name)``, CPU tensors; with ``group``, this process's share,
            which must not overlap with others.
        num_classes: C.
        ignore_index: label of pixels without truth.
        device: where the model is.
        protocol, window, stride, flip, scales, amp_dtype: see :func:`predict_labels`.
        channels_last: pass images to the network in this memory format.
        batch_size: largest number of images per forward pass.
        group: processes whose counts are added; every process returns the same dict.

    Returns:
        ``miou`` (mean over the classes in truth or prediction), ``iou_per_class`` (None for a class in neither),
        ``confusion`` (rows = truth), ``protocol``, ``images`` and ``pixel_accuracy``: plain values, ready for JSON.

    Raises:
        ValueError: labels are out of range, or no pixel has a label.
    """
    confusion = ConfusionMatrix(num_classes, ignore_index, device)
    images = 0
    with evaluating(model):
        for image, label in _batches(samples, batch_size):
            images += image.shape[0]
            image, label = (x.to(device, non_blocking=True) for x in (image, label))
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            stats = predict_labels(
                model,
                image,
                label.shape[-2:],
                protocol=protocol,
                window=window,
                stride=stride,
                flip=flip,
                scales=scales,
                amp_dtype=amp_dtype,
            )
            confusion.update(stats.label, label)
    confusion.all_reduce(group)
    images = int(all_sum(torch.tensor(images, device=device), group))
    matrix = confusion.checked()
    if not matrix.any():
        raise ValueError(f"samples: none of the {images} images has a labeled pixel; use a split with labels")
    iou = confusion.iou().tolist()
    return {
        "miou": confusion.miou(),
        "iou_per_class": [None if value != value else value for value in iou],
        "confusion": matrix.tolist(),
        "protocol": protocol,
        "images": images,
        "pixel_accuracy": confusion.pixel_accuracy(),
    }


def _batches(samples: Iterable[Sample], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield stacked runs of consecutive samples with equal image and label sizes."""
    run: list[tuple[Tensor, Tensor]] = []
    shapes = None
    for image, label, _ in samples:
        here = (image.shape, label.shape)
        if run and (here != shapes or len(run) == batch_size):
            yield torch.stack([x for x, _ in run]), torch.stack([y for _, y in run])
            run = []
        shapes = here
        run.append((image, label))
    if run:
        yield torch.stack([x for x, _ in run]), torch.stack([y for _, y in run])
