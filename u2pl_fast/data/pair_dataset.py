"""Base class of all data sets whose images and masks are files."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from ..utils.class_names import numbered_classes
from .base import DataError, Entry, default_ignore_index
from .files import IMAGE_SUFFIXES, MASK_SUFFIX, check_sizes, header_size, read_image, read_mask, thread_count
from .image_format import RGB, ImageFormat
from .masks import LabelMap, MaskValues, looks_binary, present_values

# Decoding more than this before training takes minutes; every read is checked anyway.
MAX_SCANNED_MASKS = 4096
MAX_SCANNED_PIXELS = 2**31
CLASSES_FILE = "classes.txt"


class PairDataset:
    """One split of images and masks in files; implements `SegmentationDataset`.

    A subclass finds the files of its layout, and the names that lists may use for them. `pairs` is
    `{id: (image, mask or None)}`; an image without a mask is unlabeled. `values_of` gives the meaning of mask values,
    by default class ids. Ignored pixels are `ignore_index` in `label(i)`: 255, or -1 with more than 255 classes.
    Listed paths are relative to one of `bases`.

    Raises `DataError`, which names the file or folder.
    """

    layout = ""  # description of the data root, for messages
    image_format: ImageFormat = RGB

    def __init__(
        self,
        root: Path,
        split: str,
        pairs: Mapping[str, tuple[Path, Path | None]],
        class_names: Sequence[str],
        label_map: LabelMap | None = None,
        bases: Sequence[Path] = (),
    ) -> None:
        self.root, self.split, self.label_map = root, split, label_map
        self.names = list(pairs)
        self.notes: list[str] = []
        self.class_names = list(class_names)
        self.num_classes = len(self.class_names)
        self.ignore_index = default_ignore_index(self.num_classes)
        self._values = MaskValues.class_ids(self.num_classes) if label_map is None else self._mapped(label_map)
        self._images = [image for image, _ in pairs.values()]
        self._masks = [mask for _, mask in pairs.values()]
        self._bases = tuple(dict.fromkeys((root, *bases)))
        self._by_name = {name: index for index, name in enumerate(self.names)}
        self._by_path: dict[Path, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    # --- Reading ------------------------------------------------------------------------------------------------------

    def image(self, index: int) -> np.ndarray:
        return read_image(self._images[index], self.image_format)

    def has_label(self, index: int) -> bool:
        return self._masks[index] is not None

    def label(self, index: int) -> np.ndarray:
        return self._label(index, self._raw_mask(index))

    def image_path(self, index: int) -> Path:
        return self._images[index]

    def mask_path(self, index: int) -> Path | None:
        return self._masks[index]

    def values_of(self, mask: Path) -> MaskValues:
        """Return the meaning of the values in this mask file."""
        return self._values

    def _raw_mask(self, index: int) -> np.ndarray:
        mask = self._masks[index]
        if mask is None:
            expected = self.expected_mask(index)
            raise DataError(f"{self._images[index]}: has no mask (looked for {expected})", "unlabeled")
        return read_mask(mask)

    def _label(self, index: int, ids: np.ndarray) -> np.ndarray:
        values = self.values_of(self._masks[index])
        known = values.known(ids)
        if not known.all():
            row, column = np.argwhere(~known)[0]
            reason = values.refusal(ids[row, column], f"row {row}, column {column}")
            raise DataError(f"{self._masks[index]}: {reason}", "values")
        return values.labels(ids)

    def _mapped(self, label_map: LabelMap) -> MaskValues:
        return label_map.mask_values(self.num_classes)

    # --- Lists --------------------------------------------------------------------------------------------------------

    def include(self, entries: Sequence[Entry], source: str) -> list[int]:
        """Return the indices of listed samples. An entry is an id of this split, or a path, absolute or relative.

        An image outside the split is added. A listed mask replaces the one found by the image's name; a list that
        names two masks for one image is refused.
        """
        indices = []
        named: dict[int, Path] = {}
        for entry in entries:
            index = self._listed_image(entry.image, source)
            if entry.mask is not None:
                mask = self._listed_mask(entry.mask, source)
                first = named.setdefault(index, mask)
                if first != mask and first.resolve() != mask.resolve():
                    raise DataError(f"{source}: {entry.image!r} has two masks, {first} and {mask}; keep one")
                self._masks[index] = mask
            indices.append(index)
        return indices

    def id_of(self, name: str) -> str:
        """Return the id of a listed name: without leading slash, folders of the layout, and suffix."""
        return without_suffix(name.lstrip("/"))

    def places(self, sample_id: str) -> Iterator[Path]:
        """Yield the paths where an image outside this split can be, by its id."""
        for suffix in sorted(IMAGE_SUFFIXES):
            yield self.root / (sample_id + suffix)

    def mask_names(self, name: str) -> Iterator[str]:
        """Yield the names that a listed mask may have here, best first."""
        yield name
        yield name + MASK_SUFFIX

    def mask_of(self, image: Path) -> Path | None:
        """Return the mask of an image outside this split, found by its name, or None."""
        return None

    def expected_mask(self, index: int) -> Path:
        """Return the path where the mask of a sample is expected."""
        raise NotImplementedError

    def unused_masks(self) -> list[Path]:
        """Return image files in the split's folder of masks that are not the mask of any image."""
        return []

    def _listed_image(self, name: str, source: str) -> int:
        if name in self._by_name:
            return self._by_name[name]
        path = self._file(name)
        sample_id = self.id_of(name)
        if path is None:
            if sample_id in self._by_name:
                return self._by_name[sample_id]
            path = next(filter(_is_file, self.places(sample_id)), None)
        if path is None:
            raise DataError(
                f"{source}: {name!r} is neither an id of the split {self.split!r} nor a file "
                f"(looked for {self.root / name.lstrip('/')})"
            )
        if not self._by_path:
            self._by_path = {image.resolve(): index for index, image in enumerate(self._images)}
        index = self._by_path.setdefault(path.resolve(), len(self.names))
        if index == len(self.names):
            self.names.append(sample_id)
            self._images.append(path)
            self._masks.append(self.mask_of(path))
        self._by_name[name] = index
        return index

    def _listed_mask(self, name: str, source: str) -> Path:
        for candidate in self.mask_names(name):
            path = self._file(candidate)
            if path is not None:
                return path
        raise DataError(f"{source}: the mask {name!r} does not exist (looked for {self.root / name.lstrip('/')})")

    def _file(self, name: str) -> Path | None:
        """Return the file of this name: absolute, or relative to one of the bases, with or without a leading slash."""
        for base in self._bases:
            for path in dict.fromkeys((base / name, base / name.lstrip("/"))):
                if _is_file(path):
                    return path
        return None

    # --- Checking -----------------------------------------------------------------------------------------------------

    def check(self, labeled: Sequence[int], unlabeled: Sequence[int] = ()) -> None:
        """Check the headers of all files, and the values of labeled masks unless there are too many."""
        for index in labeled:
            if not self.has_label(index):
                self._raw_mask(index)  # raises, naming the missing file
        decoded = set(labeled[: self._scanned(labeled)])

        def check_sample(index: int) -> list[int]:
            check_sizes(self._images[index], self._masks[index], self.image_format)
            if index not in decoded:
                return []
            ids = self._raw_mask(index)
            present = present_values(ids)[0]
            if not self.values_of(self._masks[index]).known(present).all():
                self._label(index, ids)  # raises, naming the pixel
            return present.tolist()

        def check_image(index: int) -> None:
            check_sizes(self._images[index], None, self.image_format)

        with ThreadPoolExecutor(thread_count()) as pool:
            present = set().union(*pool.map(check_sample, labeled))
            list(pool.map(check_image, unlabeled))
        if self.label_map is None and looks_binary(present):
            raise binary_masks(self._masks[labeled[0]].parent)

    def _scanned(self, labeled: Sequence[int]) -> int:
        """Return the number of masks to decode before training, assuming that all have the size of the first."""
        if not labeled:
            return 0
        width, height = header_size(self._masks[labeled[0]])
        return min(MAX_SCANNED_MASKS, max(1, MAX_SCANNED_PIXELS // (width * height)))


def binary_masks(folder: Path) -> DataError:
    return DataError(
        f"{folder}: masks hold only 0 and 255, and 255 means ignore; for black and white masks of two classes add "
        "--label-map 0:0 255:1"
    )


def chosen_classes(
    root: Path, own: Sequence[str] | None, fixed: Sequence[str] | None, label_map: LabelMap | None
) -> list[str] | None:
    """Return the class names of a data set, or None if the masks have to be read to count the classes.

    Without a label map, the names are `own` if the data set has any, else the training's `fixed` names, else those of
    classes.txt. With a map they are `fixed` if given. Otherwise the map sets the number of classes, and the names are
    `own` if that is their number, else those of classes.txt unless there are more, else numbers.
    """
    if own is not None and label_map is None:
        return list(own)
    if fixed is not None:
        return list(fixed)
    if label_map is None:
        return read_classes_file(root)
    if own is not None and len(own) == label_map.num_classes:
        return list(own)
    names = read_classes_file(root)
    if names is None or len(names) > label_map.num_classes:  # too few names are refused later
        return numbered_classes(label_map.num_classes)
    return names


def read_classes_file(root: Path) -> list[str] | None:
    """Return the names in root/classes.txt, or None if there is no such file. Raises `DataError`."""
    file = root / CLASSES_FILE
    if not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text ({error}); save it as UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{file}: is empty; write one class name per line, in the order of the ids")
    return names


def find_root(given: Path | str, inside: Sequence[str], holds: str, layout: str) -> Path:
    """Return `given`, or the first folder of `inside` below it, that has a subfolder named `holds`."""
    for folder in (Path(given), *(Path(given, name) for name in inside)):
        if (folder / holds).is_dir():
            return folder
    raise DataError(f"{Path(given) / holds}: no such folder; expected {layout} under the data root")


def without_suffix(name: str) -> str:
    """Return `name` without the suffix of an image file; other dots are kept."""
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long to be one
        return False
