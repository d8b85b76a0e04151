"""Decode all files of a data set without stopping at errors."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from ..data import DataError, PairDataset
from ..data.files import read_mask, thread_count
from ..data.masks import present_values


@dataclass
class Sample:
    """One image and its mask. Sizes are (height, width); equal pixels have equal `digest`; `counts` are the pixels of
    each of `values` in the mask file."""

    split: str
    index: int
    name: str
    image: Path
    mask: Path | None
    image_error: DataError | None = None
    mask_error: DataError | None = None
    image_size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    digest: bytes | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def title(self) -> str:
        return f"{self.split}/{self.name}"


def examine(dataset: PairDataset, index: int) -> Sample:
    """Decode both files of a sample, and keep their errors."""
    mask = dataset.mask_path(index)
    sample = Sample(dataset.split, index, dataset.names[index], dataset.image_path(index), mask)
    try:
        pixels = dataset.image(index)
        sample.image_size = pixels.shape[:2]
        sample.digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    except DataError as error:
        sample.image_error = error
    if mask is not None:
        try:
            ids = read_mask(mask)
            sample.mask_size = ids.shape
            sample.values, sample.counts = present_values(ids)
        except DataError as error:
            sample.mask_error = error
    return sample


def scan(jobs: Iterable[tuple[PairDataset, Sequence[int]]], progress: Progress) -> list[Sample]:
    """Return the samples of these indices of data sets, in order, decoded by several threads."""
    tasks = [(dataset, index) for dataset, indices in jobs for index in indices]
    with progress, ThreadPoolExecutor(thread_count()) as pool:
        return list(progress.track(pool.map(lambda task: examine(*task), tasks), total=len(tasks)))


def shares(sizes: Sequence[int], total: int | None) -> list[int]:
    """Return the number of files to check in each group, `total` in all, as even as the sizes of the groups allow."""
    if total is None:
        return list(sizes)
    taken = [0] * len(sizes)
    left = total
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    for position, group in enumerate(by_size):
        taken[group] = min(sizes[group], left // (len(sizes) - position))
        left -= taken[group]
    return taken
