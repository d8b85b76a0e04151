"""Read ``bank_capacity``: keys of each class, as one number and exceptions."""

import re
from collections.abc import Sequence

_EXCEPTION = re.compile("[0-9]+:[1-9][0-9]*")
_FORM = "expected the keys of each class, then exceptions CLASS:KEYS, such as 30000 0:50000"


def capacity_entries(given: int | str | Sequence[int | str]) -> tuple[str, ...]:
    """Return the entries of ``bank_capacity`` as strings: a number, then CLASS:KEYS for each exception.

    Raises:
        ValueError: an entry has another form, or a number is below 1.
    """
    words = [given] if isinstance(given, int | str) else list(given)
    entries = tuple("".join(str(word).split()) for word in words)
    common, exceptions = entries[:1], entries[1:]
    valid = re.fullmatch("[1-9][0-9]*", "".join(common)) and all(_EXCEPTION.fullmatch(entry) for entry in exceptions)
    if not valid or len({entry.partition(":")[0] for entry in exceptions}) < len(exceptions):
        raise ValueError(f"bank_capacity: {_FORM}; at least 1 each, got {' '.join(entries) or 'nothing'}")
    return entries


def class_capacities(entries: Sequence[str], num_classes: int) -> list[int]:
    """Return the capacity of each class's ring.

    Raises:
        ValueError: an exception names a class that the data set does not have.
    """
    common, *exceptions = entries
    capacities = [int(common)] * num_classes
    for entry in exceptions:
        label, keys = map(int, entry.split(":"))
        if label >= num_classes:
            raise ValueError(f"bank_capacity: {entry} names class {label}; expected 0..{num_classes - 1}")
        capacities[label] = int(keys)
    return capacities
