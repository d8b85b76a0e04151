"""What the values in mask files mean: class ids, ignored pixels, or an error."""

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
_FORMS = f"entries are like 0:0 255:1, 7:{IGNORE}, 1-150:0-149 and *:{IGNORE}, in YAML {{0: 0, 255: 1}}"


class MaskValues:
    """A table from the values of mask files to labels.

    `targets` gives a class id, or None for ignored pixels, for each value that may occur; `rest` is what all others
    are, and without it they are refused. `accepted` says in words what masks hold, for the message of a refusal, and
    `fix` ends that message, in which a value goes by the name of `word`.
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
        """Masks of class ids. 255 can't be an ignored pixel where it can be a class, nor 65535 in a file of 8 bits."""
        ignored = IGNORE_8_BIT if num_classes <= 255 else IGNORE_16_BIT
        targets: dict[int, int | None] = {value: value for value in range(num_classes)}
        targets |= {ignored: None, IGNORE_16_BIT: None}
        accepted = f"0 .. {num_classes - 1}, or {ignored} for ignore"
        return cls(targets, num_classes, accepted=accepted, fix=fix, word="class id")

    def known(self, values: np.ndarray) -> np.ndarray:
        """bool, of the shape of `values`: which of them may occur."""
        if values.dtype == np.uint8:
            return self._known[values]
        inside = (values >= 0) & (values < VALUES)
        return inside & self._known[np.where(inside, values, 0)]

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Class ids and `ignore_index`, of the shape of `values`, all of which must be known."""
        return self._labels[values]

    def refusal(self, value: int, place: str) -> str:
        """Why a mask with this value can't be used."""
        return f"{self._word} {value} ({place}) is out of range; masks hold {self.accepted}{self._fix}"


@dataclass(frozen=True)
class LabelMap:
    """`--label-map`: the class of each mask value, None for ignored pixels, and what values not named are.

    `rest` is a class id, None for ignore, or "*" where they are an error.
    """

    targets: Mapping[int, int | None]
    rest: int | None | str = REST

    @classmethod
    def parse(cls, entries: Sequence[str]) -> "LabelMap":
        """From entries such as "0:0", "255:1", "7:ignore", "1-150:0-149", "20-30:ignore" and "*:ignore".

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
                raise ValueError(f"label_map: {entry!r} is no VALUE:CLASS; {_FORMS}") from None
            for value, goal in pairs:
                if targets.setdefault(value, goal) != goal:
                    raise ValueError(f"label_map: value {value} is given two classes, {targets[value]} and {goal}")
        label_map = cls(targets, rest)
        if label_map.num_classes < 1:
            raise ValueError("label_map: every value is ignored; map at least one to a class")
        return label_map

    @property
    def num_classes(self) -> int:
        """One more than the highest class id."""
        goals = [*self.targets.values(), self.rest]
        return 1 + max((goal for goal in goals if isinstance(goal, int)), default=-1)

    def mask_values(self, num_classes: int) -> MaskValues:
        """The table for a data set of so many classes.

        Raises ValueError where the map names a class that it doesn't have.
        """
        if self.num_classes > num_classes:
            raise ValueError(f"label_map: names class {self.num_classes - 1}, but there are {num_classes} classes")
        listed = ", ".join(map(str, sorted(self.targets)[:12])) + (", ..." if len(self.targets) > 12 else "")
        fix = f"; the others need an entry in --label-map, VALUE:CLASS or VALUE:{IGNORE} or *:{IGNORE}"
        accepted = f"the values of --label-map, {listed}"
        return MaskValues(self.targets, num_classes, accepted=accepted, fix=fix, rest=self.rest)


def label_map_entries(given: Sequence[str]) -> tuple[str, ...]:
    """The entries of `--label-map`, those of files put in their place: a word without a colon names a file.

    A file holds an entry a line, "255:1" or "255 1"; blank lines and what follows a # are skipped. Raises ValueError.
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
    """The values of a mask in rising order, and the number of pixels of each."""
    if ids.dtype == np.uint8:
        counts = np.bincount(ids.ravel(), minlength=1)
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(ids, return_counts=True)


def looks_binary(values: set[int]) -> bool:
    """Whether masks with these values are black and white pictures rather than class ids and ignored pixels."""
    return values == {0, 255}


def _range(text: str, limit: int) -> Sequence[int]:
    """The numbers of "7" or "1-150", all of them below `limit`."""
    first, dash, last = text.partition("-")
    numbers = range(int(first), int(last if dash else first) + 1)
    if not numbers or numbers[0] < 0 or numbers[-1] >= limit:
        raise ValueError
    return numbers
