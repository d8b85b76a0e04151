"""Read the records of a folder of results, and format their numbers."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from ...measure import results
from ...measure.workloads import REPORTED

SETTING = tuple(name for name in results.KEY if name != "impl")
NOT_OPS = ("growth", "counters", "training")  # files without records


def number(value: float | None) -> str:
    """Format a number with three significant digits."""
    if value is None:
        return "—"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    return "—" if value is None else f"{number(value)}×"


def folder_data(folder: Path) -> list[dict]:
    return [results.load(path) for path in sorted(folder.glob("*.json")) if path.stem not in NOT_OPS]


def records_of(folder: Path) -> list[results.Record]:
    """Return the records of a folder. Of equal keys keep the later record; leave out wrong results."""
    found: dict[tuple, results.Record] = {}
    for data in folder_data(folder):
        for record in data["records"]:
            if (record["reason"] or "").startswith(results.DISAGREES):
                continue
            known = found.get(results.key(record))
            if known is None or known["time"] <= record["time"]:
                found[results.key(record)] = record
    return list(found.values())


def grouped(records: Iterable[results.Record]) -> list[dict[str, results.Record]]:
    """Return one dict by implementation for each setting: reported workloads only, in their order."""
    settings: dict[tuple, dict[str, results.Record]] = {}
    for record in records:
        if record["workload"] in REPORTED:
            settings.setdefault(tuple(record[name] for name in SETTING), {})[record["impl"]] = record
    return sorted(settings.values(), key=lambda s: REPORTED.index(next(iter(s.values()))["workload"]))


def ratio(setting: dict[str, results.Record], other: str, own: str = "fused") -> float | None:
    """Return how many times as fast as ``other``: the median over the rounds that both have."""
    theirs, mine = (setting.get(impl, {}).get("ms_all") for impl in (other, own))
    if not theirs or not mine:
        return None
    return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))


def machine_rows(folder: Path, ceilings: Callable[[dict[str, float]], str]) -> list[list[str]]:
    """Return the machine of each file: name, threads, versions, commit, time, and its ceilings."""
    rows = []
    for m in (data["machine"] for data in folder_data(folder)):
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items() if version)
        rows.append([m["name"], str(m["threads"]), versions, m["commit"], m["time"], ceilings(m["ceilings"])])
    return rows
