"""Report a run: a progress line, log.jsonl, TensorBoard, and images of the batch at the last evaluation."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..data.image_format import viewable
from ..pictures.palette import colorize, heat
from ..utils.atomic import write_text


class RunLog:
    """Write the log in the first process; in the others every method does nothing."""

    def __init__(self, out: Path, start: int, steps: int, *, active: bool) -> None:
        self.active, self.steps = active, steps
        self._since, self._since_step = time.perf_counter(), start
        if not active:
            return
        self.console = Console(highlight=False)
        self._drop_after(out / "log.jsonl", start)
        self._lines = open(out / "log.jsonl", "a", buffering=1)
        self._pictures = out / "pictures"
        self._board = SummaryWriter(out / "tensorboard", purge_step=start or None)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._live = sys.stdout.isatty()
        self._progress = Progress(*columns, console=self.console, disable=not self._live)
        self._progress.start()
        self._task = self._progress.add_task("training", total=steps, completed=start, loss="")

    @staticmethod
    def _drop_after(path: Path, step: int) -> None:
        """Delete the lines of steps that a resumed run repeats."""
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text(path, "".join(line + "\n" for line in kept))

    def say(self, text: str) -> None:
        if self.active:
            self.console.print(text, markup=False, soft_wrap=True)

    def record(self, step: int, values: dict[str, Any], images_per_step: int) -> None:
        """Log one step, with the speed since the last call."""
        if not self.active:
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        steps, self._since, self._since_step = step - self._since_step, now, step
        values |= {"images_per_second": images_per_step * steps / seconds, "seconds_per_step": seconds / max(steps, 1)}
        self._write(step, values)
        text = f"loss {values['loss']:.3f}  {values['images_per_second']:.1f} img/s"
        self._progress.update(self._task, completed=step, loss=text)
        if not self._live:
            left = (self.steps - step) * values["seconds_per_step"]
            parts = "  ".join(f"{k} {values[k]:.3f}" for k in ("supervised", "unsupervised", "contrastive"))
            self.say(f"step {step}/{self.steps}  {text}  {parts}  {left / 60:.1f} min left")

    def evaluated(self, step: int, values: dict[str, Any]) -> None:
        if not self.active:
            return
        self._write(step, values)
        scores = "  ".join(f"{k} {v:.4f}" for k, v in values.items() if isinstance(v, float))
        self.say(f"step {step}/{self.steps}  {scores}")
        self.restart_clock(step)

    def note(self, step: int, values: dict[str, Any]) -> None:
        """Write numbers to the files only."""
        if self.active and values:
            self._write(step, values)

    def restart_clock(self, step: int) -> None:
        """Exclude the time since the last record, such as an evaluation, from the next speed."""
        self._since, self._since_step = time.perf_counter(), step

    def _write(self, step: int, values: dict[str, Any]) -> None:
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            for suffix, number in _scalars(value):
                self._board.add_scalar(name + suffix, number, step)

    def pictures(self, step: int, maps: dict[str, Tensor], num_classes: int) -> None:
        """Save the first image of the batch in each view: images in RGB, labels in color, entropy as a heat map."""
        if not self.active:
            return
        self._pictures.mkdir(exist_ok=True)
        for name, value in maps.items():
            picture = value[0].detach().cpu()
            if name.endswith("label"):
                picture = torch.from_numpy(colorize(picture.numpy(), num_classes)).permute(2, 0, 1)
            elif name.endswith("entropy"):
                scaled = (picture / torch.tensor(float(max(num_classes, 2))).log()).clamp(0, 1)
                picture = torch.from_numpy(heat(scaled.numpy())).permute(2, 0, 1)
            elif picture.dtype == torch.bool:
                picture = picture[None].byte() * 255
            elif picture.dim() == 3:
                picture = torch.from_numpy(viewable(picture.permute(1, 2, 0).numpy())).permute(2, 0, 1)
            self._board.add_image(name, picture, step)
            pixels = picture.permute(1, 2, 0).numpy()
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
                self._pictures / f"{name.replace('/', '-')}.png"
            )

    def close(self) -> None:
        if self.active:
            self._progress.stop()
            self._lines.close()
            self._board.close()


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # unfinished line of a killed run
        return sys.maxsize


def _scalars(value: Any) -> list[tuple[str, float]]:
    """Return the scalars for TensorBoard; a list over classes becomes its minimum, mean and maximum."""
    if isinstance(value, int | float):
        return [("", value)]
    if isinstance(value, list) and value and all(isinstance(x, int | float) for x in value):
        return [("/min", min(value)), ("/mean", sum(value) / len(value)), ("/max", max(value))]
    return []
