"""Copy the results of a check to ``benchmarks/results``, where the documentation reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

from u2pl_fast.utils.atomic import write_text

from ..measure import results
from .out import ACCURACY, COUNTERS, GROWTH, RESULTS, TESTS, TRAINING, rows

NAMES = {RESULTS: "ops.json", GROWTH: "growth.json", COUNTERS: "counters.json", TRAINING: "training.json"}
PARENT = results.RESULTS


def install(folders: Sequence[Path], parent: Path = PARENT) -> list[str]:
    """Copy the results of the folders, a later one over an earlier one. Return what was written, and what to do next.

    Raises SystemExit if a folder holds no results of a GPU, or results of another machine than the existing ones.
    """
    said = []
    for folder in folders:
        data = results.load(folder / RESULTS) if (folder / RESULTS).exists() else None
        if data is not None:
            if data["machine"]["device"] != "cuda":
                raise SystemExit(f"--install: {folder} was measured on a {data['machine']['device']}, not on a GPU")
            path = parent / "cuda" / NAMES[RESULTS]
            results.save(path, results.merged(results.load(path), data) if path.exists() else data)
            said.append(f"{path}: {len(data['records'])} records")
        runs = rows(folder / ACCURACY)
        for run in runs:
            path = parent / "accuracy" / "cuda" / f"{run['name']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({k: v for k, v in run.items() if k != "name"}) + "\n")
        if runs:
            said.append(f"{parent / 'accuracy' / 'cuda'}: {len(runs)} runs")
        for name in (GROWTH, COUNTERS, TRAINING):
            if (folder / name).exists():
                path = parent / "cuda" / NAMES[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, (folder / name).read_text())
                said.append(str(path))
        if not (data or runs or rows(folder / TESTS)):
            raise SystemExit(f"--install: {folder} holds no results of a check")
    return [*said, "now: python -m benchmarks.draw.tables"]
