"""`folder` and `camvid`: `images/<split>/*` with masks of the same name in `labels/<split>/*.png`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..images import RGB, ImageFormat
from .base import Entry, default_ignore_index, label_dtype
from .files import (
    IMAGE_SUFFIXES,
    MASK_SUFFIX,
    DataError,
    check_sizes,
    list_files,
    read_image,
    read_mask,
    thread_count,
)

CAMVID_CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
MAX_SCANNED_MASKS = 4096  # decoding more than this before training takes minutes; every read is checked anyway

_IGNORE_8_BIT = 255
_IGNORE_16_BIT = 65535


class FolderDataset:
    """One split of a folder of images and masks.

    Layout: `root/images/<split>/<id>.<jpg|png|npy|...>`, `root/labels/<split>/<id>.png`, optionally `root/classes.txt`
    with a class name a line. Subfolders belong to the id. An image without a mask is an unlabelled sample.

    Mask values are class ids 0 .. C-1. Ignored pixels are 255 (where C <= 255) or 65535 (in 16-bit files); in
    `label(i)` they are `ignore_index`: 255, or -1 with more than 255 classes.

    The number of classes is that of `class_names`, else of classes.txt, else it is read off all training masks.
    Raises `DataError`, which names the file or the folder.
    """

    image_format: ImageFormat = RGB

    def __init__(self, root: Path | str, split: str, *, class_names: Sequence[str] | None = None) -> None:
        self.root, self.split = Path(root), split
        images = self.root / "images" / split
        if not images.is_dir():
            raise DataError(f"{images}: no such folder; {self._layout()}")
        paths = list_files(images, IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"{images}: no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        masks = list_files(self._masks_folder(split), frozenset({MASK_SUFFIX}))
        self.names = list(paths)
        self._images = list(paths.values())
        self._masks = [masks.get(name) for name in self.names]
        self.class_names = list(class_names) if class_names is not None else self._find_class_names()
        self.num_classes = len(self.class_names)
        self.ignore_index = default_ignore_index(self.num_classes)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        return read_image(self._images[index], self.image_format)

    def has_label(self, index: int) -> bool:
        return self._masks[index] is not None

    def label(self, index: int) -> np.ndarray:
        path = self._masks[index]
        if path is None:
            expected = self._masks_folder(self.split) / (self.names[index] + MASK_SUFFIX)
            raise DataError(f"{self._images[index]}: has no mask (looked for {expected})")
        ids = read_mask(path)
        # 255 can't be an ignored pixel's value where it can be a class, nor 65535 in a file of 8 bits.
        ignore_value = _IGNORE_8_BIT if self.num_classes <= 255 else _IGNORE_16_BIT
        ignored = (ids == ignore_value) | (ids == _IGNORE_16_BIT)
        bad = (ids >= self.num_classes) & ~ignored
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(
                f"{path}: class id {ids[row, column]} (row {row}, column {column}) is out of range; masks hold "
                f"0 .. {self.num_classes - 1}, or {ignore_value} for ignore"
            )
        label = ids.astype(label_dtype(self.num_classes))
        label[ignored] = self.ignore_index
        return label

    def include(self, entries: Sequence[Entry], source: str) -> list[int]:
        """Indices of listed samples. An entry is an id of this split or a path, absolute or relative to the root.

        A path outside the split adds a sample. A named mask replaces the one found by the image's name; one list can't
        name two for the same image.
        """
        by_name = {name: index for index, name in enumerate(self.names)}
        by_path = {path.resolve(): index for index, path in enumerate(self._images)}
        indices = []
        named: dict[int, Path] = {}
        for entry in entries:
            index = by_name.get(entry.image)
            if index is None:
                path = self._listed_file(entry.image, source)
                index = by_path.get(path.resolve())
                if index is None:
                    index = len(self.names)
                    by_name[entry.image] = by_path[path.resolve()] = index
                    self.names.append(Path(entry.image).with_suffix("").as_posix())
                    self._images.append(path)
                    self._masks.append(None)
            if entry.mask is not None:
                mask = self._listed_file(entry.mask, source)
                if named.setdefault(index, mask).resolve() != mask.resolve():
                    raise DataError(f"{source}: {entry.image!r} has two masks, {named[index]} and {mask}; keep one")
                self._masks[index] = mask
            indices.append(index)
        return indices

    def check(self, labeled: Sequence[int], unlabeled: Sequence[int] = ()) -> None:
        """Headers of every file, and the ids of every labelled mask where those are not too many."""
        decoded = set(labeled[:MAX_SCANNED_MASKS])

        def check_sample(index: int) -> None:
            check_sizes(self._images[index], self._masks[index], self.image_format)
            if index in decoded:
                self.label(index)

        def check_image(index: int) -> None:
            check_sizes(self._images[index], None, self.image_format)

        for index in labeled:
            if not self.has_label(index):
                self.label(index)  # raises, naming the missing file
        with ThreadPoolExecutor(thread_count()) as pool:
            list(pool.map(check_sample, labeled))
            list(pool.map(check_image, unlabeled))

    def _masks_folder(self, split: str) -> Path:
        return self.root / "labels" / split

    def _listed_file(self, name: str, source: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise DataError(
                f"{source}: {name!r} is neither an id of the split {self.split!r} nor a file (looked for {path})"
            )
        return path

    def _layout(self) -> str:
        layout = "expected images/<split>/ and labels/<split>/ under the data root"
        folder = self.root / "images"
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        return f"{layout}; splits found there: {', '.join(splits)}" if splits else layout

    def _find_class_names(self) -> list[str]:
        file = self.root / "classes.txt"
        if file.is_file():
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise DataError(f"{file}: is not text in UTF-8 ({error}); save it again as such") from error
            names = [line.strip() for line in lines if line.strip()]
            if not names:
                raise DataError(f"{file}: is empty; write one class name a line, in the order of the ids")
            return names
        paths = list(list_files(self._masks_folder("train"), frozenset({MASK_SUFFIX})).values())
        if not paths:
            raise DataError(
                f"{file}: no such file, and there are no masks in {self._masks_folder('train')} to count classes from"
            )
        with ThreadPoolExecutor(thread_count()) as pool:
            highest = max(pool.map(_highest_id, paths))
        if highest < 0:
            raise DataError(f"{self._masks_folder('train')}: every pixel of every mask is ignored; nothing to learn")
        return [f"class {index}" for index in range(highest + 1)]


def _highest_id(path: Path) -> int:
    """The largest class id of a mask, -1 where all of it is ignored. 255 and 65535 are taken as ignore."""
    ids = read_mask(path)
    ids = ids[(ids != _IGNORE_8_BIT) & (ids != _IGNORE_16_BIT)]
    return int(ids.max()) if ids.size else -1
