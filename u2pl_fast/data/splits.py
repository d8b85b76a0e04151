"""Split a data set into labeled and unlabeled images, by a ratio or by lists."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from ..utils.randomness import generator
from .base import DataError, Entry, SegmentationDataset

QUALITY_IMAGES = 32  # hidden masks that each evaluation compares with pseudo-labels


@dataclass(frozen=True)
class Split:
    """Hold a data set, and the indices of its labeled and unlabeled images (D_u).

    `labels_hidden`: every image is labeled, so D_u is all of them without their labels.
    """

    dataset: SegmentationDataset
    labeled: tuple[int, ...]
    unlabeled: tuple[int, ...]
    labels_hidden: bool = False

    @property
    def ignore_index(self) -> int:
        return self.dataset.ignore_index

    @property
    def hidden_masks(self) -> list[int]:
        """Unlabeled images that have a mask. These masks are used only for metrics."""
        labeled = set(self.labeled)
        return [index for index in self.unlabeled if index not in labeled and self.dataset.has_label(index)]

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return ceil(|D_u| / unlabeled images per step of all processes), the same for every method."""
        return math.ceil(len(self.unlabeled) / global_batch)

    def describe(self) -> str:
        """Return one line for the log."""
        text = f"{len(self.labeled)} labeled and {len(self.unlabeled)} unlabeled images"
        if self.labels_hidden:
            text += " (every image is labeled; all of them are used as unlabeled too, with their labels hidden)"
        return text


@dataclass(frozen=True)
class LabelChoice:
    """Choice of the labeled and unlabeled images of a training split.

    At most one setting selects the labeled images: `labeled_fraction` ("1/8" or 0.125) draws ceil(fraction * n) of the
    n images that have a mask, `num_labeled` draws that number, and `labeled_list` is a file of them. Without any, every
    image that has a mask is labeled. Draws are the first images of one permutation per `seed`, so a smaller labeled
    set is part of every larger one.

    D_u is every other image of the split, and those of `unlabeled_list`, whose masks are not used. If that is none, D_u
    is the whole split with labels hidden.
    """

    seed: int = 0
    labeled_fraction: str | float | None = None
    num_labeled: int | None = None
    labeled_list: Path | str | None = None
    unlabeled_list: Path | str | None = None

    def __post_init__(self) -> None:
        chosen = {
            "--labeled-fraction": self.labeled_fraction,
            "--num-labeled": self.num_labeled,
            "--labeled-list": self.labeled_list,
        }
        given = [flag for flag, value in chosen.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined; give one of them")


def split_dataset(dataset: SegmentationDataset, choice: LabelChoice = LabelChoice()) -> Split:
    """Split a data set into labeled and unlabeled images, and check their files.

    Raises ValueError (a wrong argument) or DataError (files).
    """
    split_size = len(dataset)  # lists may add samples from outside the split
    if choice.labeled_list is not None:
        labeled = dataset.include(read_list(choice.labeled_list), str(choice.labeled_list))
    else:
        labeled = draw_labeled(dataset, choice)
    listed = []
    if choice.unlabeled_list is not None:
        listed = dataset.include(read_unlabeled_list(choice.unlabeled_list), str(choice.unlabeled_list))
    split = divide(dataset, split_size, labeled, listed)
    dataset.check(split.labeled, split.unlabeled)
    return split


def draw_labeled(dataset: SegmentationDataset, choice: LabelChoice) -> list[int]:
    """Draw the labeled images; used without `labeled_list`."""
    with_label = [index for index in range(len(dataset)) if dataset.has_label(index)]
    count = _count(len(with_label), choice.labeled_fraction, choice.num_labeled)
    order = torch.randperm(len(with_label), generator=generator(choice.seed, "split")).tolist()
    return [with_label[position] for position in order[:count]]


def divide(dataset: SegmentationDataset, split_size: int, labeled: Sequence[int], listed: Sequence[int]) -> Split:
    """Return the split with these labeled and listed unlabeled images; the first `split_size` samples are its own."""
    labeled_set = set(labeled)
    unlabeled = [index for index in range(split_size) if index not in labeled_set]
    unlabeled = sorted({*unlabeled, *listed})
    return Split(
        dataset,
        labeled=tuple(sorted(labeled_set)),
        unlabeled=tuple(unlabeled) or tuple(range(split_size)),
        labels_hidden=not unlabeled,
    )


def _count(available: int, fraction: str | float | None, number: int | None) -> int:
    if available == 0:
        raise DataError("no image of the training split has a mask; at least one labeled image is needed")
    if fraction is not None:
        return math.ceil(parse_fraction(fraction) * available)
    if number is None:
        return available
    if not 1 <= number <= available:
        raise ValueError(f"--num-labeled must be 1 .. {available} (the images that have a mask), got {number}")
    return number


def parse_fraction(value: str | float) -> Fraction:
    """Return "1/8", "0.125" or 0.125 as an exact fraction in (0, 1]."""
    try:
        fraction = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction <= 1:
        raise ValueError(f"--labeled-fraction must be above 0 and at most 1, like 1/8 or 0.125, got {value!r}")
    return fraction


def evenly(indices: Sequence[int], number: int) -> list[int]:
    """Return `number` of the indices, evenly spaced, or all if there are no more."""
    if number >= len(indices):
        return list(indices)
    return [indices[position * len(indices) // number] for position in range(number)]


def measured_masks(split: Split, number: int = QUALITY_IMAGES) -> list[int]:
    """Return `number` hidden masks, evenly spaced, that pseudo-labels are compared with."""
    return evenly(split.hidden_masks, number)


def usable_masks(
    dataset: SegmentationDataset, indices: Sequence[int], report: Callable[[DataError], None]
) -> list[int]:
    """Return the indices whose mask can be read; call `report` with the error of each other one."""
    usable = []
    for index in indices:
        try:
            dataset.label(index)
        except DataError as error:
            report(error)
        else:
            usable.append(index)
    return usable


def read_list(path: Path | str) -> list[Entry]:
    """Read a list file: `image`, `image mask` or an id per line; blank lines and lines that start with # are skipped.

    A name with spaces ends at a tab.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # drops a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable UTF-8 list file ({error})") from error
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split("\t") if part.strip()] if "\t" in line else line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) > 2:
            raise DataError(f"{path}, line {number}: expected `image` or `image mask`, got {line!r}")
        entries.append(Entry(parts[0], parts[1] if len(parts) == 2 else None))
    if not entries:
        raise DataError(f"{path}: lists no images")
    return entries


def read_unlabeled_list(path: Path | str) -> list[Entry]:
    """Read a list file of unlabeled images; masks that it names are not used."""
    return [Entry(entry.image, None) for entry in read_list(path)]
