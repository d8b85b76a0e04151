"""Checks of a data set. Each yields findings with their fix."""

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from ..data.cityscapes import CITYSCAPES_LABEL_IDS
from ..data.files import MASK_SUFFIX
from ..data.masks import IGNORE_8_BIT
from ..data.pair_dataset import CLASSES_FILE, MAX_SCANNED_MASKS, PairDataset
from .evidence import Evidence
from .findings import Finding, counted, error, ok, warning
from .scan import Sample

IGNORED_SHARE = 0.3  # of the pixels; more suggest that 255 is a class
CITYSCAPES_CLASSES, MOST_LABEL_ID = len(CITYSCAPES_LABEL_IDS), 33
LABEL_IDS_FIX = (
    "use the *_labelTrainIds.png files as masks, or --dataset cityscapes, which converts labelIds to the 19 classes"
)
# Training continues when a mask used only for metrics cannot be read.
ONLY_METRICS = " (of unlabeled images, used only for metrics; training continues without them)"
PROBLEMS = {
    "missing": ("missing", "restore them, or remove them from the list"),
    "unreadable": ("unreadable: truncated, damaged, or not an image", "copy or download them again"),
    "color": (
        "with colors instead of class ids",
        "replace each color by its class id and save 8-bit gray or palette PNG files",
    ),
    "lossy": ("compressed as JPEG, which changes class ids", "save the original masks as PNG"),
    "bits": ("with 2 or 4 bits per pixel", "save them as 8-bit gray or palette PNG"),
}


def all_findings(evidence: Evidence) -> list[Finding]:
    """Return the findings of opening the data, then those of each check."""
    found = list(evidence.findings)
    for check in CHECKS:
        found += check(evidence)
    return found


def layout(evidence: Evidence) -> Iterator[Finding]:
    for note in dict.fromkeys(note for dataset in evidence.datasets for note in dataset.notes):
        title, _, fix = note.partition("; ")
        yield warning(title, fix)


def masks_in_other_formats(evidence: Evidence) -> Iterator[Finding]:
    for dataset in evidence.datasets:
        try:
            unused = dataset.unused_masks()
        except ValueError as problem:
            yield error(str(problem))
            continue
        others = [str(path) for path in unused if path.suffix.lower() != MASK_SUFFIX]
        if others:
            yield error(
                f"{dataset.split}: {counted(len(others), 'mask')} not in PNG format, so their images have no mask",
                "save the original masks as PNG; JPEG files no longer hold the original class ids",
                others,
            )
        orphans = [str(path) for path in unused if path.suffix.lower() == MASK_SUFFIX]
        if orphans:
            yield warning(
                f"{dataset.split}: {counted(len(orphans), 'mask')} without an image",
                "a mask has the name of its image and the suffix .png; rename or remove them",
                orphans,
            )


def masks_that_are_missing(evidence: Evidence) -> Iterator[Finding]:
    if evidence.train is not None:
        dataset = evidence.train
        yield from _without_mask(dataset, sorted(evidence.labeled), "but listed as labeled")
        without = [dataset.names[i] for i in range(len(dataset)) if not dataset.has_label(i)]
        meant = evidence.settings.dataset in ("folder", "camvid") or evidence.settings.unlabeled_list is not None
        if without and not meant:
            yield warning(
                f"train: {counted(len(without), 'image')} of {len(dataset)} without a mask, used as unlabeled",
                "if this is not intended, add the missing masks",
                without,
            )
    if evidence.val is not None:
        yield from _without_mask(evidence.val, range(len(evidence.val)), "which evaluation needs")


def _without_mask(dataset: PairDataset, indices, what: str) -> Iterator[Finding]:
    missing = [str(dataset.expected_mask(index)) for index in indices if not dataset.has_label(index)]
    if missing:
        yield error(
            f"{dataset.split}: {counted(len(missing), 'image')} without a mask, {what}",
            "add the masks, or remove the images",
            missing,
        )


def files(evidence: Evidence) -> Iterator[Finding]:
    broken = defaultdict(list)
    for sample in evidence.samples:
        if sample.image_error is not None:
            broken["image", sample.image_error.kind, True].append((str(sample.image), str(sample.image_error)))
        if sample.mask_error is not None:
            key = "mask", sample.mask_error.kind, evidence.mask_is_needed(sample)
            broken[key].append((str(sample.mask), str(sample.mask_error)))
    for (noun, kind, needed), problems in broken.items():
        paths = [path for path, _ in problems]
        what, fix = PROBLEMS.get(kind, ("that cannot be used", problems[0][1]))
        title = f"{counted(len(paths), noun)} {what}"
        if needed:
            yield error(title, fix, paths)
        else:
            yield warning(title + ONLY_METRICS, fix, paths)
    if evidence.samples and not broken:
        masks = sum(sample.mask is not None for sample in evidence.samples)
        yield ok(f"{counted(len(evidence.samples), 'image')} and {counted(masks, 'mask')} can be read")


def sizes(evidence: Evidence) -> Iterator[Finding]:
    differing = {True: [], False: []}
    pairs = [s for s in evidence.samples if s.image_size is not None and s.mask_size is not None]
    for sample in pairs:
        if sample.image_size != sample.mask_size:
            (height, width), (image_height, image_width) = sample.mask_size, sample.image_size
            text = f"{sample.mask}: {width}x{height}, its image {image_width}x{image_height}"
            differing[evidence.mask_is_needed(sample)].append(text)
    fix = "resize masks to their images with nearest-neighbor interpolation, or restore the originals of both"
    for needed, texts in differing.items():
        if texts:
            title = f"{counted(len(texts), 'mask')} of a different size than the image"
            yield error(title, fix, texts) if needed else warning(title + ONLY_METRICS, fix, texts)
    if pairs and not any(differing.values()):
        yield ok(f"{counted(len(pairs), 'mask')} of the size of the image")


def values(evidence: Evidence) -> Iterator[Finding]:
    """Find values that no class has, and name the likely cause."""
    masked = [sample for sample in evidence.samples if len(sample.values)]
    present = evidence.values_present
    if not masked:
        return
    unknown: dict[int, list[Sample]] = defaultdict(list)
    for sample in masked:
        for value in sample.values[~evidence.values_of(sample).known(sample.values)].tolist():
            unknown[value].append(sample)
    if evidence.black_and_white:
        yield error(
            "masks hold only 0 and 255: black and white, but 255 means ignore",
            "if white is a class: --label-map 0:0 255:1",
        )
    elif unknown:
        yield _unknown_values(evidence, unknown, present)
    else:
        yield ok(f"mask values {_ranges(present)}: each is a class or ignored")
        if evidence.settings.label_map is None:
            yield from _mistaken_values(evidence, masked, present)


def _unknown_values(evidence: Evidence, unknown: dict[int, list[Sample]], present: set[int]) -> Finding:
    affected = list({id(sample): sample for samples in unknown.values() for sample in samples}.values())
    classes, settings = evidence.num_classes, evidence.settings
    values = evidence.values_of(affected[0])
    fix = f"masks hold {values.accepted}; correct them, or map the values with --label-map"
    outside = set(unknown)
    if settings.label_map is not None:
        fix = "give each value a class in --label-map, or add *:ignore for all others"
    elif settings.dataset == "ade20k" and outside == {IGNORE_8_BIT}:
        fix = "the masks are shifted to 0 .. 149: use the originals, or --label-map 0-149:0-149 255:ignore"
    elif classes == CITYSCAPES_CLASSES and max(outside) <= MOST_LABEL_ID:
        fix = f"these are Cityscapes' labelIds: {LABEL_IDS_FIX}"
    elif outside == {classes}:
        fix = f"ids seem to start at 1: --label-map 0:ignore 1-{classes}:0-{classes - 1}"
    numbers = f"value {min(outside)}" if len(outside) == 1 else f"values {_ranges(outside)}"
    needed = any(evidence.mask_is_needed(sample) for sample in affected)
    where = [str(sample.mask) for sample in affected]
    title = f"{counted(len(affected), 'mask')} with {numbers}, which no class has ({classes} classes)"
    return error(title, fix, where) if needed else warning(title + ONLY_METRICS, fix, where)


def _mistaken_values(evidence: Evidence, masked: list[Sample], present: set[int]) -> Iterator[Finding]:
    """Find masks with valid values that seem to mean something else."""
    settings, classes = evidence.settings, evidence.num_classes
    converted = [sample for sample in masked if sample.mask.stem.endswith("_labelIds")]
    if settings.dataset == "cityscapes" and converted:
        ids: set[int] = set().union(*(sample.values.tolist() for sample in converted))
        if IGNORE_8_BIT in ids and max(ids - {IGNORE_8_BIT}, default=0) < CITYSCAPES_CLASSES:
            yield error(
                "files named *_labelIds.png hold train ids: 0 .. 18 and 255",
                "rename them to *_labelTrainIds.png, or restore the original labelIds",
                [str(sample.mask) for sample in converted],
            )
    elif converted and classes > CITYSCAPES_CLASSES:
        yield warning(f"masks are Cityscapes' labelIds, read as {classes} classes instead of 19", LABEL_IDS_FIX)
    if evidence.classes_counted and 0 not in present and classes > 1:
        fix = f"--label-map 1-{classes - 1}:0-{classes - 2}, with 0:ignore if other masks hold 0"
        yield warning("no mask holds 0: ids seem to start at 1, and class 0 never occurs", fix)
    pixels, ignored = _ignored_as_255(evidence, masked)
    if pixels and ignored / pixels > IGNORED_SHARE:
        fix = f"if 255 is a class, add --label-map 0-{classes - 1}:0-{classes - 1} 255:{classes}"
        yield warning(f"255 covers {ignored / pixels:.0%} of the masks and is ignored", fix)
    if classes > IGNORE_8_BIT and any(IGNORE_8_BIT in sample.values for sample in masked):
        fix = "with more than 255 classes, use 65535 for ignore, in 16-bit PNG files; or --label-map ... 255:ignore"
        yield warning(f"masks hold 255, which is a class among {classes}, not ignore", fix)


def _ignored_as_255(evidence: Evidence, masked: list[Sample]) -> tuple[int, int]:
    """Return the pixels of all masks that a training reads, and how many of them are 255 and ignored."""
    pixels = ignored = 0
    for sample in masked:
        if evidence.mask_is_read(sample):
            pixels += int(sample.counts.sum())
            if evidence.num_classes <= IGNORE_8_BIT:
                ignored += int(sample.counts[sample.values == IGNORE_8_BIT].sum())
    return pixels, ignored


def number_of_classes(evidence: Evidence) -> Iterator[Finding]:
    classes, rank, train = evidence.num_classes, evidence.settings.low_rank, evidence.train
    if not evidence.datasets or evidence.black_and_white:
        return
    if classes < 2:
        yield error(
            f"{counted(classes, 'class')}: a training needs at least 2",
            f"masks need two values besides 255; see --label-map and {CLASSES_FILE}",
        )
    elif rank is not None and rank >= classes:
        title = f"--low-rank {rank} with {classes} classes leaves no unlabeled negative"
        yield error(title, f"drop --low-rank; its default is {min(3, classes - 1)} here")
    elif rank is None and classes <= 3:
        yield ok(f"{classes} classes: low_rank defaults to {classes - 1} instead of 3")
    if evidence.classes_counted and train is not None:
        masks = sum(map(train.has_label, range(len(train))))
        if masks > MAX_SCANNED_MASKS:
            yield error(
                f"{masks} masks are too many to count classes in at each start of a training",
                f"write {classes} class names, one per line, to {train.root / CLASSES_FILE}",
            )


def classes_that_occur(evidence: Evidence) -> Iterator[Finding]:
    names, classes = evidence.class_names, evidence.num_classes
    if evidence.train is None or classes < 2 or evidence.black_and_white:
        return
    labeled = evidence.histogram(evidence.labeled_samples())[1]
    everywhere = evidence.histogram(evidence.samples_of(evidence.train))[1]
    scored = evidence.histogram(evidence.samples_of(evidence.val))[1]
    looked = "" if evidence.complete else " that was checked"
    if not labeled.any():
        yield error(f"no labeled image{looked} has a pixel of any class", "correct the masks, or choose other images")
        return
    never = [names[c] for c in np.flatnonzero(everywhere == 0)]
    absent = [names[c] for c in np.flatnonzero((labeled == 0) & (everywhere > 0))]
    unscored = [names[c] for c in np.flatnonzero((scored == 0) & (everywhere > 0))]
    if never:
        fix = f"they cannot be learned; add images that show them, or remove their names from {CLASSES_FILE}"
        yield warning(f"{counted(len(never), 'class')} in no training mask{looked}", fix, never)
    if absent:
        fix = "label more images (--num-labeled), draw others (--seed), or list images that show them (--labeled-list)"
        yield warning(f"{counted(len(absent), 'class')} in no labeled image{looked}", fix, absent)
    if unscored and scored.any():
        title = f"{counted(len(unscored), 'class')} in no mask of {evidence.val.split}{looked}"
        yield warning(title, "they have no IoU, and the mean IoU does not count them", unscored)
    background = next((c for c, name in enumerate(names) if name.lower() == "background"), None)
    if background is not None and not everywhere[background]:
        fix = f"background is class {background}; if masks hold another value there, map it with --label-map"
        yield warning("no training mask has background; it may be ignored", fix)
    if not (never or absent):
        yield ok(f"each of the {classes} classes occurs in a labeled image")


def leaks(evidence: Evidence) -> Iterator[Finding]:
    """Find training images that are also evaluated, by their files or by equal pixels."""
    train, val = evidence.train, evidence.val
    if train is None or val is None:
        return
    scored = {val.image_path(index).resolve(): val.names[index] for index in range(len(val))}
    same_file = {i for i in range(len(train)) if train.image_path(i).resolve() in scored}
    by_digest = {sample.digest: sample.name for sample in evidence.samples_of(val) if sample.digest is not None}
    equal = {
        sample.index: by_digest[sample.digest]
        for sample in evidence.samples_of(train)
        if sample.digest in by_digest and sample.index not in same_file
    }
    labeled = evidence.labeled
    for indices, how in ((same_file, "the same file as"), (set(equal), "the same pixels as")):
        for part, name in ((indices & labeled, "labeled"), (indices - labeled, "unlabeled")):
            if not part:
                continue
            where = [f"{train.names[i]} = {val.split}/{equal.get(i, train.names[i])}" for i in sorted(part)]
            title = f"{counted(len(part), f'{name} image')} with {how} an image of {val.split}"
            if name == "labeled":
                yield error(title, "the score would include training images; remove them from train or val", where)
            else:
                yield warning(
                    title, "the score would include images seen in training; remove them, or report it", where
                )
    if not same_file and not equal:
        yield ok(f"no image of {val.split} is used for training" + ("" if evidence.complete else ", as far as checked"))


def repeated(evidence: Evidence) -> Iterator[Finding]:
    groups = defaultdict(list)
    for sample in evidence.samples_of(evidence.train):
        if sample.digest is not None:
            groups[sample.digest].append(sample.name)
    again = [" = ".join(names) for names in groups.values() if len(names) > 1]
    if again:
        yield warning(
            f"{counted(len(again), 'image')} more than once in train, under different names",
            "keep one of each, since each copy counts",
            again,
        )


def _ranges(numbers: set[int]) -> str:
    """Return numbers as text, such as "0-3, 7, 255"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return ", ".join(texts[:12]) + (f" and {len(texts) - 12} more" if len(texts) > 12 else "")


CHECKS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    layout,
    masks_in_other_formats,
    masks_that_are_missing,
    files,
    sizes,
    values,
    number_of_classes,
    classes_that_occur,
    leaks,
    repeated,
)
