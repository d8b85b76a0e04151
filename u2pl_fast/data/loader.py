"""Training batches as a function of the step, and evaluation samples."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.randomness import generator
from .base import DataError, SegmentationDataset
from .image_format import RGB
from .splits import Split
from .views import ViewOptions, Views, resize_image, view_seed

Item = TypeVar("Item")
CACHE_BYTES = 2**30  # for all loader processes of a rank together
_MAX_WORKERS = 8
_EVALUATION_THREADS = 4


class StepDataset(Dataset):
    """Batches of one rank: item `step` is the batch of that step, a function of (seed, step, rank, world).

    With G = world * batch_size, the global labeled samples of a step are g = step*G .. step*G + G - 1. Sample g is
    number g mod n of a permutation of the n images; each pass g // n has its own permutation. Unlabeled samples follow
    the same rule with `unlabeled_batch_size` (unset: `batch_size`). Rank r takes the samples from step*G +
    r*batch_size on. The number of processes, the number of workers and a restart therefore change nothing.

    A batch is a dict of

    - `images` uint8 (B, N, H, W), `labels` (B, H, W), `labeled_index` int64 (B,): global sample numbers, on the CPU;
    - with `semi`, for U unlabeled images: `weak` uint8 (U, N, H, W); `strong` (V*U, N, H, W) with V = `strong_views`,
      view by view; `valid` bool (U, H, W); `unlabeled_index`; and `window` int64 (U, 10) on the CPU: the image's index
      in the data set and the `Window` of its views.

    `cache_bytes` limits the decoded and resized images that this object keeps; 0 keeps none.
    """

    def __init__(
        self,
        split: Split,
        options: ViewOptions,
        *,
        seed: int,
        batch_size: int,
        unlabeled_batch_size: int | None = None,
        semi: bool = True,
        rank: int = 0,
        world: int = 1,
        cache_bytes: int = 0,
        strong_views: int = 1,
    ) -> None:
        self.split, self.semi, self.seed = split, semi, seed
        self.batch_size, self.rank, self.world, self.strong_views = batch_size, rank, world, strong_views
        self.unlabeled_batch_size = batch_size if unlabeled_batch_size is None else unlabeled_batch_size
        self.views = Views(options, split.ignore_index)
        self._samples = _SampleCache(split.dataset, self.views, cache_bytes)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        samples = self._share(step, self.batch_size)
        labeled = [self._labeled(step, sample) for sample in samples]
        images, labels = (torch.stack(column) for column in zip(*labeled, strict=True))
        batch = {"images": images, "labels": labels, "labeled_index": torch.tensor(samples)}
        if self.semi:
            samples = self._share(step, self.unlabeled_batch_size)
            unlabeled = [self._unlabeled(step, sample) for sample in samples]
            window, weak, *strong, valid = map(torch.stack, zip(*unlabeled, strict=True))
            batch |= {"weak": weak, "strong": torch.cat(strong), "valid": valid, "window": window}
            batch["unlabeled_index"] = torch.tensor(samples)
        return batch

    def _share(self, step: int, number: int) -> range:
        """Return this rank's samples of a step, ``number`` of them."""
        first = (step * self.world + self.rank) * number
        return range(first, first + number)

    def _labeled(self, step: int, sample: int) -> tuple[Tensor, Tensor]:
        index = _drawn(self.split.labeled, self.seed, "labeled", sample)
        seed = view_seed(self.seed, step, sample, "labeled view")
        return self.views.labeled(self._samples.image(index), self._samples.label(index), seed)

    def _unlabeled(self, step: int, sample: int) -> tuple[Tensor, ...]:
        index = _drawn(self.split.unlabeled, self.seed, "unlabeled", sample)
        weak_seed = view_seed(self.seed, step, sample, "weak view")
        views = ("strong view", *(f"strong view {number}" for number in range(1, self.strong_views)))
        strong_seeds = [view_seed(self.seed, step, sample, view) for view in views]
        image = self._samples.image(index)
        window = torch.tensor([index, *self.views.window(image, weak_seed)])
        return window, *self.views.unlabeled(image, weak_seed, *strong_seeds)


def _drawn(indices: Sequence[int], seed: int, purpose: str, sample: int) -> int:
    epoch, position = divmod(sample, len(indices))
    return indices[_order(len(indices), seed, purpose, epoch)[position]]


@lru_cache(maxsize=8)
def _order(length: int, seed: int, purpose: str, epoch: int) -> list[int]:
    return torch.randperm(length, generator=generator(seed, purpose, epoch)).tolist()


class _SampleCache:
    """Cache of decoded and resized samples. It keeps the first ones that fit in `limit` bytes."""

    def __init__(self, dataset: SegmentationDataset, views: Views, limit: int) -> None:
        self._dataset, self._views, self._left = dataset, views, limit
        self._images: dict[int, Tensor] = {}
        self._labels: dict[int, Tensor] = {}

    def image(self, index: int) -> Tensor:
        image = self._images.get(index)
        if image is None:
            image = self._views.prepare(_read(self._dataset, index))
            self._keep(self._images, index, image)
        return image

    def label(self, index: int) -> Tensor:
        label = self._labels.get(index)
        if label is None:
            label = self._views.prepare_label(torch.from_numpy(self._dataset.label(index).copy()))
            self._keep(self._labels, index, label)
        return label

    def _keep(self, where: dict[int, Tensor], index: int, value: Tensor) -> None:
        if value.nbytes <= self._left:
            self._left -= value.nbytes
            where[index] = value


def to_tensor(image: np.ndarray) -> Tensor:
    """Copy uint8 (h, w, N) to a contiguous tensor (N, h, w)."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()


def _read(dataset: SegmentationDataset, index: int) -> Tensor:
    """Return an image after checking its number of channels."""
    image = dataset.image(index)
    wanted = getattr(dataset, "image_format", RGB).channels
    if image.shape[2] != wanted:
        raise DataError(
            f"{dataset.names[index]}: has {image.shape[2]} channels, but in_channels is {wanted}; use --in-channels "
            f"{image.shape[2]}"
        )
    return to_tensor(image)


class _Guarded(Dataset):
    """Return data errors as items: raised in a worker, they would arrive wrapped in its traceback."""

    def __init__(self, steps: StepDataset) -> None:
        self.steps = steps

    def __getitem__(self, step: int) -> dict[str, Tensor] | DataError:
        try:
            return self.steps[step]
        except DataError as error:
            return error


@dataclass(frozen=True)
class LoaderOptions:
    """Options of `train_loader`: the arguments of `StepDataset`, and a few of the loader.

    `cache` keeps decoded images in memory if they fit. `workers` is the number of loader processes per rank; None =
    the rank's share of the cores minus 1, at most 8. `pin_memory` pins batches if there is a GPU.
    """

    views: ViewOptions
    seed: int
    batch_size: int
    unlabeled_batch_size: int | None = None
    semi: bool = True
    strong_views: int = 1
    cache: bool = True
    workers: int | None = None
    pin_memory: bool = True


def train_loader(
    split: Split, options: LoaderOptions, rank: int, world: int, start: int, stop: int
) -> Iterator[dict[str, Tensor]]:
    """Yield this rank's batches (see `StepDataset`) of steps `start` .. `stop - 1`; worker processes prepare them.

    Raises `DataError` if a file cannot be read.
    """
    workers = _default_workers() if options.workers is None else options.workers
    steps = StepDataset(
        split,
        options.views,
        seed=options.seed,
        batch_size=options.batch_size,
        unlabeled_batch_size=options.unlabeled_batch_size,
        semi=options.semi,
        rank=rank,
        world=world,
        cache_bytes=CACHE_BYTES // max(1, workers) if options.cache else 0,
        strong_views=options.strong_views,
    )
    loader = DataLoader(
        _Guarded(steps),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=options.pin_memory and torch.cuda.is_available(),
        generator=generator(options.seed, "loader"),  # without it, the loader would draw from the global one
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            what = " ".join(str(error).split())[:200]
            message = f"workers: a loader process died ({what}), often because memory ran out"
            raise DataError(f"{message}; use fewer --workers, or --no-cache", "process") from error
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _default_workers() -> int:
    """Return this rank's share of the cores minus 1, at most 8."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # only on Linux
    return min(_MAX_WORKERS, max(0, cores // ranks - 1))


def evaluation_samples(
    dataset: SegmentationDataset,
    resize: tuple[int, int] | None = None,
    rank: int = 0,
    world: int = 1,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield (image, label, name) of every `world`-th sample from `rank` on, so that ranks share the images.

    `indices` selects the samples; None = all. The image is uint8 (N, h, w), resized to `resize` if given; the label
    (H, W) keeps its own size. Threads read ahead. Raises `DataError`.
    """

    def read(index: int) -> tuple[Tensor, Tensor, str]:
        label = torch.from_numpy(dataset.label(index).copy())
        return _read_resized(dataset, index, resize), label, dataset.names[index]

    return _read_ahead(read, (range(len(dataset)) if indices is None else indices)[rank::world])


def whole_images(
    dataset: SegmentationDataset, indices: Sequence[int], resize: tuple[int, int] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, image): uint8 (N, h, w), resized to `resize` if given. Reads no mask. Raises `DataError`."""
    return _read_ahead(lambda index: (index, _read_resized(dataset, index, resize)), indices)


def _read_resized(dataset: SegmentationDataset, index: int, resize: tuple[int, int] | None) -> Tensor:
    image = _read(dataset, index)
    return image if resize is None else resize_image(image, resize)


def _read_ahead(read: Callable[[int], Item], indices: Sequence[int]) -> Iterator[Item]:
    """Yield `read` of each index in order; threads read a few ahead."""
    with ThreadPoolExecutor(_EVALUATION_THREADS) as pool:
        pending: deque[Future[Item]] = deque()
        for index in indices:
            pending.append(pool.submit(read, index))
            if len(pending) > 2 * _EVALUATION_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
