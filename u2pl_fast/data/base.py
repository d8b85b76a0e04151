"""Interface of a data set."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .image_format import ImageFormat


class DataError(ValueError):
    """Error of a data set that cannot be used. The message names the file or folder, and the fix.

    `kind` is the problem of a single file, such as "missing", "unreadable", "color", "size" or "values"; "process" if
    a loader process died; "other" for everything else.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


class Entry(NamedTuple):
    """Line of a list file: an image and, if the line names one, its mask (paths, or a bare id)."""

    image: str
    mask: str | None


class SegmentationDataset(Protocol):
    """Images, some with masks. Reading must be a pure function of the index.

    Attributes:
        names: name of each sample in messages and output files.
        notes: lines for the log about files that differ from what a user may expect.
        class_names: names of the classes, by class id.
        num_classes: C.
        ignore_index: label of ignored pixels.
        image_format: channels and value range that `image` returns; set after the data set is opened.
    """

    names: list[str]
    notes: list[str]
    class_names: list[str]
    num_classes: int
    ignore_index: int
    image_format: ImageFormat

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """Return the image: uint8 (H, W, N), RGB if N is 3."""
        ...

    def label(self, index: int) -> np.ndarray:
        """Return the mask: (H, W), uint8, or int16 if ids or `ignore_index` do not fit."""
        ...

    def has_label(self, index: int) -> bool: ...

    def include(self, entries: Sequence[Entry], source: str) -> list[int]:
        """Return the indices of list entries; add samples that are not in the split. `source` names the list."""
        ...

    def check(self, labeled: Sequence[int], unlabeled: Sequence[int] = ()) -> None:
        """Raise `DataError` for files of these samples that cannot be used with (or without) their labels."""
        ...


def default_ignore_index(num_classes: int) -> int:
    """Return 255, or -1 if 255 can be a class."""
    return 255 if num_classes <= 255 else -1


def label_dtype(num_classes: int) -> type[np.generic]:
    """Return the smallest type that holds every class id and the ignore index."""
    return np.uint8 if num_classes <= 255 else np.int16
