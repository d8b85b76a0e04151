"""Meaning of the values in mask files: class ids, ignored pixels, or an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .base import default_ignore_index, label_dtype

IGNORE_8_BIT = 255
IGNORE_16_BIT = 65535
VALUES = 65536
MAX_CLASSES = 32767
IGNORE = "ignore"
REST = "*"
_FORMS = f"write entries like 0:0 255:1, 7:{IGNORE}, 1-150:0-149 and *:{IGNORE}, in YAML {{0: 0, 255: 1}}"


class MaskValues:
    """Table from the values of mask files to labels.

    `targets` gives the class id of each value, or None for ignored pixels. `rest` is the same for all other values;
    without it they are refused. The message of a refusal calls a value `word`, describes valid masks by `accepted` and
    ends with `fix`.
    """

    def __init__(
        self,
        targets: Mapping[int, int | None],
        num_classes: int,
        *,
        accepted: str,
        fix: str = "",
        word: str = "value",
        rest: int | None | str = REST,
    ) -> None:
        self.accepted, self._fix, self._word = accepted, fix, word
        self.ignore_index = default_ignore_index(num_classes)
        self._labels = np.full(VALUES, self.ignore_index, label_dtype(num_classes))
        self._known = np.full(VALUES, rest != REST)
        if isinstance(rest, int):
            self._labels[:] = rest
        for value, target in targets.items():
            self._labels[value] = self.ignore_index if target is None else target
            self._known[value] = True

    @classmethod
    def class_ids(cls, num_classes: int, fix: str = "") -> "MaskValues":
        """Return the table of masks with class ids. Ignored: 255 if it cannot be a class, and 65535."""
        ignored = IGNORE_8_BIT if num_classes <= 255 else IGNORE_16_BIT
        targets: dict[int, int | None] = {value: value for value in range(num_classes)}
        targets |= {ignored: None, IGNORE_16_BIT: None}
        accepted = f"0 .. {num_classes - 1}, or {ignored} for ignore"
        return cls(targets, num_classes, accepted=accepted, fix=fix, word="class id")

    def known(self, values: np.ndarray) -> np.ndarray:
        """Return which values are accepted: bool, of the shape of `values`."""
        if values.dtype == np.uint8:
            return self._known[values]
        inside = (values >= 0) & (values < VALUES)
        return inside & self._known[np.where(inside, values, 0)]

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Return class ids and `ignore_index`, of the shape of `values`, which must all be accepted."""
        return self._labels[values]

    def refusal(self, value: int, place: str) -> str:
        """Return why a mask with this value cannot be used."""
        return f"{self._word} {value} ({place}) is out of range; masks hold {self.accepted}{self._fix}"


@dataclass(frozen=True)
class LabelMap:
    """Class of each mask value, as `--label-map` gives it; None for ignored pixels.

    `rest` is the class id of all other values, None for ignore, or "*" if they are an error.
    """

    targets: Mapping[int, int | None]
    rest: int | None | str = REST

    @classmethod
    def parse(cls, entries: Sequence[str]) -> "LabelMap":
        """Parse entries such as "0:0", "255:1", "7:ignore", "1-150:0-149", "20-30:ignore" and "*:ignore".

        Raises ValueError, naming the entry.
        """
        targets: dict[int, int | None] = {}
        rest: int | None | str = REST
        for entry in entries:
            left, _, right = entry.partition(":")
            try:
                goals = [None] if right.strip() == IGNORE else _range(right, MAX_CLASSES)
                if left.strip() == REST:
                    (rest,) = goals
                    continue
                values = _range(left, VALUES)
                if len(goals) == 1:
                    goals = list(goals) * len(values)
                pairs = list(zip(values, goals, strict=True))
            except ValueError:
                raise ValueError(f"label_map: {entry!r} is not VALUE:CLASS; {_FORMS}") from None
            for value, goal in pairs:
                if targets.setdefault(value, goal) != goal:
                    raise ValueError(f"label_map: value {value} has two classes, {targets[value]} and {goal}; keep one")
        label_map = cls(targets, rest)
        if label_map.num_classes < 1:
            raise ValueError("label_map: every value is ignored; map at least one to a class")
        return label_map

    @property
    def num_classes(self) -> int:
        """Highest class id plus 1."""
        goals = [*self.targets.values(), self.rest]
        return 1 + max((goal for goal in goals if isinstance(goal, int)), default=-1)

    def mask_values(self, num_classes: int) -> MaskValues:
        """Return the table for a data set with ``num_classes`` classes.

        Raises ValueError if the map names a class beyond these.
        """
        if self.num_classes > num_classes:
            raise ValueError(f"label_map: names class {self.num_classes - 1}, but there are {num_classes} classes")
        listed = ", ".join(map(str, sorted(self.targets)[:12])) + (", ..." if len(self.targets) > 12 else "")
        fix = f"; add an entry to --label-map: VALUE:CLASS, VALUE:{IGNORE} or *:{IGNORE}"
        accepted = f"the values of --label-map, {listed}"
        return MaskValues(self.targets, num_classes, accepted=accepted, fix=fix, rest=self.rest)


def label_map_entries(given: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of `--label-map`. A word without a colon names a file, whose entries take its place.

    A file holds one entry per line, "255:1" or "255 1"; blank lines and text after a # are skipped. Raises ValueError.
    """
    entries: list[str] = []
    for word in given:
        if ":" in word:
            entries.append("".join(word.split()))
            continue
        try:
            lines = Path(word).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = f"neither VALUE:CLASS nor a readable file ({error})"
            raise ValueError(f"label_map: {word!r} is {reason}; {_FORMS}") from error
        for line in lines:
            parts = line.partition("#")[0].replace(":", " ").split()
            if parts:
                entries.append(":".join(parts))
    LabelMap.parse(entries)
    return tuple(entries)


def present_values(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a mask in rising order, and the number of pixels of each."""
    if ids.dtype == np.uint8:
        counts = np.bincount(ids.ravel(), minlength=1)
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(ids, return_counts=True)


def looks_binary(values: set[int]) -> bool:
    """Return whether masks with these values are black and white images rather than class ids."""
    return values == {0, 255}


def _range(text: str, limit: int) -> Sequence[int]:
    """Return the numbers of "7" or "1-150", all below `limit`."""
    first, dash, last = text.partition("-")
    numbers = range(int(first), int(last if dash else first) + 1)
    if not numbers or numbers[0] < 0 or numbers[-1] >= limit:
        raise ValueError
    return numbers
