"""Read what a run wrote to its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..saving.file_names import BEST, LAST

if TYPE_CHECKING:
    from ..inference import Predictor


@dataclass
class Run:
    """Hold the files of a run, finished or not.

    Attributes:
        folder: its ``--out`` folder.
        config: its settings, by name.
        log: its log, one dict per line; :doc:`settings` lists the names.
        metrics: contents of ``metrics.json``; empty until the run ends or is stopped.
        class_names: names of the classes.
    """

    folder: Path
    config: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    class_names: list[str]

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """Return the run in a folder.

        Raises:
            ValueError: the folder holds no run; the message names the file that is missing or broken.
        """
        folder = Path(folder)
        lines = _text(folder / "log.jsonl").splitlines()
        log = []
        for number, line in enumerate(lines):
            try:
                log.append(json.loads(line))
            except ValueError as error:
                if number + 1 < len(lines):  # a killed run leaves its last line unfinished
                    raise ValueError(f"{folder / 'log.jsonl'}, line {number + 1}: not JSON ({error})") from error
        metrics, names = folder / "metrics.json", folder / "classes.json"
        return cls(
            folder,
            yaml.safe_load(_text(folder / "config.yaml")),
            log,
            json.loads(_text(metrics)) if metrics.exists() else {},
            json.loads(_text(names)) if names.exists() else [],
        )

    @property
    def miou(self) -> float | None:
        """Return the mean IoU of the network in ``checkpoint``, in [0, 1], or None before the first evaluation."""
        return self.metrics.get("best_miou")

    @property
    def checkpoint(self) -> Path:
        """Return the file of the best network, or of the last one if there was no evaluation."""
        best = self.folder / BEST
        return best if best.exists() else self.folder / LAST

    def load(self, device: str = "auto") -> "Predictor":
        """Return the network of ``checkpoint``; see :func:`u2pl_fast.load`."""
        from ..inference import load  # imports torch, which reading a run does not need

        return load(self.checkpoint, device)

    def series(self, name: str) -> tuple[list[int], list[Any]]:
        """Return the steps and values logged under ``name``."""
        rows = [(line["step"], line[name]) for line in self.log if line.get(name) is not None]
        return [step for step, _ in rows], [value for _, value in rows]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; is this the --out folder of a training?") from error
