"""Write and read a run's checkpoints, and check which run may continue from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from ..config import FREE_ON_RESUME, TrainConfig, read_settings, upgraded
from ..data.image_format import normalization
from ..saving import checkpoint
from ..saving.file_names import BEST, LAST, PREVIOUS
from ..utils.distributed import Group, rank

RESUME_ONLY = ("bank", "optimizer", "whole_images")  # large, and not needed in best.pt
RINGS_KEPT = 2  # rings of last.pt and previous.pt


class RunFolder:
    """Manage the checkpoints in a run's folder.

    ``last.pt`` is the newest, ``previous.pt`` the one before it, and ``best.pt`` holds the networks with the highest
    mIoU. If each process has its own memory bank, every process but the first saves it in a separate ring file.
    """

    def __init__(self, path: Path, group: Group) -> None:
        self.path, self.group, self.rank = path, group, rank(group)

    @property
    def last(self) -> Path:
        return self.path / LAST

    @property
    def previous(self) -> Path:
        return self.path / PREVIOUS

    def create(self) -> None:
        """Create the folder.

        Raises:
            ValueError: it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: cannot create {self.path}: {error.strerror}") from error

    def holds_run(self) -> bool:
        return self.last.exists() or self.previous.exists()

    def save(self, state: Callable[[], dict[str, Any]], step: int, own_ring: dict[str, Any] | None) -> None:
        """Write ``last.pt``, and keep the old one as ``previous.pt``.

        Args:
            state: called in the first process only.
            step: steps done.
            own_ring: memory bank of this process if each has its own; that of the first process is in ``state``.
        """
        if own_ring is not None and self.rank:
            checkpoint.save(self._ring_path(step), {"step": step, "bank": own_ring})
        if self.group is not None:
            dist.barrier(group=self.group)
        if self.rank == 0:
            checkpoint.keep_previous(self.last, self.previous)
            checkpoint.save(self.last, state())
            self._delete_rings(sorted(self._rings(), reverse=True)[RINGS_KEPT:])

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the networks of ``state`` to ``best.pt``; call it in the first process only."""
        networks = {name: value for name, value in state.items() if name not in RESUME_ONLY}
        checkpoint.save(self.path / BEST, networks)

    def load(self, student: nn.Module, config: TrainConfig, num_classes: int, world: int) -> tuple[dict, str | None]:
        """Return the checkpoint to resume from, and why ``last.pt`` was unreadable if it is ``previous.pt``.

        Raises:
            CheckpointError: neither file can be read, or the weights do not fit ``student``.
            ValueError: it belongs to a run with other settings or another number of processes.
        """
        state, path, complaint = checkpoint.load_first(self.last, self.previous)
        checkpoint.check_layout(state, path)
        if "optimizer" not in state:
            raise ValueError(f"resume: {path} holds only networks, as best.pt does; start a new run with --init-from")
        checkpoint.check_match(state, student, num_classes=num_classes, source=path)
        check_same_run(state, config, world, path)
        return state, complaint

    def load_ring(self, step: int) -> dict[str, Any]:
        """Return the memory bank that this process saved at ``step``."""
        return checkpoint.load(self._ring_path(step))["bank"]

    def drop_rings_after(self, step: int) -> None:
        """Delete the ring files of an incomplete save."""
        self._delete_rings([later for later in self._rings() if later > step])

    def _ring_path(self, step: int) -> Path:
        return self.path / f"ring{self.rank}.step{step}.pt"

    def _rings(self) -> dict[int, list[Path]]:
        """Return ring files by the step that wrote them."""
        found: dict[int, list[Path]] = {}
        for path in self.path.glob("ring*.step*.pt"):
            found.setdefault(int(path.stem.rpartition("step")[2]), []).append(path)
        return found

    def _delete_rings(self, steps: list[int]) -> None:
        rings = self._rings()
        for step in steps:
            for ring in rings[step]:
                ring.unlink(missing_ok=True)


def check_same_run(state: dict[str, Any], config: TrainConfig, world: int, path: Path) -> None:
    """Refuse to resume with settings that change results, or with another number of processes.

    Raises:
        ValueError: naming the settings.
    """
    # Settings added after the run was saved had the effect of their defaults.
    saved, now = read_settings(TrainConfig().to_dict() | upgraded(state["config"])), read_settings(config.to_dict())
    for values in (saved, now):  # None means the default numbers
        mean_and_std = normalization(values["in_channels"], values["image_mean"], values["image_std"])
        values["image_mean"], values["image_std"] = map(list, mean_and_std)
    changed = sorted(name for name in now if name not in FREE_ON_RESUME and saved[name] != now[name])
    if changed:
        listed = ", ".join(f"{name} was {saved[name]}, now {now[name]}" for name in changed)
        raise ValueError(f"resume: {path} belongs to a run with other settings ({listed}); use them, or another --out")
    if state["world_size"] != world:
        raise ValueError(
            f"resume: {path} was written by {state['world_size']} processes, now there are {world}; "
            "use the same number, or start a new run with --init-from"
        )


def load_initial_weights(student: nn.Module, config: TrainConfig) -> None:
    """Load the evaluated network of another run; parameters of another shape keep their new weights.

    Raises:
        ValueError: the encoder does not fit, or the images were normalized differently.
    """
    path = config.init_from
    state = checkpoint.load(path)
    checkpoint.check_layout(state, path)
    theirs = TrainConfig.from_saved(state["config"])
    if theirs.in_channels == config.in_channels and theirs.normalization != config.normalization:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in theirs.normalization)
        raise ValueError(
            f"init_from: {path} was trained with another normalization; add its --image-mean {mean} --image-std {std}"
        )
    weights = state[state["network"]] or state["student"]
    own = student.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not any(name.startswith("encoder.") for name in fitting):
        raise ValueError(f"init_from: the encoder of {path} is not {config.arch}/{config.encoder}; use its --encoder")
    student.load_state_dict(fitting, strict=False)


def check_teacher_from(config: TrainConfig, class_names: list[str]) -> None:
    """Refuse an earlier network with other classes or another number of image channels.

    Raises:
        ValueError: naming the checkpoint and what differs.
    """
    state = checkpoint.load(config.teacher_from)
    checkpoint.check_layout(state, config.teacher_from)
    if list(state["class_names"]) != class_names:
        raise ValueError(f"teacher_from: {config.teacher_from} was trained on other classes than this data set's")
    channels = state["config"].get("in_channels", 3)
    if channels != config.in_channels:
        raise ValueError(
            f"teacher_from: {config.teacher_from} takes {channels} channels, these images have {config.in_channels}"
        )
