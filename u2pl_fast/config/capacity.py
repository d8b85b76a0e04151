"""Read ``bank_capacity``: keys of each class, as one number and exceptions."""

from collections.abc import Sequence

_FORM = "expected the keys of each class, then exceptions CLASS:KEYS, such as 30000 0:50000"


def capacity_entries(given: int | str | Sequence[int | str]) -> tuple[str, ...]:
    """Return the entries of ``bank_capacity`` as strings: a number, then CLASS:KEYS for each exception.

    Raises:
        ValueError: an entry has another form, or a number is below 1.
    """
    words = [given] if isinstance(given, int | str) else list(given)
    entries = tuple("".join(str(word).split()) for word in words)
    numbers = [number for entry in entries for number in entry.partition(":")[::2] if number or ":" in entry]
    common = [entry for entry in entries if ":" not in entry]
    classes = [entry.partition(":")[0] for entry in entries if ":" in entry]
    valid = all(number.isascii() and number.isdigit() for number in numbers) and len(set(classes)) == len(classes)
    if not valid or common != list(entries[:1]) or any(int(entry.rpartition(":")[2]) < 1 for entry in entries):
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
