"""Images and masks in files: what the data sets on disk share, whatever their folders are called."""

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
    """One split of images and masks in files, as the rest of the package sees it (`SegmentationDataset`).

    A layout is a subclass: it finds the files, and says what a list may call them. `pairs` is
    `{id: (image, mask or None)}`; an image without a mask is an unlabeled sample. Masks hold what `values_of` says,
    by default class ids, and in `label(i)` their ignored pixels are `ignore_index`: 255, or -1 with more than 255
    classes. `bases` are the folders that listed paths may be relative to.

    Raises `DataError`, which names the file or the folder.
    """

    layout = ""  # what the data root holds, in words
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
        """What the values in this mask file mean."""
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
        """Indices of listed samples. An entry is an id of this split, or a path, absolute or relative to the root.

        What lies outside the split adds a sample. A named mask replaces the one found by the image's name; one list
        can't name two for the same image.
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
        """The id of what a list calls `name`: the same without a leading slash, folders of the layout, and suffix."""
        return without_suffix(name.lstrip("/"))

    def places(self, sample_id: str) -> Iterator[Path]:
        """Where the image of an id may lie when it isn't in this split."""
        for suffix in sorted(IMAGE_SUFFIXES):
            yield self.root / (sample_id + suffix)

    def mask_names(self, name: str) -> Iterator[str]:
        """What the mask that a list calls `name` may be called here, best first."""
        yield name
        yield name + MASK_SUFFIX

    def mask_of(self, image: Path) -> Path | None:
        """The mask of an image outside this split, found by its name."""
        return None

    def expected_mask(self, index: int) -> Path:
        """Where the mask of a sample that has none was looked for."""
        raise NotImplementedError

    def unused_masks(self) -> list[Path]:
        """Image files in the split's folder of masks that no image takes for its mask."""
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
        raise DataError(f"{source}: the mask {name!r} is no file (looked for {self.root / name.lstrip('/')})")

    def _file(self, name: str) -> Path | None:
        """The file of this name: an absolute path, or relative to one of the bases, with or without a first slash."""
        for base in self._bases:
            for path in dict.fromkeys((base / name, base / name.lstrip("/"))):
                if _is_file(path):
                    return path
        return None

    # --- Checking -----------------------------------------------------------------------------------------------------

    def check(self, labeled: Sequence[int], unlabeled: Sequence[int] = ()) -> None:
        """Headers of every file, and the values of every labeled mask where those are not too many."""
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
        """How many masks to decode before training, as if all were of the first one's size."""
        if not labeled:
            return 0
        width, height = header_size(self._masks[labeled[0]])
        return min(MAX_SCANNED_MASKS, max(1, MAX_SCANNED_PIXELS // (width * height)))


def binary_masks(folder: Path) -> DataError:
    return DataError(
        f"{folder}: masks hold 0 and 255 alone, and 255 means ignore; for black and white masks of two classes add "
        "--label-map 0:0 255:1"
    )


def chosen_classes(
    root: Path, own: Sequence[str] | None, fixed: Sequence[str] | None, label_map: LabelMap | None
) -> list[str] | None:
    """The class names of a data set, None where only its masks can tell.

    Without a label map they are the data set's `own`. Where it has none, or with a map, the training's `fixed` ones
    come first. A map alone decides how many there are: the names are `own` if those are as many, else those of
    classes.txt unless those are more, else numbers.
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
    if names is None or len(names) > label_map.num_classes:  # those of fewer classes are refused later
        return numbered_classes(label_map.num_classes)
    return names


def read_classes_file(root: Path) -> list[str] | None:
    """The names in root/classes.txt, None where there is no such file. Raises `DataError`."""
    file = root / CLASSES_FILE
    if not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not text in UTF-8 ({error}); save it again as such") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{file}: is empty; write one class name a line, in the order of the ids")
    return names


def find_root(given: Path | str, inside: Sequence[str], holds: str, layout: str) -> Path:
    """`given`, or the first folder of `inside` below it, that holds a folder called `holds`."""
    for folder in (Path(given), *(Path(given, name) for name in inside)):
        if (folder / holds).is_dir():
            return folder
    raise DataError(f"{Path(given) / holds}: no such folder; expected {layout} under the data root")


def without_suffix(name: str) -> str:
    """`name` without an image file's suffix; other dots belong to it."""
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long to be one
        return False
