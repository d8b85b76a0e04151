"""Load a trained network, and the settings of its training that prediction starts from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..config import TrainConfig
from ..models import build_model
from ..saving import checkpoint, weights_file
from .predict import Protocol


def load_model(
    path: str | Path, device: torch.device | str = "cpu", network: Literal["auto", "teacher", "student"] = "auto"
) -> tuple[nn.Module, TrainConfig, dict[str, Any]]:
    """Return a checkpoint's network in evaluation mode, the config of its training, and the rest of the file.

    Args:
        path: a checkpoint that the training wrote, or the ``.safetensors`` file of an exported network.
        device: where the network goes; the rest of the checkpoint stays on the CPU.
        network: ``"auto"`` = the one that the training evaluated. In the returned state, ``network`` is the one
            that was loaded.

    Raises:
        CheckpointError: unreadable file, weights that do not fit, or no such network in the file.
    """
    if Path(path).suffix in (".onnx", ".pt2"):
        raise checkpoint.CheckpointError(
            f"{path} runs without this package; pass the checkpoint, or an exported .safetensors file"
        )
    is_export = Path(path).suffix == weights_file.SUFFIX
    state = weights_file.load_network(Path(path)) if is_export else checkpoint.load(path)
    checkpoint.check_layout(state, path)
    try:
        config = TrainConfig.from_saved(state["config"])
        model = build_model(config, state["num_classes"], load_encoder_weights=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path}: no network can be built from its config ({error})") from error
    chosen = state["network"] if network == "auto" else network
    if not state[chosen]:
        raise checkpoint.CheckpointError(
            f"{path} holds no {chosen}: it was trained without one, or saved before it started"
        )
    checkpoint.check_match(state, model, key=chosen, source=path)
    model.load_state_dict(state[chosen])
    return model.to(device).eval().requires_grad_(False), config, {**state, "network": chosen}


def choose_window(protocol: Protocol, window: Sequence[int] | None, config: TrainConfig) -> tuple[int, int] | None:
    """Return the size of the windows of ``slide``: as given, else the crop size of the training."""
    if window and protocol != "slide":
        raise ValueError("window: protocol whole has no windows; add --protocol slide")
    chosen = window or config.crop_size
    if protocol == "slide" and chosen is None:
        raise ValueError("window: the checkpoint has no crop size; set --window HEIGHT WIDTH")
    return tuple(chosen) if protocol == "slide" else None


def choose_resize(resize: Sequence[int] | None, config: TrainConfig) -> tuple[int, int] | None:
    """Return the size that images are resized to: as given, else that of the training; None for ``(0, 0)``."""
    chosen = config.resize if resize is None else tuple(resize)
    if chosen is None or tuple(chosen) == (0, 0):
        return None
    if min(chosen) < 1:
        raise ValueError(f"resize: expected a height and width of at least 1, or 0 0 for none, got {tuple(chosen)}")
    return tuple(chosen)
