"""`folder` and `camvid`: `images/<split>/*` with masks of the same name in `labels/<split>/*.png`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..utils.class_names import numbered_classes
from .base import DataError
from .files import IMAGE_SUFFIXES, MASK_SUFFIX, list_files, read_mask, thread_count
from .masks import IGNORE_8_BIT, IGNORE_16_BIT, LabelMap, looks_binary, present_values
from .pair_dataset import CLASSES_FILE, MAX_SCANNED_MASKS, PairDataset, binary_masks, chosen_classes

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


class FolderDataset(PairDataset):
    """One split of a folder of images and masks.

    Layout: `root/images/<split>/<id>.<jpg|png|npy|...>`, `root/labels/<split>/<id>.png`, optionally `root/classes.txt`
    with one class name per line. Subfolders belong to the id. An image without a mask is unlabeled.

    Mask values are class ids 0 .. C-1. Ignored pixels are 255 (if C <= 255) or 65535 (in 16-bit files).
    `label_map` replaces this meaning.

    Classes come from the first of `class_names`, `own_classes`, classes.txt and the label map that is given; without
    these, all training masks are read to count them. Raises `DataError`, which names the file or folder.
    """

    layout = "images/<split>/ and labels/<split>/"
    masks_name = "labels"

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        own_classes: Sequence[str] | None = None,
        label_map: LabelMap | None = None,
    ) -> None:
        root = Path(root)
        images = root / "images" / self.folder_of(split)
        if not images.is_dir():
            raise DataError(f"{images}: no such folder; {self._splits_found(root)}")
        paths = list_files(images, IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"{images}: no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        masks = list_files(self._masks_folder(root, split), frozenset({MASK_SUFFIX}))
        names = chosen_classes(root, own_classes, class_names, label_map)
        super().__init__(
            root,
            split,
            {name: (path, masks.get(name)) for name, path in paths.items()},
            self._counted_classes(root) if names is None else names,
            label_map,
        )

    @staticmethod
    def folder_of(split: str) -> str:
        """Return the name of the folders of a split."""
        return split

    def id_of(self, name: str) -> str:
        return super().id_of(name).removeprefix(f"images/{self.folder_of(self.split)}/")

    def mask_of(self, image: Path) -> Path | None:
        images = self.root / "images"
        if not image.is_relative_to(images):
            return None
        mask = (self.root / self.masks_name / image.relative_to(images)).with_suffix(MASK_SUFFIX)
        return mask if mask.is_file() else None

    def expected_mask(self, index: int) -> Path:
        return self._masks_folder(self.root, self.split) / (self.names[index] + MASK_SUFFIX)

    def unused_masks(self) -> list[Path]:
        used = set(self._masks)
        folder = self._masks_folder(self.root, self.split)
        files = [path for suffix in sorted(IMAGE_SUFFIXES) for path in list_files(folder, frozenset({suffix})).values()]
        return [path for path in files if path not in used]

    @classmethod
    def _masks_folder(cls, root: Path, split: str) -> Path:
        return root / cls.masks_name / cls.folder_of(split)

    @classmethod
    def _splits_found(cls, root: Path) -> str:
        layout = f"expected {cls.layout} under the data root"
        folder = root / "images"
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        return f"{layout}; splits found there: {', '.join(splits)}" if splits else layout

    @classmethod
    def _counted_classes(cls, root: Path) -> list[str]:
        folder, file = cls._masks_folder(root, "train"), root / CLASSES_FILE
        paths = list(list_files(folder, frozenset({MASK_SUFFIX})).values())
        if not paths:
            raise DataError(f"{file}: no such file, and no masks in {folder} to count classes in")
        if len(paths) > MAX_SCANNED_MASKS:
            raise DataError(
                f"{file}: no such file, and {folder} holds {len(paths)} masks, too many to count classes in at each "
                "start; write the class names to that file, one per line (u2pl doctor counts the classes)"
            )
        with ThreadPoolExecutor(thread_count()) as pool:
            values = set().union(*pool.map(_values, paths))
        if looks_binary(values):
            raise binary_masks(folder)
        highest = highest_class(values)
        if highest < 0:
            raise DataError(f"{folder}: every pixel of every mask is ignored; masks need class ids")
        return numbered_classes(highest + 1)


def highest_class(values: set[int]) -> int:
    """Return the largest class id among mask values, or -1 if there is none. 255 and 65535 count as ignore."""
    return max(values - {IGNORE_8_BIT, IGNORE_16_BIT}, default=-1)


def _values(path: Path) -> list[int]:
    return present_values(read_mask(path))[0].tolist()
