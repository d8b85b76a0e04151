"""Write a network's weights to a ``.safetensors`` file, with its description in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..utils.atomic import replacing
from .checkpoint import CheckpointError

SUFFIX = ".safetensors"
_METADATA = ("config", "num_classes", "class_names", "network", "step")


def save_network(path: Path, state: Mapping[str, Any]) -> None:
    """Write the weights ``state[state["network"]]`` of a checkpoint atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in state[state["network"]].items()}
    metadata = {name: json.dumps(state[name]) for name in _METADATA}
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save(weights, metadata))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def load_network(path: Path) -> dict[str, Any]:
    """Return what :func:`save_network` wrote, as a checkpoint of this one network.

    Raises:
        CheckpointError: the file is missing, or was not written by :func:`save_network`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
        state = {name: json.loads(metadata[name]) for name in _METADATA}
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable .safetensors file ({error})") from error
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} holds weights, but was not written by u2pl export") from error
    return state | {"student": {}, "teacher": None} | {state["network"]: weights}
