"""Which images are labelled and which are unlabelled: any ratio, or lists."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from ..utils.randomness import generator
from .base import DataError, Entry, SegmentationDataset


@dataclass(frozen=True)
class Split:
    """A data set and the indices of its two parts. `unlabeled` is D_u.

    `labels_hidden`: every image is labelled, so D_u is all of them without their labels.
    """

    dataset: SegmentationDataset
    labeled: tuple[int, ...]
    unlabeled: tuple[int, ...]
    labels_hidden: bool = False

    @property
    def ignore_index(self) -> int:
        return self.dataset.ignore_index

    def steps_per_epoch(self, global_batch: int) -> int:
        """ceil(|D_u| / unlabelled images in a step of all processes), for every method, so that epochs compare."""
        return math.ceil(len(self.unlabeled) / global_batch)

    def describe(self) -> str:
        """One line for the log."""
        text = f"{len(self.labeled)} labelled and {len(self.unlabeled)} unlabelled images"
        if self.labels_hidden:
            text += " (every image is labelled, so all of them serve as unlabelled too, with their labels hidden)"
        return text


def split_dataset(
    dataset: SegmentationDataset,
    *,
    seed: int,
    labeled_fraction: str | float | None = None,
    num_labeled: int | None = None,
    labeled_list: Path | str | None = None,
    unlabeled_list: Path | str | None = None,
) -> Split:
    """`choose_split`, and a check of the files of its images.

    Raises ValueError (a wrong argument) or DataError (files).
    """
    split = choose_split(
        dataset,
        seed=seed,
        labeled_fraction=labeled_fraction,
        num_labeled=num_labeled,
        labeled_list=labeled_list,
        unlabeled_list=unlabeled_list,
    )
    dataset.check(split.labeled, split.unlabeled)
    return split


def choose_split(
    dataset: SegmentationDataset,
    *,
    seed: int,
    labeled_fraction: str | float | None = None,
    num_labeled: int | None = None,
    labeled_list: Path | str | None = None,
    unlabeled_list: Path | str | None = None,
) -> Split:
    """Split into labelled and unlabelled images.

    At most one of the first three chooses the labelled images: `labeled_fraction` ("1/8" or 0.125) takes
    ceil(fraction * n) of the n images that have a mask, `num_labeled` that many, `labeled_list` those of a file;
    none: all that have a mask. Drawn ones are the first of one permutation per seed, so a smaller labelled set is
    part of every larger one. D_u is every other image of the split plus those of `unlabeled_list`, whose masks, where
    it names any, are not used; where that is nothing, it is the whole split with labels hidden.

    Raises ValueError (a wrong argument) or DataError (files).
    """
    chosen = {
        "--labeled-fraction": labeled_fraction,
        "--num-labeled": num_labeled,
        "--labeled-list": labeled_list,
    }
    given = [flag for flag, value in chosen.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")

    split_size = len(dataset)  # lists may add samples from outside the split
    if labeled_list is not None:
        labeled = dataset.include(read_list(labeled_list), str(labeled_list))
    else:
        labeled = draw_labeled(dataset, seed=seed, labeled_fraction=labeled_fraction, num_labeled=num_labeled)
    listed = []
    if unlabeled_list is not None:
        listed = dataset.include(read_unlabeled_list(unlabeled_list), str(unlabeled_list))
    return divide(dataset, split_size, labeled, listed)


def draw_labeled(
    dataset: SegmentationDataset, *, seed: int, labeled_fraction: str | float | None, num_labeled: int | None
) -> list[int]:
    """The labelled images that `choose_split` takes where no list names them."""
    with_label = [index for index in range(len(dataset)) if dataset.has_label(index)]
    count = _count(len(with_label), labeled_fraction, num_labeled)
    order = torch.randperm(len(with_label), generator=generator(seed, "split")).tolist()
    return [with_label[position] for position in order[:count]]


def divide(dataset: SegmentationDataset, split_size: int, labeled: Sequence[int], listed: Sequence[int]) -> Split:
    """The two parts, given the labelled and the listed unlabelled images; the first `split_size` are the split's."""
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
        raise DataError("no image of the training split has a mask; at least one labelled image is needed")
    if fraction is not None:
        return math.ceil(parse_fraction(fraction) * available)
    if number is None:
        return available
    if not 1 <= number <= available:
        raise ValueError(f"--num-labeled must be 1 .. {available} (the images that have a mask), got {number}")
    return number


def parse_fraction(value: str | float) -> Fraction:
    """ "1/8", "0.125" or 0.125 as an exact fraction in (0, 1]."""
    try:
        fraction = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction <= 1:
        raise ValueError(f"--labeled-fraction must be above 0 and at most 1, like 1/8 or 0.125, got {value!r}")
    return fraction


def evenly(indices: Sequence[int], number: int) -> list[int]:
    """`number` of the indices, evenly spaced, or all where there are no more."""
    if number >= len(indices):
        return list(indices)
    return [indices[position * len(indices) // number] for position in range(number)]


def read_list(path: Path | str) -> list[Entry]:
    """A list file: `image`, `image mask` or a bare id a line; blank lines and lines that start with # are skipped.

    Names that contain spaces are ended by a tab.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # a byte order mark is no part of the first name
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list file in UTF-8 ({error})") from error
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
    """The same for unlabelled images: masks that it names are not used."""
    return [Entry(entry.image, None) for entry in read_list(path)]
