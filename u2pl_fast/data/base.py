"""What a data set is to the rest of the package."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .image_format import ImageFormat


class DataError(ValueError):
    """A data set that cannot be used as it is. The message names the file or folder and what to do about it.

    `kind` tells apart what befalls single files: missing, unreadable, color, lossy, bits, size, values, unlabeled.
    It is "process" where a loader process died, and "other" for everything else.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


class Entry(NamedTuple):
    """One line of a list file: an image and, where the line names one, its mask (paths, or a bare id)."""

    image: str
    mask: str | None


class SegmentationDataset(Protocol):
    """Images with class ids for some of them. Reading must be a pure function of the index.

    `names[i]` identifies sample i in messages and output files. `notes` are lines for the log: what was found, where
    that is not what one might expect. `include` turns list entries into indices, adding samples that are not in the
    split yet; `check` raises `DataError` for what can be known before training, `labeled` and `unlabeled` being the
    indices that will be read with and without their labels. `image_format` says what `image` is to return; it is set
    after the data set is opened.
    """

    names: list[str]
    notes: list[str]
    class_names: list[str]
    num_classes: int
    ignore_index: int
    image_format: ImageFormat

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, N), RGB where N is 3."""
        ...

    def label(self, index: int) -> np.ndarray:
        """(H, W), uint8, or int16 where ids or `ignore_index` don't fit."""
        ...

    def has_label(self, index: int) -> bool: ...

    def include(self, entries: Sequence[Entry], source: str) -> list[int]: ...

    def check(self, labeled: Sequence[int], unlabeled: Sequence[int] = ()) -> None: ...


def default_ignore_index(num_classes: int) -> int:
    """255, or -1 where 255 could be a class."""
    return 255 if num_classes <= 255 else -1


def label_dtype(num_classes: int) -> type[np.generic]:
    """The smallest that holds every class id and the ignore index."""
    return np.uint8 if num_classes <= 255 else np.int16
