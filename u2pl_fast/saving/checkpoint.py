"""Write checkpoint files atomically, and read them without running code from the file.

A checkpoint is one dict of tensors and plain values:

======================  ===============================================================================
``format``              int, version of this layout, :data:`FORMAT`
``config``              dict of plain values, the training configuration
``num_classes``         int
``class_names``         list of str, empty if the names are unknown
``network``             ``"teacher"`` or ``"student"``: the network that the training evaluated
``student``             state dict
``teacher``             state dict, or None before the teacher starts
``step``                int, steps done
other keys              state of the trainer (optimizer, bank, ...)
======================  ===============================================================================
"""

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.atomic import replacing

FORMAT = 1

_PRIMITIVES = (bool, int, float, str, bytes, type(None))
_LAYOUT: dict[str, tuple[type, ...]] = {
    "config": (dict,),
    "num_classes": (int,),
    "class_names": (list,),
    "network": (str,),
    "student": (dict,),
    "teacher": (dict, type(None)),
    "step": (int,),
}


class CheckpointError(ValueError):
    """Report a checkpoint that cannot be written or read, or does not fit; the message names the file."""


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically.

    The file is flushed to the disk: after a crash or a power cut, ``path`` is either the old file or the new one.

    Args:
        path: the file; its folder must exist.
        state: dicts, lists and tuples of tensors and plain values; ``format`` is added. Tensors may be on any device; a
            view is saved without the rest of its storage.

    Raises:
        TypeError: ``state`` holds something else; the message names the key.
        CheckpointError: the folder is not writable or the disk is full. The old file is unchanged.
    """
    target = Path(path)
    plain = _plain({**state, "format": FORMAT}, "state")
    try:
        with replacing(target) as temporary, open(temporary, "wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        reason = _os_error(error)
        if reason is None:
            raise
        kept = "; the existing file is unchanged" if os.path.exists(target) else ""
        raise CheckpointError(
            f"cannot write checkpoint {target}: {reason.strerror or reason}{kept}. "
            "Free some disk space or choose a writable folder"
        ) from error
    try:
        _sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"wrote checkpoint {target}, but could not flush its folder to the disk: {error.strerror or error}"
        ) from error


def load(path: str | os.PathLike[str], map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file that :func:`save` wrote.

    The checksum of every record is verified. Unpickling is restricted to tensors and plain values (``weights_only``),
    so no code from the file runs.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, unsafe, of another format version, or not a
            checkpoint.
    """
    source = Path(path)
    _check_archive(source)
    try:
        state = torch.load(source, map_location=map_location, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"refused {source}: it holds more than tensors and plain values, or is not a checkpoint of u2pl_fast. "
            "No code in it was run"
        ) from error
    version = state.get("format") if isinstance(state, dict) else None
    if type(version) is not int:
        raise CheckpointError(f"{source} is not a checkpoint of u2pl_fast: it has no format number")
    if version != FORMAT:
        raise CheckpointError(f"{source} has checkpoint format {version}, but this version of u2pl_fast reads {FORMAT}")
    return state


def load_first(*paths: Path) -> tuple[dict[str, Any], Path, str | None]:
    """Return the first of ``paths`` that can be read, its path, and the errors of those before it.

    Raises:
        CheckpointError: none of them can be read; the message is that of the first.
    """
    complaints: list[CheckpointError] = []
    for path in paths:
        try:
            return load(path), path, "; ".join(map(str, complaints)) or None
        except CheckpointError as error:
            complaints.append(error)
    raise complaints[0]


def keep_previous(path: Path, previous: Path) -> None:
    """Link the file at ``path``, if there is one, to ``previous`` as well; ``path`` exists at all times."""
    if not path.exists():
        return
    try:
        with replacing(previous) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise CheckpointError(f"cannot keep {path} as {previous}: {error.strerror or error}") from error


def check_layout(state: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Refuse a file that does not hold a training checkpoint (see the top of this module).

    Raises:
        CheckpointError: naming the keys that are missing or have the wrong type.
    """
    wrong = [key for key, types in _LAYOUT.items() if key not in state or not isinstance(state[key], types)]
    if wrong:
        raise CheckpointError(f"{source} is not a training checkpoint: {', '.join(wrong)} missing or of the wrong type")
    if state["network"] not in ("teacher", "student"):
        raise CheckpointError(f"{source}: network must be 'teacher' or 'student', got {state['network']!r}")
    if state["num_classes"] < 1:
        raise CheckpointError(f"{source}: num_classes must be at least 1, got {state['num_classes']}")


def check_match(
    state: Mapping[str, Any],
    model: nn.Module,
    *,
    key: str = "student",
    num_classes: int | None = None,
    source: str | os.PathLike[str] = "the checkpoint",
) -> None:
    """Refuse weights that do not fit ``model``, and say what differs.

    Args:
        state: a whole checkpoint.
        model: the network that will load ``state[key]``.
        key: ``"student"`` or ``"teacher"``.
        num_classes: number of classes in the data set; None = not compared.
        source: name of the file, for the message.

    Raises:
        CheckpointError: naming class counts, missing and unexpected entries, and shapes that differ.
    """
    weights = state.get(key)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{source} holds no {key} weights")
    own = model.state_dict()
    differences = []
    saved_classes = state.get("num_classes")
    if num_classes is not None and saved_classes is not None and saved_classes != num_classes:
        differences.append(f"it was trained with {saved_classes} classes, the data set has {num_classes}")
    missing = [name for name in own if name not in weights]
    if missing:
        differences.append(f"missing from the file: {_listed(missing)}")
    unexpected = [str(name) for name in weights if name not in own]
    if unexpected:
        differences.append(f"unknown to the model: {_listed(unexpected)}")
    shapes = []
    for name, value in weights.items():
        if name not in own:
            continue
        if not isinstance(value, Tensor):
            shapes.append(f"{name} is not a tensor")
        elif value.shape != own[name].shape:
            shapes.append(f"{name} is {tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model")
    if shapes:
        differences.append(f"shapes: {_listed(shapes)}")
    if differences:
        raise CheckpointError(
            f"the {key} weights of {source} do not fit the model: {'; '.join(differences)}. "
            "Use the settings of the checkpoint's run"
        )


def _plain(value: Any, where: str) -> Any:
    """Return ``value`` as dicts, lists, tuples, detached tensors and plain values; ``where`` names it in errors."""
    if type(value) in _PRIMITIVES:
        return value
    if isinstance(value, Tensor):
        tensor = value.detach()
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{type(tensor).__name__} ({tensor.layout}, {tensor.device})"
            raise TypeError(f"{where} is a {kind}: only plain, dense tensors can be saved")
        # A slice would save its whole storage.
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r}: only str and int keys can be saved")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds only tensors and plain values")


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the OSError behind ``error``: torch.save wraps it in a RuntimeError about file positions."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, on platforms that can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_archive(source: Path) -> None:
    """Refuse a damaged archive. torch's reader ignores checksums, and would load a flipped bit as a weight."""
    damaged = f"{source} is truncated, damaged, or not a checkpoint of u2pl_fast"
    try:
        with open(source, "rb") as file, zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {source}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{source} is a folder; name a checkpoint in it, such as best.pt") from None
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {source}: {error.strerror or error}") from error
    except Exception as error:  # zipfile raises many types
        raise CheckpointError(damaged) from error
    if broken is not None:
        raise CheckpointError(f"{damaged}: wrong checksum of its record {broken}")


def _listed(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
