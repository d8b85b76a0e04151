"""`voc`: Pascal VOC 2012, with the additional masks of SBD (10,582 training images) if they exist."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .base import DataError
from .files import IMAGE_SUFFIXES, MASK_SUFFIX, list_files
from .masks import LabelMap
from .pair_dataset import PairDataset, chosen_classes, find_root, without_suffix
from .splits import read_list

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
AUGMENTED_LISTS = ("train_aug", "trainaug")
AUGMENTED_MASKS, PLAIN_MASKS = "SegmentationClassAug", "SegmentationClass"
SBD_HINT = (
    f"with SBD's masks in {AUGMENTED_MASKS}/ and their list in ImageSets/Segmentation/{AUGMENTED_LISTS[0]}.txt the "
    "training set has 10582 images"
)


class VocDataset(PairDataset):
    """One split of VOC 2012: the ids of `ImageSets/Segmentation/<split>.txt`.

    Images are in `JPEGImages/`, palette masks in `SegmentationClass/` or `SegmentationClassAug/`. "train" is the list
    `train_aug` or `trainaug` if its masks exist, else `train`, with a line in `notes`. The data root is that folder,
    or one above it that holds `VOC2012` or `VOCdevkit/VOC2012`.
    """

    layout = f"JPEGImages/, {AUGMENTED_MASKS}/ or {PLAIN_MASKS}/, and ImageSets/Segmentation/"

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        label_map: LabelMap | None = None,
    ) -> None:
        folder = find_root(root, ("VOC2012", "VOCdevkit/VOC2012"), "JPEGImages", self.layout)
        self._files = list_files(folder / "JPEGImages", IMAGE_SUFFIXES)
        self._all_masks = {
            name: path
            for masks in (AUGMENTED_MASKS, PLAIN_MASKS)  # VOC's own mask replaces that of SBD
            for name, path in list_files(folder / masks, frozenset({MASK_SUFFIX})).items()
        }
        if not self._all_masks:
            raise DataError(f"{folder}: no masks; expected PNG files in {AUGMENTED_MASKS}/ or {PLAIN_MASKS}/")
        names, note = self._listed(folder, split)
        missing = folder / "JPEGImages"
        super().__init__(
            folder,
            split,
            {name: (self._files.get(name, missing / f"{name}.jpg"), self._all_masks.get(name)) for name in names},
            chosen_classes(folder, VOC_CLASSES, class_names, label_map),
            label_map,
            bases=(Path(root),),
        )
        self.notes += note

    def _listed(self, folder: Path, split: str) -> tuple[list[str], list[str]]:
        """Return the ids of a split, and notes on the choice of its list."""
        lists = folder / "ImageSets" / "Segmentation"
        found = {path.stem: path for path in sorted(lists.glob("*.txt"))}

        def ids(name: str) -> list[str]:
            return list(dict.fromkeys(self.id_of(entry.image) for entry in read_list(found[name])))

        augmented = next((name for name in AUGMENTED_LISTS if name in found), None)
        if split == "train" and augmented is not None:
            names = ids(augmented)
            without = sum(name not in self._all_masks for name in names)
            if (folder / AUGMENTED_MASKS).is_dir() or not without:
                return names, []
            reason = f"{PLAIN_MASKS}/ holds no masks for {without} of the {len(names)} images of {augmented}.txt"
        elif (folder / AUGMENTED_MASKS).is_dir():
            reason = f"there is no {AUGMENTED_LISTS[0]}.txt for the masks in {AUGMENTED_MASKS}/"
        else:
            reason = f"there is no {AUGMENTED_MASKS}/"
        if split not in found:
            raise DataError(
                f"{lists / f'{split}.txt'}: no such list; found there: {', '.join(found) or 'none'}; expected "
                f"{self.layout} under the data root"
            )
        names = ids(split)
        if split != "train":
            return names, []
        return names, [f"{reason}, so the training set is train.txt, {len(names)} images; {SBD_HINT}"]

    def id_of(self, name: str) -> str:
        path = PurePosixPath(super().id_of(name))
        return path.name if path.parent.name == "JPEGImages" else path.as_posix()

    def places(self, sample_id: str) -> Iterator[Path]:
        if sample_id in self._files:
            yield self._files[sample_id]
        yield from super().places(sample_id)

    def mask_names(self, name: str) -> Iterator[str]:
        """Yield the listed name, then the file in either folder of masks, whose names differ between copies of VOC."""
        yield from super().mask_names(name)
        file = without_suffix(PurePosixPath(name).name) + MASK_SUFFIX
        for folder in (AUGMENTED_MASKS, PLAIN_MASKS):
            yield f"{folder}/{file}"

    def mask_of(self, image: Path) -> Path | None:
        return self._all_masks.get(image.stem) if image.parent.name == "JPEGImages" else None

    def expected_mask(self, index: int) -> Path:
        masks = self.root / AUGMENTED_MASKS
        return (masks if masks.is_dir() else self.root / PLAIN_MASKS) / (self.names[index] + MASK_SUFFIX)

    def unused_masks(self) -> list[Path]:
        unused = [path for name, path in self._all_masks.items() if name not in self._files]
        for folder in (PLAIN_MASKS, AUGMENTED_MASKS):
            unused += list_files(self.root / folder, IMAGE_SUFFIXES - {MASK_SUFFIX}).values()
        return unused
