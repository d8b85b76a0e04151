"""Draw the images of MSRC-21 that keep their labels: the same number from each of its twenty scenes."""

from pathlib import Path

import torch

from u2pl_fast.data.files import IMAGE_SUFFIXES
from u2pl_fast.utils.randomness import generator


def labeled_ids(names: list[str], count: int, seed: int) -> list[str]:
    """Return ``count`` of the ids, spread evenly over the scenes; a smaller draw is part of every larger one.

    Ids of MSRC are ``SCENE_NUMBER_s``. A uniform draw of 40 misses whole classes, which then dominates the score.
    """
    scenes: dict[int, list[str]] = {}
    for name in sorted(names):
        scenes.setdefault(int(name.partition("_")[0]), []).append(name)
    rounds: list[tuple[int, int, str]] = []
    for scene, members in sorted(scenes.items()):
        order = torch.randperm(len(members), generator=generator(seed, "labeled draw", scene)).tolist()
        rounds += [(place, scene, members[index]) for place, index in enumerate(order)]
    return sorted(name for _, _, name in sorted(rounds)[:count])


def write_list(data_root: Path, count: int, seed: int, path: Path) -> Path:
    """Write the file for ``--labeled-list`` and return its path."""
    names = [image.stem for image in (data_root / "images" / "train").iterdir() if image.suffix in IMAGE_SUFFIXES]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(labeled_ids(names, count, seed)) + "\n")
    return path
