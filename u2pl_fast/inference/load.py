"""A trained network from its file, and the settings of its training that prediction starts from."""

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
    """The network of a checkpoint, in evaluation mode, its training's config, and the rest of the checkpoint.

    Args:
        path: a checkpoint that the training wrote, or the ``.safetensors`` file of an exported network.
        device: where the network goes; the rest of the checkpoint stays on the CPU.
        network: ``"auto"`` = the one that the training evaluated. In the returned state, ``network`` is the one
            that was loaded.

    Raises:
        CheckpointError: unreadable file, weights that don't fit, or no such network in it.
    """
    if Path(path).suffix in (".onnx", ".pt2"):
        raise checkpoint.CheckpointError(f"{path} runs by itself; give the checkpoint, or an exported .safetensors")
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
        raise checkpoint.CheckpointError(f"{path} holds no {chosen}: trained without one, or saved before it began")
    checkpoint.check_match(state, model, key=chosen, source=path)
    model.load_state_dict(state[chosen])
    return model.to(device).eval().requires_grad_(False), config, {**state, "network": chosen}


def choose_window(protocol: Protocol, window: Sequence[int] | None, config: TrainConfig) -> tuple[int, int] | None:
    """Windows of ``slide`` as asked for, else of the training's crop size."""
    if window and protocol != "slide":
        raise ValueError("window: whole images have none; add --protocol slide")
    chosen = window or config.crop_size
    if protocol == "slide" and chosen is None:
        raise ValueError("window: the checkpoint names no crop size; give --window HEIGHT WIDTH")
    return tuple(chosen) if protocol == "slide" else None


def choose_resize(resize: Sequence[int] | None, config: TrainConfig) -> tuple[int, int] | None:
    """Size that images are resized to: as asked for, else the training's; ``(0, 0)`` is none at all."""
    chosen = config.resize if resize is None else tuple(resize)
    if chosen is None or tuple(chosen) == (0, 0):
        return None
    if min(chosen) < 1:
        raise ValueError(f"resize: expected a height and width of at least 1, or 0 0 for none, got {tuple(chosen)}")
    return tuple(chosen)
