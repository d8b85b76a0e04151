"""Write the folder that a check leaves: flat, at most eight files, each up to date while the check runs.

The machine may be taken away at any time. So a fact is written as soon as it is known: a line is appended to a
``.jsonl`` file, or a ``.json`` file is replaced as a whole. A later check adds to the files in the folder.
"""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from u2pl_fast.utils.atomic import write_text

LOG, STAGES, TESTS = "log.txt", "stages.jsonl", "tests.jsonl"
RESULTS, GROWTH, TRAINING, COUNTERS, ACCURACY = (
    "results.json",  # benchmarks/measure/results.py has its schema
    "growth.json",
    "training.json",
    "counters.json",
    "accuracy.jsonl",
)
FILES = (LOG, STAGES, TESTS, RESULTS, GROWTH, TRAINING, COUNTERS, ACCURACY)
COMPARED = FUSED, REFERENCE = ("train fused", "train reference")  # the trainings in TRAINING
LOG_BYTES, STAGE_LOG_BYTES = 12 * 2**20, 2**20

Row = dict[str, Any]


class Out:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._logged: dict[str, int] = {}

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def log(self, stage: str, line: str) -> None:
        """Add a line of the output of a stage, unless the stage or the log is too long."""
        text = f"{stage} | {line.rstrip()}\n".encode()
        with self._lock:
            used = self._logged.get(stage, 0) + len(text)
            path = self / LOG
            size = path.stat().st_size if path.exists() else 0
            if used > STAGE_LOG_BYTES or size > LOG_BYTES:
                return
            self._logged[stage] = used
            with path.open("ab") as file:
                file.write(text)

    def stage(self, row: Row) -> None:
        append(self / STAGES, row)

    def stages(self) -> list[Row]:
        """Return the last status of each stage of each part, in the order they began."""
        found: dict[tuple[str, str], Row] = {}
        for row in rows(self / STAGES):
            key = (row["part"], row["stage"])
            if row["status"] == "running":
                found.pop(key, None)
            found[key] = row
        return list(found.values())


def append(path: Path, row: Row) -> None:
    """Add one line of JSON in a single write, so that a process that is killed leaves whole lines."""
    with path.open("ab") as file:
        file.write((json.dumps(row) + "\n").encode())


def rows(path: Path) -> list[Row]:
    """Return the lines of a ``.jsonl`` file; none if there is no file. Skip a last line that is incomplete."""
    found: list[Row] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def loss_pairs(path: Path) -> list[tuple[float, float]]:
    """Return the losses of the fused and of the reference training, step by step; none if one of them is missing."""
    found = json.loads(path.read_text()) if path.exists() else {}
    losses = [found[name]["loss"] for name in COMPARED if name in found]
    return list(zip(*losses, strict=False)) if len(losses) == len(COMPARED) else []


def replace(path: Path, found: Iterable[Row]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in found))
