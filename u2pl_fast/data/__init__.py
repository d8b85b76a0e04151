"""Data sets, splits, views and loaders. `build_dataset` opens one by name, `split_dataset` splits it for training."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .ade20k import Ade20kDataset
from .base import DataError, SegmentationDataset
from .cityscapes import CityscapesDataset
from .files import read_image
from .folder import CAMVID_CLASSES, FolderDataset
from .image_format import RGB, ImageFormat
from .loader import LoaderOptions, StepDataset, evaluation_samples, train_loader, whole_images
from .masks import LabelMap, label_map_entries
from .pair_dataset import PairDataset
from .shapes import Shapes
from .splits import LabelChoice, Split, evenly, measured_masks, split_dataset, usable_masks
from .views import MEAN_COLOR, ViewOptions
from .voc import VocDataset

__all__ = [
    "DATASETS",
    "MEAN_COLOR",
    "Ade20kDataset",
    "CityscapesDataset",
    "DataError",
    "FolderDataset",
    "LabelChoice",
    "LabelMap",
    "LoaderOptions",
    "PairDataset",
    "SegmentationDataset",
    "Shapes",
    "Split",
    "StepDataset",
    "ViewOptions",
    "VocDataset",
    "build_dataset",
    "evenly",
    "evaluation_samples",
    "label_map_entries",
    "measured_masks",
    "read_image",
    "split_dataset",
    "train_loader",
    "usable_masks",
    "whole_images",
]

TRAIN_SPLIT = "train"


def _shapes(root: Path | None, split: str, class_names: Sequence[str] | None, label_map: LabelMap | None) -> Shapes:
    if label_map is not None:
        raise ValueError("label_map: shapes draws its own labels; drop --label-map")
    return Shapes(split)


def _camvid(root: Path, split: str, class_names: Sequence[str] | None, label_map: LabelMap | None) -> FolderDataset:
    return FolderDataset(root, split, class_names=class_names, own_classes=CAMVID_CLASSES, label_map=label_map)


def _on_disk(kind: type[PairDataset]) -> Callable[..., SegmentationDataset]:
    def build(root: Path, split: str, class_names: Sequence[str] | None, label_map: LabelMap | None) -> PairDataset:
        return kind(root, split, class_names=class_names, label_map=label_map)

    return build


# To add a data set, register a function (root, split, class_names, label_map) -> SegmentationDataset here.
# `class_names` is None unless the training has fixed the classes; `label_map` is None without --label-map.
DATASETS: dict[str, Callable[..., SegmentationDataset]] = {
    "shapes": _shapes,
    "camvid": _camvid,
    "folder": _on_disk(FolderDataset),
    "voc": _on_disk(VocDataset),
    "cityscapes": _on_disk(CityscapesDataset),
    "ade20k": _on_disk(Ade20kDataset),
}
_WITHOUT_FILES = ("shapes",)


def build_dataset(
    name: str,
    root: Path | str | None,
    split: str,
    *,
    classes_from: SegmentationDataset | Sequence[str] | None = None,
    label_map: Sequence[str] | None = None,
    image_format: ImageFormat = RGB,
    check: bool = True,
) -> SegmentationDataset:
    """Open one split ("train", "val", ...) of a registered data set.

    Every image of a split other than "train" needs a mask. `split_dataset` checks the files of "train".

    Args:
        name: a key of `DATASETS`.
        root: folder of the data set; `shapes` reads none.
        split: name of the split.
        classes_from: training split whose classes this one shares, or their names from a checkpoint.
        label_map: entries of `--label-map`.
        image_format: channels and value range of the images.
        check: check all files of a split other than "train".

    Raises:
        ValueError: the name is unknown.
        DataError: a file or folder cannot be used; the message names it.
    """
    if name not in DATASETS:
        raise ValueError(f"--dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if name not in _WITHOUT_FILES:
        if root is None:
            raise DataError(f"--data-root is missing: {name} needs the folder of its images and masks")
        if not Path(root).is_dir():
            raise DataError(f"--data-root {root}: no such folder")
    values = LabelMap.parse(label_map_entries(label_map)) if label_map else None
    dataset = DATASETS[name](root, split, getattr(classes_from, "class_names", classes_from), values)
    dataset.image_format = image_format
    if check and split != TRAIN_SPLIT:
        dataset.check(range(len(dataset)))
    return dataset
