"""Data sets, splits, views and loaders. `build_dataset` opens one by name, `training_data` splits it for training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..images import RGB, ImageFormat
from .base import SegmentationDataset
from .files import DataError, read_image
from .folder import CAMVID_CLASSES, FolderDataset
from .loader import StepDataset, evaluation_samples, train_loader
from .shapes import Shapes
from .splits import Split, split_dataset
from .views import MEAN_COLOR, ViewOptions

if TYPE_CHECKING:
    from ..config import TrainConfig

__all__ = [
    "DATASETS",
    "MEAN_COLOR",
    "DataError",
    "FolderDataset",
    "SegmentationDataset",
    "Shapes",
    "Split",
    "StepDataset",
    "ViewOptions",
    "build_dataset",
    "evaluation_samples",
    "read_image",
    "split_dataset",
    "train_loader",
    "training_data",
]

TRAIN_SPLIT = "train"


def _shapes(root: Path | str | None, split: str, class_names: Sequence[str] | None) -> SegmentationDataset:
    return Shapes(split)


def _camvid(root: Path | str | None, split: str, class_names: Sequence[str] | None) -> SegmentationDataset:
    return FolderDataset(_existing(root, "camvid"), split, class_names=CAMVID_CLASSES)


def _folder(root: Path | str | None, split: str, class_names: Sequence[str] | None) -> SegmentationDataset:
    return FolderDataset(_existing(root, "folder"), split, class_names=class_names)


# To add a data set, write `(root, split, class_names) -> SegmentationDataset` and name it here; `class_names` is None
# unless a training has fixed them.
DATASETS: dict[str, Callable[..., SegmentationDataset]] = {"shapes": _shapes, "camvid": _camvid, "folder": _folder}


def build_dataset(
    name: str,
    root: Path | str | None,
    split: str,
    *,
    classes_from: SegmentationDataset | Sequence[str] | None = None,
    image_format: ImageFormat = RGB,
) -> SegmentationDataset:
    """One split ("train", "val", ...) of a registered data set. `root` is not read by `shapes`.

    `classes_from` is the training split whose classes this one shares, or their names, as a checkpoint has them.
    `image_format` is what its images are read as.
    Every split but "train" is for scoring: each of its images must have a mask, and all files are checked here.

    Raises ValueError for an unknown name, `DataError` for files and folders, naming what was looked for.
    """
    if name not in DATASETS:
        raise ValueError(f"--dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    dataset = DATASETS[name](root, split, getattr(classes_from, "class_names", classes_from))
    dataset.image_format = image_format
    if split != TRAIN_SPLIT:
        dataset.check(range(len(dataset)))
    return dataset


def training_data(config: "TrainConfig") -> Split:
    """The training split of the config's data set, divided and checked as the config says."""
    return split_dataset(
        build_dataset(config.dataset, config.data_root, TRAIN_SPLIT, image_format=config.image_format),
        seed=config.seed,
        labeled_fraction=config.labeled_fraction,
        num_labeled=config.num_labeled,
        labeled_list=config.labeled_list,
        unlabeled_list=config.unlabeled_list,
    )


def _existing(root: Path | str | None, name: str) -> Path:
    if root is None:
        raise DataError(f"--data-root is missing: {name} needs the folder that holds images/ and labels/")
    if not Path(root).is_dir():
        raise DataError(f"--data-root {root}: no such folder")
    return Path(root)
