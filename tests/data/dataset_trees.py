"""Tiny copies of the folders that data sets come in, with the masks that a test wants in them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)  # height, width


def picture(seed: int, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def mask(seed: int, values, size=SIZE) -> np.ndarray:
    """Each of the values, in blocks and at least once."""
    values = np.asarray(values, np.uint8)
    cells = np.random.default_rng(seed).choice(values, (size[0] // 4, size[1] // 4))
    cells.flat[: len(values)] = values
    return np.repeat(np.repeat(cells, 4, 0), 4, 1)


def save(path: Path, pixels: np.ndarray, palette: bool = False, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path, **options)
    return path


def voc(root: Path, train=6, augmented=10, val=3, values=(0, 1, 15, 255)) -> Path:
    """train.txt is the first of train_aug.txt; masks of val are in both folders, as in copies of the real one."""
    ids = [f"2007_{index:06d}" for index in range(augmented)]
    val_ids = [f"2008_{index:06d}" for index in range(val)]
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, listed in (("train", ids[:train]), ("train_aug", ids), ("val", val_ids)):
        (lists / f"{name}.txt").write_text("\n".join(listed) + "\n")
    for seed, name in enumerate(ids + val_ids):
        save(root / f"JPEGImages/{name}.jpg", picture(seed))
        save(root / f"SegmentationClassAug/{name}.png", mask(seed, values))
        if name not in ids[train:]:
            save(root / f"SegmentationClass/{name}.png", mask(seed, values), palette=True)
    return root


def cityscapes(root: Path, train=6, val=3, kinds=("labelIds",)) -> Path:
    """Six label ids: road 7, building 11, traffic light 19, car 26, bicycle 33, and 0, which no class has."""
    label_ids = {"labelIds": (0, 7, 11, 19, 26, 33), "labelTrainIds": (255, 0, 2, 6, 13, 18)}
    for split, city, number in (("train", "aachen", train), ("val", "lindau", val), ("train_extra", "bonn", 2)):
        for seed in range(number):
            frame = f"{city}/{city}_{seed:06d}_000019"
            save(root / f"leftImg8bit/{split}/{frame}_leftImg8bit.png", picture(seed + 100 * number))
            if split != "train_extra":
                for kind in kinds:
                    cells = mask(seed, range(6))
                    pixels = np.array(label_ids[kind], np.uint8)[cells]
                    save(root / f"gtFine/{split}/{frame}_gtFine_{kind}.png", pixels)
    return root


def ade20k(root: Path, train=6, val=2, values=(0, 1, 13, 150)) -> Path:
    for split, name, number in (("training", "train", train), ("validation", "val", val)):
        for seed in range(number):
            sample = f"ADE_{name}_{seed:08d}"
            save(root / f"images/{split}/{sample}.jpg", picture(seed + number * 100))
            save(root / f"annotations/{split}/{sample}.png", mask(seed, values))
    return root


def folder(root: Path, train=6, val=2, values=(0, 1, 2), unlabeled=0) -> Path:
    """The last `unlabeled` training images have no mask."""
    for split, number in (("train", train + unlabeled), ("val", val)):
        for seed in range(number):
            save(root / f"images/{split}/{split}{seed}.png", picture(seed + number * 100))
            if split == "val" or seed < train:
                save(root / f"labels/{split}/{split}{seed}.png", mask(seed, values))
    return root
