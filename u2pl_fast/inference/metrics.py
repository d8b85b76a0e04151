"""Compute mean intersection over union from one confusion matrix, kept on the device until a score is read."""

import torch
from torch import Tensor

from ..reference import check_ignore_index
from ..utils.distributed import Group, all_sum

# A good network fills few bins, where a GPU's atomics would wait for each other. Counts are spread over copies of the
# matrix instead. Sums of integers do not depend on the order.
_SCATTER_BINS = 1 << 16


class ConfusionMatrix:
    """Count (truth, prediction) pairs over any number of images.

    ``matrix[t, p]`` is the number of pixels of class ``t`` predicted as ``p``. Pixels labeled ``ignore_index`` are not
    counted. An update never synchronizes with the host: labels or predictions outside ``0..C-1`` are counted on the
    device, and raise a ``ValueError`` when a score is read. Counts are int64, so the result does not depend on the
    order of the images, the batch size or the number of processes.

    Args:
        num_classes: C, at least 1.
        ignore_index: label of pixels without truth; must be outside ``0..C-1``.
        device: where the counts are.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu") -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        check_ignore_index(ignore_index, num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # The C·C pairs, then three overflow bins: ignored pixels, labels out of range, predictions out of range.
        self._counts = torch.zeros(num_classes * num_classes + 3, dtype=torch.int64, device=device)

    @property
    def matrix(self) -> Tensor:
        """Return the counts so far, unchecked: int64 ``(C, C)`` on the device, rows = truth. Not a copy."""
        return self._counts[:-3].view(self.num_classes, self.num_classes)

    def reset(self) -> None:
        """Set all counts to 0."""
        self._counts.zero_()

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count the pixels of ``pred`` against those of ``label``: equal shapes, any integer dtypes."""
        for name, value in (("pred", pred), ("label", label)):
            if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
                raise TypeError(f"{name} must hold integer classes, got {value.dtype}")
        if pred.shape != label.shape:
            raise ValueError(f"pred {tuple(pred.shape)} and label {tuple(label.shape)} must have the same shape")
        device = self._counts.device
        pred = pred.to(device, torch.int64).flatten()
        label = label.to(device, torch.int64).flatten()
        classes = self.num_classes
        ignored = classes * classes
        index = label * classes + pred
        index.masked_fill_((pred < 0) | (pred >= classes), ignored + 2)
        index.masked_fill_((label < 0) | (label >= classes), ignored + 1)
        index.masked_fill_(label == self.ignore_index, ignored)
        self._counts += _histogram(index, ignored + 3)

    def all_reduce(self, group: Group) -> None:
        """Add the counts of all processes of ``group``; call it once, after the last update."""
        self._counts = all_sum(self._counts, group)

    def checked(self) -> Tensor:
        """Return the matrix as int64 ``(C, C)`` on the CPU.

        Raises:
            ValueError: labels or predictions were out of range; the message says how many.
        """
        counts = self._counts.cpu()
        bad_labels, bad_predictions = counts[-2:].tolist()
        last = self.num_classes - 1
        if bad_labels:
            raise ValueError(
                f"{bad_labels} label pixels are neither a class 0..{last} nor ignore_index {self.ignore_index}: "
                "check the masks, num_classes and ignore_index"
            )
        if bad_predictions:
            raise ValueError(f"{bad_predictions} predicted pixels lie outside 0..{last}: check num_classes")
        return counts[:-3].view(self.num_classes, self.num_classes).clone()

    def iou(self) -> Tensor:
        """Return ``IoU_c = n_cc / (Σ_p n_cp + Σ_t n_tc − n_cc)``: float64 ``(C,)`` on the CPU.

        It is NaN for a class that is neither in the truth nor in the predictions.
        """
        matrix = self.checked().double()
        hits = matrix.diagonal()
        return hits / (matrix.sum(1) + matrix.sum(0) - hits)

    def miou(self) -> float:
        """Return the mean of :meth:`iou` over the classes in truth or prediction, as VOC and Cityscapes define it.

        It is NaN if nothing was counted.
        """
        return self.iou().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Return the share of labeled pixels that were predicted correctly; NaN if nothing was counted."""
        matrix = self.checked().double()
        return (matrix.diagonal().sum() / matrix.sum()).item()


def _histogram(index: Tensor, bins: int) -> Tensor:
    """Return how often each of ``0..bins-1`` occurs in the 1-D int64 ``index``, without a host synchronization."""
    # On a GPU, bincount reads the largest value back to the host to determine the size of its result.
    return torch.bincount(index, minlength=bins) if index.device.type == "cpu" else _scatter_histogram(index, bins)


def _scatter_histogram(index: Tensor, bins: int) -> Tensor:
    copies = max(1, _SCATTER_BINS // bins)
    lane = torch.arange(index.numel(), device=index.device) % copies
    counts = torch.zeros(copies * bins, dtype=torch.int64, device=index.device)
    counts.scatter_add_(0, lane * bins + index, torch.ones_like(index))
    return counts.view(copies, bins).sum(0)
