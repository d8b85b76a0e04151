"""Open a data set like a training, note what fails, and read all files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import Progress

from ..config import TrainConfig
from ..data import DataError, PairDataset, measured_masks
from ..data.base import Entry
from ..data.folder import highest_class
from ..data.masks import LabelMap, MaskValues, label_map_entries, looks_binary
from ..data.pair_dataset import chosen_classes
from ..data.splits import Split, divide, draw_labeled, evenly, read_list, read_unlabeled_list
from ..utils.class_names import numbered_classes
from . import findings
from .findings import Finding
from .scan import Sample, scan, shares

MOST_CLASSES = 255  # of a folder until its masks have been read
LAYOUTS = {
    "voc": ("JPEGImages", "VOC2012/JPEGImages", "VOCdevkit/VOC2012/JPEGImages"),
    "cityscapes": ("leftImg8bit",),
    "ade20k": ("annotations/training", "ADEChallengeData2016/annotations/training"),
    "folder": ("labels/train",),
}


@dataclass
class Evidence:
    """Data for the checks. `train`, `val` and `split` are None if they could not be opened."""

    settings: TrainConfig
    findings: list[Finding] = field(default_factory=list)
    train: PairDataset | None = None
    val: PairDataset | None = None
    split: Split | None = None
    samples: list[Sample] = field(default_factory=list)
    total: int = 0
    class_names: list[str] = field(default_factory=list)
    classes_counted: bool = False  # in the masks, as in a training
    counted_values: MaskValues | None = None  # meaning of mask values, after classes were counted

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def complete(self) -> bool:
        """Return whether every file was read."""
        return len(self.samples) == self.total

    @property
    def datasets(self) -> list[PairDataset]:
        return [dataset for dataset in (self.train, self.val) if dataset is not None]

    @cached_property
    def labeled(self) -> set[int]:
        return set() if self.split is None else set(self.split.labeled)

    @cached_property
    def hidden(self) -> set[int]:
        """Images of the training split whose masks are used only for metrics."""
        return set() if self.split is None else set(self.split.hidden_masks)

    @cached_property
    def measured(self) -> set[int]:
        """Images in `hidden` whose masks a training reads, to compare them with pseudo-labels."""
        return set() if self.split is None else set(measured_masks(self.split))

    @property
    def values_present(self) -> set[int]:
        """Values in any mask file."""
        return _values_in(self.samples)

    @cached_property
    def black_and_white(self) -> bool:
        """Return whether the masks of a split, or the labeled ones, are black and white and have no label map."""
        groups = [self.labeled_samples(), *map(self.samples_of, self.datasets)]
        return self.settings.label_map is None and any(looks_binary(_values_in(group)) for group in groups)

    def samples_of(self, dataset: PairDataset | None) -> list[Sample]:
        return [] if dataset is None else [sample for sample in self.samples if sample.split == dataset.split]

    def labeled_samples(self) -> list[Sample]:
        """Return the samples whose labels are used for training."""
        labeled = self.labeled
        return [sample for sample in self.samples_of(self.train) if sample.index in labeled]

    def values_of(self, sample: Sample) -> MaskValues:
        """Return the meaning of the values in a sample's mask."""
        if self.counted_values is not None:
            return self.counted_values
        dataset = self.train if self.train is not None and sample.split == self.train.split else self.val
        return dataset.values_of(sample.mask)

    def mask_is_needed(self, sample: Sample) -> bool:
        """Return whether a training stops without this mask: labeled, to evaluate, or to count classes in."""
        if self.train is None or sample.split != self.train.split or self.classes_counted:
            return True
        return sample.index not in self.hidden

    def mask_is_read(self, sample: Sample) -> bool:
        """Return whether a training reads this mask, even if only for metrics."""
        return self.mask_is_needed(sample) or sample.index in self.measured

    def histogram(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels and images of each class, counting known values."""
        pixels, images = np.zeros(self.num_classes, np.int64), np.zeros(self.num_classes, np.int64)
        for sample in samples:
            if sample.mask is None or not len(sample.values):
                continue
            values = self.values_of(sample)
            known = values.known(sample.values)
            labels = values.labels(sample.values[known]).astype(np.int64)
            kept = (labels != values.ignore_index) & (labels < self.num_classes)
            np.add.at(pixels, labels[kept], sample.counts[known][kept])
            images[np.unique(labels[kept])] += 1
        return pixels, images


def _values_in(samples: Sequence[Sample]) -> set[int]:
    return set().union(*(sample.values.tolist() for sample in samples))


def gather(settings: TrainConfig, max_files: int | None, progress: Progress) -> Evidence:
    """Open the splits, divide the training split, and read the files, at most `max_files` images."""
    evidence = Evidence(settings)
    _open(evidence)
    if evidence.train is not None:
        evidence.split = _divided(evidence)
    groups = _groups(evidence)
    evidence.total = sum(len(indices) for _, indices in groups)
    numbers = shares([len(indices) for _, indices in groups], max_files)
    jobs = [(dataset, evenly(indices, number)) for (dataset, indices), number in zip(groups, numbers, strict=True)]
    evidence.samples = scan(jobs, progress)
    if evidence.classes_counted:
        values = _values_in(evidence.samples_of(evidence.train))
        evidence.class_names = numbered_classes(1 + highest_class(values))
        evidence.counted_values = MaskValues.class_ids(max(1, evidence.num_classes))
    return evidence


def _open(evidence: Evidence) -> None:
    settings = evidence.settings
    names: Sequence[str] | None = None
    try:
        evidence.classes_counted = _classes_are_counted(settings)
    except ValueError as error:
        evidence.findings.append(findings.error(str(error)))
        return
    if evidence.classes_counted:
        names = numbered_classes(MOST_CLASSES)
    problems: dict[str, None] = {}
    for split in ("train", "val"):
        try:
            dataset = settings.build_dataset(split, classes_from=names, check=False)
        except ValueError as error:
            problems[str(error)] = None
            continue
        if not isinstance(dataset, PairDataset):
            raise ValueError(f"dataset: {settings.dataset} has no files to check")
        setattr(evidence, split, dataset)
        names = dataset.class_names
        if not evidence.classes_counted:
            evidence.class_names = list(names)
    fix = _other_layout(settings) if evidence.train is None else ""
    evidence.findings += [findings.error(problem, fix) for problem in problems]


def _classes_are_counted(settings: TrainConfig) -> bool:
    """Return whether the classes are counted in the masks, which only `folder` does."""
    if settings.dataset != "folder" or settings.data_root is None:
        return False
    label_map = LabelMap.parse(label_map_entries(settings.label_map)) if settings.label_map else None
    return chosen_classes(Path(settings.data_root), None, None, label_map) is None


def _other_layout(settings: TrainConfig) -> str:
    for name, folders in LAYOUTS.items():
        found = (settings.data_root / folder for folder in folders) if settings.data_root is not None else ()
        there = next((folder for folder in found if folder.is_dir()), None)
        if there is not None and name != settings.dataset:
            return f"found the folder {there}; try --dataset {name}"
    return ""


def _divided(evidence: Evidence) -> Split:
    settings, dataset = evidence.settings, evidence.train
    split_size = len(dataset)
    try:
        if settings.labeled_list is not None:
            labeled = _included(evidence, settings.labeled_list, read_list(settings.labeled_list))
        else:
            labeled = draw_labeled(dataset, settings.label_choice)
    except ValueError as error:
        evidence.findings.append(findings.error(str(error)))
        labeled = []
    listed: list[int] = []
    if settings.unlabeled_list is not None:
        try:
            entries = read_unlabeled_list(settings.unlabeled_list)
            listed = _included(evidence, settings.unlabeled_list, entries)
        except DataError as error:
            evidence.findings.append(findings.error(str(error)))
    return divide(dataset, split_size, labeled, listed)


def _included(evidence: Evidence, file: Path, entries: Sequence[Entry]) -> list[int]:
    """Return the samples of a list; note all entries that would stop a training, and skip them."""
    dataset = evidence.train
    try:
        return dataset.include(entries, str(file))
    except DataError as first:
        good, bad = [], []
        for entry in entries:
            try:
                good += dataset.include([entry], str(file))
            except DataError as error:
                bad.append(str(error).removeprefix(f"{file}: "))
        title = f"{file}: {findings.counted(len(bad), 'line')} of {len(entries)} cannot be used" if bad else str(first)
        fix = "names are ids of the split, or paths relative to --data-root; docs/datasets.md shows each form"
        evidence.findings.append(findings.error(title, fix if bad else "", bad))
        return good


def _groups(evidence: Evidence) -> list[tuple[PairDataset, Sequence[int]]]:
    """Return the images to read in three groups: labeled, unlabeled, validation."""
    groups: list[tuple[PairDataset, Sequence[int]]] = []
    if evidence.train is not None:
        labeled = evidence.split.labeled
        hidden = evidence.labeled
        groups.append((evidence.train, labeled))
        groups.append((evidence.train, [index for index in range(len(evidence.train)) if index not in hidden]))
    if evidence.val is not None:
        groups.append((evidence.val, range(len(evidence.val))))
    return groups
