"""Load encoder weights, freeze stages, recompute activations and drop channels."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` file with the encoder's own parameter names.

    Skip weights that the encoder does not have, such as a classifier's. Adapt a first convolution for three channels to
    the encoder's number of channels.

    Raises:
        ValueError: the file is missing or does not fit the encoder.
    """
    if not path.is_file():
        raise ValueError(f"encoder_weights: no file {path}; use a .safetensors file, 'imagenet' or 'none'")
    try:
        weights: Mapping[str, Tensor] = load_file(path)
    except Exception as error:
        raise ValueError(f"encoder_weights: {path} is not a readable .safetensors file ({error})") from error
    wanted = encoder.state_dict()
    weights = {name: _adapted(weights[key], wanted[name]) for name in wanted if (key := _stored(name, weights))}
    missing = [name for name in wanted if name not in weights]
    unequal = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    if missing or unequal:
        raise ValueError(
            f"encoder_weights: {path} does not fit this encoder: {len(missing)} tensors missing, {len(unequal)} of "
            f"another shape, first {(missing + unequal)[0]}; use the file of this model"
        )
    encoder.load_state_dict(weights)


def _stored(name: str, weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor in the file: timm renames ``stages.0`` to ``stages_0`` in feature extractors."""
    unflattened = re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
    return next((key for key in (name, unflattened) if key in weights), None)


def _adapted(weight: Tensor, wanted: Tensor) -> Tensor:
    """Return a three-channel convolution's weight adapted to the wanted channels; return others unchanged."""
    if wanted.dim() != 4 or weight.shape == wanted.shape or weight.shape != (len(wanted), 3, *wanted.shape[2:]):
        return weight
    return timm.models.adapt_input_conv(wanted.shape[1], weight)


def freeze_stages(encoder: nn.Module, stages: int, in_channels: int) -> None:
    """Freeze every parameter that the first ``stages`` feature maps depend on; the image is not a stage."""
    if not stages:
        return
    traced = copy.deepcopy(encoder).to("meta").train()
    features = _trace(traced, in_channels)
    if not 0 <= stages <= len(features):
        raise ValueError(f"freeze_stages: this encoder has {len(features)} stages, got {stages}")
    for parameter, is_behind in zip(encoder.parameters(), _behind(traced, features[:stages]), strict=True):
        parameter.requires_grad_(parameter.requires_grad and not is_behind)


def freeze_unread(encoder: nn.Module, in_channels: int) -> None:
    """Freeze the parameters that no feature map depends on, such as stages that the decoder does not use.

    Data-parallel training waits for the gradient of every parameter that requires one.
    """
    traced = copy.deepcopy(encoder).to("meta").train()
    read = _behind(traced, _trace(traced, in_channels))
    for parameter, is_read in zip(encoder.parameters(), read, strict=True):
        parameter.requires_grad_(is_read)


def _trace(encoder: nn.Module, in_channels: int) -> list[Tensor]:
    """Return the feature maps that depend on parameters, finest first, computed on the meta device."""
    side = 4 * encoder.output_stride
    maps = feature_maps(encoder(torch.empty(2, in_channels, side, side, device="meta")))
    return [x for x in maps if x.requires_grad and x.numel()]


def _behind(encoder: nn.Module, features: list[Tensor]) -> list[bool]:
    """Return, for each parameter, whether one of the feature maps depends on it."""
    wanted = [p for p in encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad([x.sum() for x in features], wanted, allow_unused=True)
    behind = {id(p) for p, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    return [id(p) in behind for p in encoder.parameters()]


def checkpoint_activations(encoder: nn.Module, name: str, freeze_batchnorm: bool) -> None:
    """Make the encoder recompute its activations in the backward pass instead of storing them.

    Raises:
        ValueError: the encoder does not support it, or has batch norm that is not frozen.
    """
    network = getattr(encoder, "model", encoder)
    if not hasattr(network, "set_grad_checkpointing"):
        raise ValueError(f"checkpoint_encoder: {name} does not support recomputed activations; remove it")
    if not freeze_batchnorm and any(batch_norms(network)):
        raise ValueError(
            f"checkpoint_encoder: {name} has batch norm, which would count every batch twice; add freeze_batchnorm, or "
            "use an encoder without batch norm, such as a vision transformer, ConvNeXt or Swin"
        )
    network.set_grad_checkpointing(True)


def feature_maps(features: Any) -> Sequence[Tensor]:
    """Return the maps of an encoder's output, finest first, without a vision transformer's class tokens."""
    return features[0] if isinstance(features, tuple) else features


def drop_channels(features: Any, number: int, share: float) -> Any:
    """Set a share of the channels of the last ``number`` images to 0, chosen separately for each feature map."""

    def drop(x: Tensor) -> Tensor:
        return torch.cat((x[:-number], F.dropout2d(x[-number:], share)))

    if isinstance(features, tuple):  # a vision transformer
        return [drop(x) for x in feature_maps(features)], *features[1:]
    return [features[0], *(drop(x) for x in features[1:])]  # the first one is the image


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the batch norm layers of a module, including synchronized ones."""
    return (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
