"""`cityscapes`: the data set as downloaded. Its labelIds become the 19 classes when they are read."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .base import DataError
from .files import IMAGE_SUFFIXES, MASK_SUFFIX, list_files
from .masks import IGNORE_8_BIT, LabelMap, MaskValues
from .pair_dataset import PairDataset, chosen_classes, find_root

# Class and its id in *_labelIds.png. Its id in *_labelTrainIds.png is its position here.
CITYSCAPES_LABEL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
LABEL_IDS, TRAIN_IDS = "_labelIds", "_labelTrainIds"
SPLITS = ("train", "train_extra", "val", "test")

_IMAGE_END = "_leftImg8bit"
_MASK_END = "_gtFine"
_MASK_ENDS = (_MASK_END + LABEL_IDS, _MASK_END + TRAIN_IDS)  # the first is preferred


class CityscapesDataset(PairDataset):
    """One split of Cityscapes; an id is `CITY/CITY_000000_000019`.

    Images are `leftImg8bit/<split>/CITY/*_leftImg8bit.png`, masks `gtFine/<split>/CITY/*_gtFine_labelIds.png`, or
    `*_labelTrainIds.png` if only those exist. A label map applies to the values in these files.
    """

    layout = f"leftImg8bit/<split>/CITY/*{_IMAGE_END}.png and gtFine/<split>/CITY/*{_MASK_END}{LABEL_IDS}.png"

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        label_map: LabelMap | None = None,
    ) -> None:
        folder = find_root(root, ("cityscapes", "Cityscapes"), "leftImg8bit", self.layout)
        images = folder / "leftImg8bit" / split
        paths = list_files(images, IMAGE_SUFFIXES)
        paths = {name.removesuffix(_IMAGE_END): path for name, path in paths.items() if name.endswith(_IMAGE_END)}
        if not paths:
            raise DataError(f"{images}: no images named *{_IMAGE_END}.png; expected {self.layout} under the data root")
        self._mask_files = list_files(folder / "gtFine" / split, frozenset({MASK_SUFFIX}))
        super().__init__(
            folder,
            split,
            {name: (path, self._by_id(name)) for name, path in paths.items()},
            chosen_classes(folder, tuple(CITYSCAPES_LABEL_IDS), class_names, label_map),
            label_map,
            bases=(Path(root),),
        )
        if label_map is None:
            accepted = f"Cityscapes' label ids, 0 .. 33, or {IGNORE_8_BIT} for ignore"
            targets: dict[int, int | None] = dict.fromkeys((*range(34), IGNORE_8_BIT))
            targets |= {value: index for index, value in enumerate(CITYSCAPES_LABEL_IDS.values())}
            self._label_ids = MaskValues(targets, self.num_classes, accepted=accepted)
            fix = f"; if it holds Cityscapes' label ids, name the file *{LABEL_IDS}.png"
            self._values = MaskValues.class_ids(self.num_classes, fix)

    def values_of(self, mask: Path) -> MaskValues:
        return self._label_ids if self.label_map is None and mask.stem.endswith(LABEL_IDS) else self._values

    def id_of(self, name: str) -> str:
        """Return CITY/FRAME of a path; a bare file name begins with its city."""
        path = PurePosixPath(super().id_of(name))
        frame = path.name.removesuffix(_IMAGE_END)
        return f"{path.parent.name or frame.partition('_')[0]}/{frame}"

    def places(self, sample_id: str) -> Iterator[Path]:
        for split in SPLITS:
            for suffix in (".png", ".jpg"):
                yield self.root / "leftImg8bit" / split / f"{sample_id}{_IMAGE_END}{suffix}"

    def mask_names(self, name: str) -> Iterator[str]:
        """Yield the listed name, then the name with the other kind of ids; each file is read by its own kind."""
        yield from super().mask_names(name)
        for kind, other in ((TRAIN_IDS, LABEL_IDS), (LABEL_IDS, TRAIN_IDS)):
            if kind in name:
                yield from super().mask_names(name.replace(kind, other))

    def mask_of(self, image: Path) -> Path | None:
        city = image.parent
        folder = self.root / "gtFine" / city.parent.name / city.name
        frame = image.stem.removesuffix(_IMAGE_END)
        paths = (folder / (frame + end + MASK_SUFFIX) for end in _MASK_ENDS)
        return next((path for path in paths if path.is_file()), None)

    def expected_mask(self, index: int) -> Path:
        return self.root / "gtFine" / self.split / (self.names[index] + _MASK_ENDS[0] + MASK_SUFFIX)

    def unused_masks(self) -> list[Path]:
        unpaired = []
        for name, path in self._mask_files.items():
            frame, end, kind = name.rpartition(_MASK_END)
            if end + kind in _MASK_ENDS and frame not in self._by_name:
                unpaired.append(path)
        return unpaired

    def _by_id(self, name: str) -> Path | None:
        found = (self._mask_files.get(name + end) for end in _MASK_ENDS)
        return next((path for path in found if path is not None), None)
