"""Find the images that a command line names, and name the results of each."""

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.files import IMAGE_SUFFIXES

_LOOKED_FOR = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}"


def find_images(
    inputs: Sequence[str], is_result: Callable[[Path], bool] = lambda path: False
) -> tuple[list[Path], list[str]]:
    """Return the image files that ``inputs`` name, each once and in order, and a message per input without images.

    A folder stands for all images in it and its subfolders, except hidden files. A pattern may hold ``*``, ``?``,
    ``[…]`` and ``**`` (any folders); it matches only files with an image's suffix, unless it ends in a suffix of its
    own. Files for which ``is_result`` is true are skipped unless they are named directly.
    """
    found: dict[Path, Path] = {}
    failures = []
    for name in inputs:
        path = Path(name).expanduser()
        suffixes = IMAGE_SUFFIXES
        if path.is_dir():
            matches = [file for file in sorted(path.rglob("*")) if not _hidden(file, path)]
            missing = f"{name}: no images in this folder ({_LOOKED_FOR})"
        elif path.exists() or not glob.has_magic(name):
            found.setdefault(path.resolve(), path)  # reading a missing file names it
            continue
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            missing = f"{name}: no image matches this pattern ({_LOOKED_FOR})"
            if path.suffix and not glob.has_magic(path.suffix):
                suffixes = {path.suffix.lower()}
        images = [
            file for file in matches if file.suffix.lower() in suffixes and file.is_file() and not is_result(file)
        ]
        if not images:
            failures.append(missing)
        for file in images:
            found.setdefault(file.resolve(), file)
    return list(found.values()), failures


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def result_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each image's results: its stem; equal stems get parent folders, then numbers."""
    parts = [path.resolve().with_suffix("").parts[1:] for path in paths]  # without the root
    names = [own[-1] for own in parts]
    for depth in range(2, max((len(own) for own in parts), default=0) + 1):
        count = Counter(names)
        if len(count) == len(names):
            return names
        names = ["_".join(own[-depth:]) if count[name] > 1 else name for own, name in zip(parts, names, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 1
        while names[index] in taken:
            number += 1
            names[index] = f"{name}_{number}"
        taken.add(names[index])
    return names
